"""Charts of records and of SAEs. One function a picture; none of them reads a file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalar_sae.records.results import Record
from scalar_sae.records.sae_results import Interval, SaeFidelity, SeedAgreement
from scalar_sae.report.chart import Axis, Chart, Line, Number, Point, linear_axis, log_axis, named_axis
from scalar_sae.report.text import name_in_chart
from scalar_sae.sites import Site

N_COLOURS = 8
RATES = ["never", *(f"{10 ** (-6 + i / 2):.0e}".replace("e-0", "e-").replace("e+00", "") for i in range(12))]
"""Low ends of the half decades in `SaeFidelity.density`."""


def method_colours(methods: Sequence[str]) -> dict[str, int]:
    """The number of a colour for each method: TopK comes first, so that it looks the same in every report."""
    ordered = sorted(dict.fromkeys(methods), key=lambda name: (name != "topk", name))
    return {name: number % N_COLOURS for number, name in enumerate(ordered)}


def faithfulness_curves(records: Sequence[Record], colours: dict[str, int]) -> list[Chart]:
    """Faithfulness against edges kept, a chart a block; edges in random order are dotted."""
    curves = [(record, 1 - np.array(record.kl_model) / (record.kl_mean or 1.0)) for record in records]
    return _by_block(curves, "faithfulness", _share("faithfulness", curves), colours, rule=0.8)


def recovery_curves(records: Sequence[Record], colours: dict[str, int]) -> list[Chart]:
    """Recovery against edges kept, a chart a block; edges in random order are dotted."""
    curves = [(record, 1 - np.array(record.kl_circuit) / (record.kl_circuit[0] or 1.0)) for record in records]
    return _by_block(curves, "recovery", _share("recovery", curves), colours, rule=0.9)


def _share(title: str, curves: Sequence[tuple[Record, np.ndarray]]) -> Axis:
    """An axis from zero, or from where the lowest curve is, down to -1, to 1."""
    least = min((float(curve.min()) for record, curve in curves if record.ranking != "random"), default=0.0)
    return linear_axis(title, max(-1.0, min(-0.1, least - 0.05)), 1.05)


def kl_curves(records: Sequence[Record], colours: dict[str, int]) -> list[Chart]:
    """KL(full model || sub-circuit) against edges kept: the published curve."""
    curves = [(record, np.array(record.kl_model)) for record in records]
    most = max((float(curve.max()) for _, curve in curves), default=1.0)
    return _by_block(curves, "kl_model", linear_axis("KL from the full model (nats)", 0.0, 1.05 * most or 1.0), colours)


def fidelity(saes: Sequence[SaeFidelity], colours: dict[str, int]) -> list[Chart]:
    """CE increase and FVU of every SAE, by site."""
    sites = [str(site) for site in sorted({Site.parse(sae.site) for sae in saes})]
    x = named_axis("site", [name_in_chart(site).replace("resid_", "") for site in sites])
    charts: list[Chart] = []
    for title, field in (
        ("CE increase, spliced in (nats)", "ce_increase"),
        ("fraction of variance unexplained", "fvu"),
    ):
        values = [float(getattr(sae, field)) for sae in saes]
        y = linear_axis(title, min(0.0, *values), 1.05 * max(values) or 1.0)
        lines = [
            Line(
                colours[method],
                [
                    Point(
                        sites.index(str(Site.parse(sae.site))),
                        getattr(sae, field),
                        f"{name_in_chart(method)}, {name_in_chart(sae.site)}: {getattr(sae, field):.4f}",
                    )
                    for sae in sorted(mine, key=lambda one: Site.parse(one.site))
                ],
            )
            for method, mine in _by_method(saes).items()
        ]
        charts.append(Chart(title, x, y, lines))
    return charts


def density(saes: Sequence[SaeFidelity], colours: dict[str, int]) -> list[Chart]:
    """A histogram of firing rates, a chart a method and a line a site."""
    charts: list[Chart] = []
    for method, mine in _by_method(saes).items():
        rows = [[sae.dead, *(count / sae.d_sae for count in sae.density)] for sae in mine]
        y = linear_axis("share of latents", 0.0, 1.05 * max(map(max, rows)) or 1.0, percent=True)
        lines = [
            Line(
                colours[method],
                [
                    Point(i, share, f"{name_in_chart(sae.site)}: {100 * share:.1f} % of latents from {RATES[i]}")
                    for i, share in enumerate(row)
                ],
            )
            for sae, row in zip(mine, rows, strict=True)
        ]
        charts.append(Chart(name_in_chart(method), named_axis("fires on a share of tokens, from", RATES), y, lines))
    return charts


def agreement(seeds: Sequence[SeedAgreement], colours: dict[str, int]) -> list[Chart]:
    """PW-MCC by how often a latent fires, mean over pairs of seeds: a chart a site and a line a method."""
    found: dict[str, list[Line]] = {}
    lows: list[float] = []
    for one in seeds:
        bins = [some for pair in one.pairs for some in pair.by_frequency]
        points: list[Point] = []
        for low in sorted({some.low for some in bins}):
            mine = [some for some in bins if some.low == low]
            mean = sum(some.n * some.mcc for some in mine) / sum(some.n for some in mine)
            points.append(Point(low, mean, f"{name_in_chart(one.method)}: {mean:.3f} at rates from {low:.2g}"))
        lows += [point.x for point in points]
        found.setdefault(one.site, []).append(Line(colours[one.method], points))
    lows = [low for low in lows if low > 0] or [1e-3]
    x = log_axis("fires on a share of tokens, from", min(lows), max(1.0, *lows))
    y = linear_axis("mean matched cosine", 0.0, 1.02)
    return [Chart(name_in_chart(site), x, y, [line for line in some if line.points]) for site, some in found.items()]


def _by_method(saes: Sequence[SaeFidelity]) -> dict[str, list[SaeFidelity]]:
    return {name: [sae for sae in saes if sae.method == name] for name in dict.fromkeys(sae.method for sae in saes)}


def _by_block(
    curves: Sequence[tuple[Record, np.ndarray]],
    band: str,
    y: Axis,
    colours: dict[str, int],
    rule: Number | None = None,
) -> list[Chart]:
    """Every block twice: edges on a logarithmic axis, and on a linear one."""
    charts: list[Chart] = []
    most = max((record.edges[-1] for record, _ in curves), default=1)
    for kind in ("log", "linear"):
        x = log_axis("edges kept", 1, max(most, 2)) if kind == "log" else linear_axis("edges kept", 0, most)
        for block in dict.fromkeys(record.block for record, _ in curves):
            lines = [_line(*one, band, colours, points=kind == "log") for one in curves if one[0].block == block]
            charts.append(Chart(name_in_chart(block), x, y, lines, rule, kind))
    return charts


def _line(record: Record, curve: np.ndarray, band: str, colours: dict[str, int], *, points: bool) -> Line:
    """The curve of a record. No edges at all have no place on a logarithmic axis."""
    dotted = record.ranking == "random"
    intervals: Any = record.ci[band] or [None] * len(curve)
    found: list[tuple[int, float, Interval | None, float]] = [
        (n, float(y), interval, live)
        for n, y, interval, live in zip(record.edges, curve, intervals, record.live_edges, strict=True)
        if n > 0
    ]
    name = name_in_chart(record.method)
    return Line(
        colours[record.method],
        [
            Point(n, y, f"{name}, {n:,} edges ({live:.1f} live a token): {y:.3f}{_between(interval)}")
            for n, y, interval, live in found
        ],
        () if dotted else [(n, *interval) for n, _, interval, _ in found if interval],
        dotted,
        dots=points and not dotted,
    )


def _between(interval: Interval | None) -> str:
    return "" if interval is None else " [{:.3f}, {:.3f}]".format(*interval)
