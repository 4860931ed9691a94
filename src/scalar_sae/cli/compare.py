"""The verb `compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalar_sae.cli.tables import PlainTable, name_texts, print_cautions, show, text_of
from scalar_sae.cli.verbs import Outcome, verb
from scalar_sae.console import tell
from scalar_sae.errors import UserError

if TYPE_CHECKING:
    from scalar_sae.scoring.compare import Ratio

app = typer.Typer()


@verb(app)
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Results files, or runs. SAEs of one name in several files count as seeds.")
    ],
    base: Annotated[str, typer.Option(help="Name of the SAEs that the others are compared with.")] = "topk",
    score: Annotated[
        str,
        typer.Option(help="The score to compare: `faithful_at.80`, `unfaithful_area`, `edges_at.90`, `absolute`, ..."),
    ] = "faithful_at.80",
    ranking: Annotated[str, typer.Option(help="The ranking whose records are compared.")] = "leave_one_out_with_prior",
    matched: Annotated[
        bool, typer.Option("--matched", help="Compare families such as topk-k5, topk-k10 at the baseline's fidelity.")
    ] = False,
) -> Outcome:
    """Compare the scores of SAEs: ratios at every block and their geometric mean, with 95 % intervals.

    Intervals are paired over prompts. SAEs of one name in several files count as seeds of one method: their log scores
    are averaged, and intervals are over seeds too.

    Example: **scalar compare runs/quickstart --base topk --score faithful_at.80**
    """
    from scalar_sae.cautions import POOR, cautions_of
    from scalar_sae.records.results import Results
    from scalar_sae.scoring.compare import RECOVERY, ratios
    from scalar_sae.scoring.matched import at_matched_fidelity

    paths = [path / "results.json" if path.is_dir() else path for path in files]
    everything = [Results.read(path) for path in paths]
    records = [record for results in everything for record in results.under(ranking)]
    if not records:
        there = sorted({record.ranking for results in everything for record in results.records})
        names = ", ".join(there) or "no others"
        raise UserError(f"{', '.join(map(str, paths))}: no records of the ranking {ranking!r}; there are {names}")
    table = PlainTable(title=f"{score} of each over that of {base}; below 1 is less than {base}")
    for column in ("block", "SAEs", "ratio", "95 %", "do nothing", "paired"):
        table.add_column(column, no_wrap=True)
    found = (at_matched_fidelity if matched else ratios)(records, base, score)
    for ratio in found.rows:
        block = ratio.block + (f" ({ratio.n_blocks} blocks)" if ratio.n_blocks > 1 else "")
        nothing = "" if ratio.do_nothing is None else f"{ratio.do_nothing:.3g}"
        paired = "yes" if ratio.paired else "no"
        poor = f" {POOR}" if ratio.poor_full_circuit and score in RECOVERY else ""
        table.add_row(block, ratio.method, _said(ratio) + poor, _interval(ratio), nothing, paired)

    def tell_all() -> None:
        show(table)
        tell(*(f"Not compared: {said}" for said in found.left_out))
        name_texts(map(text_of, records))
        print_cautions(records)

    data = {"score": score, "base": base, "ratios": found.rows, "left_out": found.left_out}
    return Outcome({**data, "cautions": cautions_of(records)}, tell_all)


def _said(ratio: "Ratio") -> str:
    """The value, or who never reaches the score."""
    if not ratio.never:
        return f"{ratio.value:.3g}"
    return "baseline never" if ratio.value == 0 else "never reached"


def _interval(ratio: "Ratio") -> str:
    """The interval, or why there is none."""
    if ratio.few_prompts:
        return "not enough prompts"
    if ratio.interval is None:
        return "" if ratio.never else "not known"
    low, high = ("not known" if end is None else f"{end:.3g}" for end in ratio.interval)
    return f"{low} to {high}"
