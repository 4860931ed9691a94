"""Tables of results on the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scalar_sae.console import tell
from scalar_sae.errors import one_line

if TYPE_CHECKING:
    from scalar_sae.records.results import Record, Results
    from scalar_sae.records.sae_results import Interval, SaeReading, TextRead


PUBLISHED = ("absolute", "pure", "relative", "do nothing")


class PlainTable(Table):
    """A table that shows names as they are: nothing in a cell is taken for markup or moves the cursor."""

    def __init__(self, title: str) -> None:
        super().__init__(title=one_line(title))

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts."""
        super().add_row(*map(one_line, cells), **options)


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, and into a file or a pipe as wide as it is."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000
        console.width = console.measure(table).maximum
    console.print(table)


def print_records(records: "list[Record]") -> None:
    """Headline scores, a row a record, recovery beside them, and what speaks against them; the published scores too if
    one was scored as the authors do.
    """
    from scalar_sae.cautions import DEEP, POOR, dips

    published = any(record.config.get("conventions") == "published" for record in records)
    table = PlainTable(title="SCALAR: lower is better, 95 % intervals over prompts and between edge counts")
    for column in ("block", "SAEs", "ranking"):
        table.add_column(column, no_wrap=True)
    for column in ("faithful@80", "live", "area", "floor", "edges@90", *(PUBLISHED if published else ())):
        table.add_column(column, justify="right")
    if published:
        table.caption = "do nothing: the ratio of two relative scores, to the block's first SAEs, if curves were equal"
    n_edges: dict[str, int] = {}  # of a block's first SAEs
    for record in records:
        live, stays = record.faithful_live_at["80"], record.faithful_from["80"]
        dip = record.dip["90"] or 0.0
        do_nothing = n_edges.setdefault(record.block, record.n_edges) / record.n_edges
        areas = (record.absolute, record.pure, record.relative, do_nothing) if published else ()
        table.add_row(
            record.block,
            record.method,
            (record.ranking if len(record.ranking) < 20 else Path(record.ranking).name)
            + (f", {record.control}" if record.control else ""),
            _edges(record.faithful_at["80"], record.ci["faithful_at.80"])
            + ("" if not dips(record) else ", does not stay" if stays is None else f", stays from {stays:,.0f}"),
            "never" if live is None else f"{live:.1f}",
            f"{record.unfaithful_area:.3f}",
            f"{record.floor.kl:.3f}",
            _edges(record.edges_at["90"], record.ci["edges_at.90"])
            + (f", dip {dip:.2f}" if dip > DEEP else "")
            + (f" {POOR}" if record.poor_full_circuit else ""),
            *(f"{value:.4g}" for value in areas),
        )
    show(table)
    name_texts(map(text_of, records))
    print_cautions(records)


def _edges(n: float | None, interval: "Interval | list[Interval] | None") -> str:
    """A number of edges with its interval."""
    between = f" [{interval[0]:,.0f}, {interval[1]:,.0f}]" if isinstance(interval, tuple) else ""
    return "never" if n is None else f"{n:,.0f}{between}"


def print_cautions(records: "Sequence[Record]") -> None:
    """Say what speaks against the scores of a table, each sentence once."""
    from scalar_sae.cautions import cautions_of

    tell(*(f"Caution: {said}" for said in cautions_of(records)))


def name_texts(texts: "Iterable[TextRead | None]") -> None:
    """Say which texts a table is about, once each."""
    for said in dict.fromkeys(str(text) for text in texts if text is not None):
        tell(f"Text: {said}")


def text_of(record: "Record") -> "TextRead | None":
    """The text that a record was scored on, if it says."""
    from scalar_sae.records.sae_results import TextRead

    names = ("corpus", "source", "fingerprint")
    if not {*names, "prompts"} <= set(record.data):
        return None
    return TextRead(
        **{name: record.data[name] for name in names},
        prompts=record.data["prompts"]["scoring"],
        n_tokens=len(record.prompts.floor_kl) * record.config["context"],
        seen=record.data.get("seen"),
    )


