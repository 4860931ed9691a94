"""`report.html`: one self-contained page from a run directory, made from its files alone."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import yaml
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from scalar_sae.cautions import DEEP, cautions_of
from scalar_sae.errors import UserError
from scalar_sae.io import write_text
from scalar_sae.readers import parse_yaml, read_text
from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.report import figures, measures
from scalar_sae.report.environment import asset, environment, policy_of

BASELINE = "topk"


class Comparison(NamedTuple):
    """A method against the TopK SAEs at the same block, under the same ranking."""

    record: Record
    absolute: float | None
    """Reduction of the published absolute score."""
    relative: float | None
    """Reduction of the published relative score."""
    do_nothing: float | None
    """What two identical curves would reduce the relative score by, from the number of possible edges alone."""


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
    write_text(page, render(results, config, run.name))
    return page


def headline(results: Results) -> str:
    """The first ranking of global edges that is neither the authors' nor the control: what the report speaks of."""
    names = (record.ranking for record in results.records if record.scope == "global")
    return next((name for name in names if name not in ("published", "random")), "expected")


def render(results: Results, config: dict[str, Any], title: str) -> str:
    """The page's HTML."""
    records = results.records
    of_saes = (*results.saes, *results.spliced, *results.seeds, *results.duplicates, *results.absorption)
    methods = [one.method for one in (*records, *of_saes, *results.probes, *results.reading)]
    scripts = {"plotly_js": get_plotlyjs(), "report_js": asset("report.js")}
    colours = figures.method_colours(methods)
    exact = results.under(headline(results))
    published = results.under("published")
    templates = environment()
    templates.filters.update(number=_number, reached=_reached, interval=_interval, percent=_percent)
    return templates.get_template("page.html.j2").render(
        title=title,
        csp=policy_of(*scripts.values()),
        **scripts,
        colours=colours,
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
        ratios=headline_ratios(exact),
        recovery_figures=[
            _html(figures.recovery_curves(some, colours)) for some in _by_kind(exact + results.under("random"))
        ],
        kl_figures=[_html(figures.kl_curves(some, colours)) for some in _by_kind(published)],
        saes=results.saes,
        spliced=results.spliced,
        seeds=results.seeds,
        duplicates=results.duplicates,
        absorption=results.absorption,
        probes=results.probes,
        reading=results.reading,
        density_figures=[_html(figure) for figure in measures.density(results.saes, colours)],
        seeds_figure=_html(measures.agreement(results.seeds, colours)) if results.seeds else "",
        fidelity_figure=_html(figures.fidelity_bars(results.saes, colours)) if results.saes else "",
        chunk_figures=[(name, _html(figures.chunk_heatmap(saes))) for name, saes in _staircases(results.saes)],
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
    found: list[Comparison] = []
    for record in records:
        base = baseline.get(record.block)
        if base is None or record.method == BASELINE:
            found.append(Comparison(record, None, None, None))
            continue
        found.append(
            Comparison(
                record,
                1 - record.absolute / base.absolute if base.absolute else None,
                1 - record.relative / base.relative if base.relative else None,
                1 - base.n_edges / record.n_edges,
            )
        )
    return found


def headline_ratios(records: Sequence[Record]) -> list[tuple[str, str, float, int]]:
    """Per kind of block and method: geometric mean over layers of edges@90 against TopK, and how many layers."""
    found: list[tuple[str, str, float, int]] = []
    for some in _by_kind(records):
        baseline = {record.block: record.edges_at["90"] for record in some if record.method == BASELINE}
        for method in dict.fromkeys(record.method for record in some if record.method != BASELINE):
            ratios = [
                math.log(mine / base)
                for record in some
                if record.method == method and (mine := record.edges_at["90"]) and (base := baseline.get(record.block))
            ]
            if ratios:
                found.append((_kind(some[0]), method, math.exp(sum(ratios) / len(ratios)), len(ratios)))
    return found


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


def _html(figure: go.Figure) -> str:
    """A figure as data, which report.js draws: no browser runs what is in it."""
    text = str(to_json_plotly({"data": figure.data, "layout": figure.layout}))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" class="figure">{text}</script>'


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


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{_number(interval[0])} – {_number(interval[1])}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
