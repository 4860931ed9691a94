"""What a report claims: ratios to a baseline with their intervals, and one sentence that those intervals support.

The ratios are those of `scoring/compare.py`. One that it cannot give is not left out: the page says why.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from scalar_sae.errors import UserError
from scalar_sae.records.results import Record
from scalar_sae.report.text import name_in_chart
from scalar_sae.scoring.compare import HEADLINE, Ratio, ratios
from scalar_sae.scoring.intervals import FEW_PROMPTS
from scalar_sae.scoring.resampled import Ends

BASELINE = "topk"
MOST_NAMED = 3
"""Comparisons that a sentence names before it counts the others."""

Verdict = Literal["fewer", "more", "undecided", "never reached", "not enough prompts"]


class Claim(NamedTuple):
    """A method beside the baseline, at one block or over the blocks of a kind."""

    block: str
    method: str
    edges: Ratio
    """Of faithful@80."""
    area: Ratio
    """Of the areas above the curves of faithfulness."""
    recovered: Ratio
    """Of edges@90."""

    @property
    def verdict(self) -> Verdict:
        """What the interval says of the number of edges."""
        if self.edges.never:
            return "never reached"
        if self.edges.few_prompts:
            return "not enough prompts"
        low, high = self.edges.interval or (None, None)
        return "fewer" if high is not None and high < 1 else "more" if low is not None and low > 1 else "undecided"

    @property
    def where(self) -> str:
        """The block, or the kind of block, in words."""
        kind = self.block.removeprefix("all ")
        return self.block if kind == self.block else f"{kind}s".replace("_", " ").replace("ff ", "FF ")


class Claims(NamedTuple):
    """Every comparison under one ranking."""

    rows: list[Claim]
    """Method by method: each block of a kind, then all of them."""
    remark: str
    """Why there are none, if there are none."""
    left_out: Sequence[str] = ()
    """Blocks and SAEs that are in no ratio, and why."""

    @property
    def overall(self) -> list[Claim]:
        """One for each method and kind of block."""
        kinds = {(row.method, row.block.removeprefix("all ")) for row in self.rows if row.block.startswith("all ")}
        return [row for row in self.rows if (row.method, row.block.partition(".")[0]) not in kinds]


def claims(records: Sequence[Record]) -> Claims:
    """Compare the records of one ranking with those of the baseline."""
    methods = {record.method for record in records}
    if BASELINE not in methods or len(methods) < 2:
        return Claims([], f"There are no two sets of SAEs to compare: {BASELINE} and another.")
    try:
        found = [ratios(list(records), BASELINE, score) for score in (HEADLINE, "unfaithful_area", "edges_at.90")]
    except UserError as error:
        return Claims([], f"The records do not compare: {error}")
    rows = [Claim(one[0].block, one[0].method, *one) for one in zip(*(each.rows for each in found), strict=True)]
    return Claims(rows, "", found[0].left_out)


def sentence(records: Sequence[Record], found: Claims) -> str:
    """One sentence of the records under the headline's ranking, with its intervals."""
    if not records:
        return "No pair of SAEs has been scored here."
    if not found.rows:
        return _of_one(records[0])
    by_verdict = {name: [row for row in found.overall if row.verdict == name] for name in get_args(Verdict)}
    decided = [
        f"{_named(some)} {'needs' if len(some) == 1 else 'need'} {verdict} edges than {BASELINE}"
        for verdict, some in by_verdict.items()
        if some and verdict in ("fewer", "more")
    ]
    open_, never, few = (by_verdict[name] for name in ("undecided", "never reached", "not enough prompts"))
    if open_ and not decided:
        needs = "needs" if len(open_) == 1 else "need"
        decided.append(f"it is undecided whether {_named(open_)} {needs} more or fewer edges than {BASELINE}")
    elif open_:
        decided.append(f"for {_named(open_)} this is undecided")
    if few:
        decided.append(f"for {_named(few)} there are not enough prompts to decide")
    if never:
        decided.append(f"for {_named(never)} there is no ratio, because not every curve reaches 80 %")
    return f"For 80 % faithfulness to the model's own output, {'; '.join(decided)}."


def _of_one(record: Record) -> str:
    """What a record says by itself."""
    edges, interval = record.faithful_at["80"], record.ci["faithful_at.80"]
    what = f"{name_in_chart(record.method)} at {name_in_chart(record.block)}"
    if edges is None:
        return f"The SAEs {what} never reach 80 % faithfulness to the model's own output."
    if len(record.prompts.floor_kl) < FEW_PROMPTS:
        within = " (from too few prompts for an interval)"
    elif isinstance(interval, tuple):
        within = f" (95 % interval {interval[0]:,.0f} to {interval[1]:,.0f})"
    else:
        within = ", with no upper end to their interval,"
    return (
        f"The SAEs {what} need {edges:,.0f} of {record.n_edges:,} possible edges{within} for 80 % faithfulness to the "
        "model's own output."
    )


def _named(some: Sequence[Claim]) -> str:
    """Comparisons with their ratios; of many the first, and how many more there are."""
    names = [
        f"{name_in_chart(row.method)} at {name_in_chart(row.where)}" + _ratio(row.edges) for row in some[:MOST_NAMED]
    ]
    if len(some) > MOST_NAMED:
        names.append(f"{len(some) - MOST_NAMED} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ratio(ratio: Ratio) -> str:
    """A ratio with its interval, if it has them."""
    if ratio.never:
        return ""
    within = f", 95 % interval {_ends(ratio.interval)}" if ratio.interval else ""
    return f" ({_times(ratio.value)} times as many{within})"


def _times(value: float) -> str:
    return f"{value:.3g}"


def _ends(interval: Ends) -> str:
    low, high = ("an unknown end" if end is None else _times(end) for end in interval)
    return f"{low} to {high}"
