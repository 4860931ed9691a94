"""`report.html`: one self-contained page from a run directory, made from its files alone."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from scalar_sae.cautions import DEEP, POOR, cautions_of, dips
from scalar_sae.errors import UserError
from scalar_sae.io import write_text
from scalar_sae.readers import parse_yaml, read_text
from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import Interval, SaeFidelity
from scalar_sae.report import figures
from scalar_sae.report.environment import ONE_FILE, environment
from scalar_sae.report.ratios import BASELINE, claims, sentence
from scalar_sae.report.scores_csv import as_address, as_csv
from scalar_sae.scoring.compare import ratios
from scalar_sae.scoring.resampled import Ends


class Comparison(NamedTuple):
    """A method against the TopK SAEs at the same block, under the same ranking. Intervals are 95 % over prompts."""

    record: Record
    absolute: float | None = None
    """Reduction of the published absolute score."""
    relative: float | None = None
    """Reduction of the published relative score."""
    do_nothing: float | None = None
    """What two identical curves would reduce the relative score by, from the number of possible edges alone."""
    absolute_ci: Interval | None = None
    relative_ci: Interval | None = None


class Links(NamedTuple):
    """What lies beside a page, as addresses that it can link to."""

    results: str = ""
    features: Sequence[tuple[str, str]] = ()
    """Pages of features: what each is called, and its address."""

    @classmethod
    def of(cls, run: Path, page: Path) -> "Links":
        """What a run has for a page."""

        def address(path: Path) -> str:
            return quote(os.path.relpath(path, page.parent))

        folders = sorted(path.parent.parent for path in run.glob("features/*/*/page/index.html"))
        pages = [(f"{one.parent.name} {one.name}", address(one / "page" / "index.html")) for one in folders]
        return cls(address(run / "results.json"), pages)


def write_report(run: Path, page: Path | None = None) -> Path:
    """Write the page of a run, by default as `report.html` into its directory; returns where it is.

    Raises:
        UserError: the run has no results, the page is not named `.html`, or it cannot be written.
    """
    page = page or run / "report.html"
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"{page}: the name of a page ends in .html; choose another --out")
    results = Results.read(run / "results.json")
    config_file = run / "config.yaml"
    config: Any = {}
    if os.path.lexists(config_file):
        config = parse_yaml(read_text(config_file, "no longer there; run the command again"), str(config_file))
    write_text(page, render(results, config, run.name, Links.of(run, page)))
    return page


def headline(results: Results) -> str:
    """The first ranking of global edges that is neither the authors' nor the control: what the report speaks of."""
    names = (record.ranking for record in results.records if record.scope == "global")
    return next((name for name in names if name not in ("published", "random")), "leave_one_out_with_prior")


def headline_sentence(results: Results) -> str:
    """The sentence that a report opens with (ratios.py writes it)."""
    records = results.under(headline(results))
    return sentence(records, claims(records))


def render(results: Results, config: dict[str, Any], title: str, links: Links | None = None) -> str:
    """The page's HTML."""
    records = results.records
    of_saes = (*results.saes, *results.spliced, *results.seeds, *results.duplicates, *results.absorption)
    colours = figures.method_colours([one.method for one in (*records, *of_saes, *results.probes, *results.reading)])
    exact, published = results.under(headline(results)), results.under("published")
    found = claims(exact)
    templates = environment()
    templates.filters.update(number=_number, reached=_reached, interval=_interval, percent=_percent)
    return templates.get_template("page.html.j2").render(
        title=title,
        csp=ONE_FILE,
        colours=colours,
        claim=headline_sentence(results),
        claims=found,
        baseline=BASELINE,
        config=yaml.safe_dump(config, sort_keys=False),
        train=_trained(config),
        first=records[0] if records else None,
        rank_prompts={record.ranking: record.config["rank_prompts"] for record in records},
        seconds=sum(record.seconds for record in records),
        headline=headline(results),
        deep=DEEP,
        exact=exact,
        cautions=cautions_of(exact),
        local={record.key[:2]: record for record in results.under("local")},
        controls=controls(results),
        published=compare(published),
        published_cautions=cautions_of(published),
        poor=POOR,
        dips=[record.key for record in exact if dips(record)],
        faithfulness_charts=[
            figures.faithfulness_curves(some, colours) for some in _by_kind(exact + results.under("random"))
        ],
        recovery_charts=[figures.recovery_curves(some, colours) for some in _by_kind(exact + results.under("random"))],
        kl_charts=[figures.kl_curves(some, colours) for some in _by_kind(published)],
        saes=results.saes,
        spliced=results.spliced,
        seeds=results.seeds,
        duplicates=results.duplicates,
        absorption=results.absorption,
        probes=results.probes,
        reading=results.reading,
        density_charts=figures.density(results.saes, colours),
        seeds_charts=figures.agreement(results.seeds, colours),
        fidelity_charts=figures.fidelity(results.saes, colours) if results.saes else [],
        staircases=_staircases(results.saes),
        features=links.features if links else (),
        results_link=links.results if links else "",
        csv=as_address(as_csv(records)),
        versions=json.dumps(records[0].versions if records else {}),
    )