def print_measures(results: "Results") -> None:
    """Fidelity of every SAE and of all spliced in, then the agreement of seeds."""
    table = PlainTable(title=f"SAEs, on {results.saes[0].n_tokens:,} tokens; KL and CE in nats")
    for column in ("SAEs", "site"):
        table.add_column(column, no_wrap=True)
    for column in ("L0", "FVU", "cosine", "CE increase", "KL", "KL recovered (mean)", "dead"):
        table.add_column(column, justify="right")
    for sae in results.saes:
        scores = (sae.l0, sae.fvu, sae.cosine, sae.ce_increase, sae.kl, sae.kl_recovered["mean"], sae.dead)
        table.add_row(sae.method, sae.site, *("" if score is None else f"{score:.3f}" for score in scores))
    for group in results.spliced:
        scores = (group.ce_increase, group.kl, group.kl_recovered["mean"])
        cells = ["" if score is None else f"{score:.3f}" for score in scores]
        table.add_row(group.method, f"all {len(group.sites)}", "", "", "", *cells, "")
    show(table)
    name_texts(sae.text for sae in results.saes)
    if results.seeds:
        print_seeds(results)
    if results.probes:
        print_labels(results)


def print_seeds(results: "Results") -> None:
    """Agreement of seeds, a row a method and site."""
    table = PlainTable(title="Agreement of seeds: latents that fire, signed cosines")
    for column in ("SAEs", "site", "PW-MCC", "null", "rescaled", "shared", "null"):
        table.add_column(column, no_wrap=True)
    for seeds in results.seeds:
        scores = (seeds.pw_mcc, seeds.null, seeds.rescaled, seeds.shared, seeds.shared_null)
        table.add_row(seeds.method, seeds.site, *(f"{score:.3f}" for score in scores))
    show(table)


def print_labels(results: "Results") -> None:
    """Absorption under both settings of the thresholds, and means over labels of the probes' accuracies."""
    table = PlainTable(title=f"On {results.probes[0].task} of {results.probes[0].n_rows:,} tokens")
    for column in ("SAEs", "site"):
        table.add_column(column, no_wrap=True)
    settings = [record.thresholds for record in results.absorption[:2]]
    n = max(results.probes[0].tpp or {0: 0.0})
    for column in (*(f"absorbed, {name}" for name in settings), "probe", "1 latent", "5 latents", f"TPP, {n}"):
        table.add_column(column, justify="right")
    for sae in results.probes:
        mine = [one for one in results.absorption if (one.method, one.site) == (sae.method, sae.site)]
        accuracies = [[probe.dense for probe in sae.labels]]
        accuracies += [[probe.sparse[k] for probe in sae.labels if k in probe.sparse] for k in (1, 5)]
        scores = [one.fraction for one in mine] + [sum(some) / len(some) if some else None for some in accuracies]
        scores.append(sae.tpp[n] if sae.tpp else None)
        table.add_row(sae.method, sae.site, *("" if score is None else f"{score:.3f}" for score in scores))
    show(table)


def print_reading(records: "Sequence[SaeReading]") -> None:
    """How well latents can be read, a row an SAE and score."""
    table = PlainTable(title="How well latents can be read: means over latents, 95 % intervals over them")
    for column in ("SAEs", "site", "score"):
        table.add_column(column, no_wrap=True)
    for column in ("mean", "interval", "latents"):
        table.add_column(column, justify="right")
    for sae in records:
        scores = [(f"rule of {n} token{'s' if n > 1 else ''}, F1", score) for n, score in sae.rule_f1.items()]
        for one in sae.judged:
            scores += [(f"{name}, {one.judge['model']}", getattr(one, name)) for name in ("detection", "fuzzing")]
        for name, score in scores:
            mean = "" if score.mean is None else f"{score.mean:.3f}"
            ends = "" if score.ci is None else f"{score.ci[0]:.3f} – {score.ci[1]:.3f}"
            table.add_row(sae.method, sae.site, name, mean, ends, f"{score.n:,} ({score.n_null:,} without)")
    show(table)
    name_texts(sae.text for sae in records)