class Controlled(NamedTuple):
    """A pair beside what it must be told from, or must be equal to."""

    record: Record
    random: Record | None
    """The same pair, edges in random order."""
    padded: Record | None
    """The pair with dead latents."""
    shuffled: Record | None
    """The SAEs on a model with shuffled weights."""


def controls(results: Results) -> list[Controlled]:
    """The pairs under the first ranking that have a control."""
    found = {record.key: record for record in results.records}
    beside: list[Controlled] = []
    for record in results.under(results.records[0].ranking) if results.records else []:
        random = found.get((record.block, record.method, "random", None))
        padded, shuffled = (found.get((*record.key[:3], control)) for control in ("padded", "shuffled"))
        if random or padded or shuffled:
            beside.append(Controlled(record, random, padded, shuffled))
    return beside


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Every record beside the TopK record of its block, reductions as the paper defines them: 1 - method / TopK."""
    baseline = {record.block: record for record in records if record.method == BASELINE}
    intervals = _ratio_intervals(records)
    found: list[Comparison] = []
    for record in records:
        base = baseline.get(record.block)
        if base is None or record.method == BASELINE:
            found.append(Comparison(record))
            continue
        nothing = base.n_edges / record.n_edges
        low, high = intervals.get((record.block, record.method)) or (None, None)
        found.append(
            Comparison(
                record,
                1 - record.absolute / base.absolute if base.absolute else None,
                1 - record.relative / base.relative if base.relative else None,
                1 - nothing,
                None if low is None or high is None else (1 - high, 1 - low),
                None if low is None or high is None else (1 - nothing * high, 1 - nothing * low),
            )
        )
    return found


def _ratio_intervals(records: Sequence[Record]) -> dict[tuple[str, str], Ends | None]:
    """Intervals of absolute scores over that of TopK; none where records do not compare."""
    try:
        return {(one.block, one.method): one.interval for one in ratios(list(records), BASELINE, "absolute").rows}
    except UserError:
        return {}


def _by_kind(records: Sequence[Record]) -> list[list[Record]]:
    kinds = dict.fromkeys(_kind(record) for record in records)
    return [[record for record in records if _kind(record) == kind] for kind in kinds]


def _kind(record: Record) -> str:
    return record.block.partition(".")[0]


def _staircases(saes: Sequence[SaeFidelity]) -> list[tuple[str, list[SaeFidelity]]]:
    names = dict.fromkeys(sae.method for sae in saes if len(sae.l0_per_chunk) > 1)
    return [(name, [sae for sae in saes if sae.method == name]) for name in names]


def _trained(config: Any) -> dict[str, Any]:
    """What the page says of the training, from a config that need not be one of ours."""
    train = config.get("train") if isinstance(config, dict) else None
    found = {name: train.get(name) for name in ("lm", "tokens")} if isinstance(train, dict) else {}
    tokens = found.get("tokens")
    return found | {"tokens": f"{tokens:,}" if isinstance(tokens, int) else tokens} if found else {}


def _number(value: float | None, digits: int = 3) -> str:
    """Thousands separated, `digits` significant; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def _reached(value: float | None) -> str:
    """A score that a curve need not reach."""
    return "never" if value is None else _number(value)


def _interval(interval: Sequence[float | None] | None) -> str:
    return "" if interval is None else " – ".join("?" if end is None else _number(end) for end in interval)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
