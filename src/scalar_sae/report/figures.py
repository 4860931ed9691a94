"""Plotly figures from result records. One function a picture; none of them reads a file."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from scalar_sae.records.results import Record
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.report.text import in_plot

PALETTE = ("#2f6db5", "#e0702d", "#3a9a5b", "#9b59b6", "#c0392b", "#16a085")
INK = "#1d2433"
GRID = "#e6e9ef"


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour a method: TopK first, so that it looks the same in every report."""
    ordered = sorted(dict.fromkeys(methods), key=lambda name: (name != "topk", name))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(ordered)}


def recovery_curves(records: Sequence[Record], colours: dict[str, str]) -> go.Figure:
    """Recovery against edges kept, a panel a layer, with bands; log or linear x. Edges in random order are dotted."""
    figure, panels = _panels(records, "recovery")
    for record, in_legend in zip(records, _first_of_each_method(records), strict=True):
        whole = record.kl_circuit[0] or 1.0
        if record.ranking == "random":
            curve = 1 - np.array(record.kl_circuit) / whole
            _add_dotted(figure, record, panels[record.block], curve, colours[record.method])
            continue
        _add_curve(
            figure,
            record,
            panels[record.block],
            1 - np.array(record.kl_circuit) / whole,
            _band(record, "recovery"),
            colours[record.method],
            "recovery %{y:.3f}",
            in_legend,
        )
    figure.add_hline(y=0.9, line={"color": "#9aa3b2", "width": 1, "dash": "dot"})
    figure.update_yaxes(range=[-0.25, 1.05])
    return figure


def kl_curves(records: Sequence[Record], colours: dict[str, str]) -> go.Figure:
    """KL(full model || sub-circuit) against edges kept: the published curve, with bands."""
    figure, panels = _panels(records, "KL from the full model (nats)")
    for record, in_legend in zip(records, _first_of_each_method(records), strict=True):
        curve, band = np.array(record.kl_model), _band(record, "kl_model")
        colour = colours[record.method]
        _add_curve(figure, record, panels[record.block], curve, band, colour, "KL %{y:.3f} nats", in_legend)
    figure.update_yaxes(rangemode="tozero")
    return figure


def chunk_heatmap(saes: Sequence[SaeFidelity]) -> go.Figure:
    """Staircase: live latents per token in each chunk of the dictionary, a row a site (the paper's Figs 2 and 5)."""
    width = max(len(sae.l0_per_chunk) for sae in saes)
    share = [
        [value / (sae.l0 or 1.0) for value in sae.l0_per_chunk] + [None] * (width - len(sae.l0_per_chunk))
        for sae in saes
    ]
    text = [[f"{value:.2f}" for value in sae.l0_per_chunk] + [""] * (width - len(sae.l0_per_chunk)) for sae in saes]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            text=text,
            texttemplate="%{text}",
            x=[f"chunk {i + 1}" for i in range(width)],
            y=[in_plot(sae.site) for sae in saes],
            zmin=0,
            zmax=1,
            colorscale=[[0, "#fdf3ec"], [0.5, "#f0a271"], [1, "#b94a13"]],
            colorbar={"title": "share<br>of L0", "thickness": 12},
            hovertemplate="%{y}, %{x}: L0 %{text} (%{z:.0%})<extra></extra>",
            xgap=3,
            ygap=3,
        )
    )
    figure.update_yaxes(autorange="reversed")
    return style(figure, height=90 + 38 * len(saes))


def fidelity_bars(saes: Sequence[SaeFidelity], colours: dict[str, str]) -> go.Figure:
    """CE increase and FVU of every SAE, by site."""
    figure = make_subplots(1, 2, subplot_titles=["CE increase, spliced in (nats)", "fraction of variance unexplained"])
    for method, colour in colours.items():
        mine = [sae for sae in saes if sae.method == method]
        for column, field in ((1, "ce_increase"), (2, "fvu")):
            figure.add_bar(
                x=[in_plot(sae.site) for sae in mine],
                y=[getattr(sae, field) for sae in mine],
                name=in_plot(method),
                legendgroup=_legend_group(method),
                showlegend=column == 1,
                marker_color=colour,
                hovertemplate=f"{in_plot(method)}, %{{x}}: %{{y:.4f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(categoryorder="array", categoryarray=_sites_in_order(saes), tickangle=-40)
    return style(figure, height=380)


def _legend_group(method: str) -> str:
    """The legend group of a method. Plotly uses it as a key of a plain object, where `__proto__` is not a key."""
    return f"SAEs {method}"


def _sites_in_order(saes: Sequence[SaeFidelity]) -> list[str]:
    from scalar_sae.sites import Site

    return [in_plot(str(site)) for site in sorted({Site.parse(sae.site) for sae in saes})]


def _panels(records: Sequence[Record], y_title: str) -> tuple[go.Figure, dict[str, int]]:
    blocks = list(dict.fromkeys(record.block for record in records))
    figure = make_subplots(
        1,
        len(blocks),
        shared_yaxes=True,
        subplot_titles=[in_plot(block) for block in blocks],
        horizontal_spacing=min(0.02, 0.5 / len(blocks)),
    )
    figure.update_xaxes(type="log", title_text="edges kept", dtick=2, exponentformat="power")
    figure.update_yaxes(title_text=y_title, col=1)
    axes = ["xaxis" + ("" if i == 0 else str(i + 1)) for i in range(len(blocks))]

    def switch(kind: str) -> dict[str, object]:
        changes = {f"{axis}.type": kind for axis in axes} | {f"{axis}.autorange": True for axis in axes}
        changes |= {f"{axis}.dtick": 2 if kind == "log" else None for axis in axes}
        return {"label": f"{kind} x", "method": "relayout", "args": [changes]}

    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": [switch("log"), switch("linear")],
                "x": 1,
                "xanchor": "right",
                "y": 1.24,
                "bgcolor": "white",
                "bordercolor": GRID,
                "font": {"size": 12},
                "showactive": True,
            }
        ]
    )
    return style(figure, height=400), {block: i + 1 for i, block in enumerate(blocks)}


def _first_of_each_method(records: Sequence[Record]) -> list[bool]:
    methods = [record.method for record in records]
    return [method not in methods[:i] for i, method in enumerate(methods)]


def _band(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(record.ci[name]).T
    return low, high


def _add_curve(
    figure: go.Figure,
    record: Record,
    column: int,
    curve: np.ndarray,
    band: tuple[np.ndarray, np.ndarray],
    colour: str,
    value: str,
    in_legend: bool,
) -> None:
    edges = np.array(record.edges)
    some = edges > 0  # no edges at all has no place on a log axis
    low, high = band[0][some], band[1][some]
    figure.add_scatter(
        x=np.concatenate([edges[some], edges[some][::-1]]).tolist(),
        y=np.concatenate([high, low[::-1]]).tolist(),
        mode="lines",
        fill="toself",
        fillcolor=_transparent(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=_legend_group(record.method),
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=edges[some].tolist(),
        y=curve[some].tolist(),
        customdata=np.array(record.live_edges)[some].tolist(),
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 4},
        name=in_plot(record.method),
        legendgroup=_legend_group(record.method),
        showlegend=in_legend,
        hovertemplate=f"<b>{in_plot(record.method)}</b>, {in_plot(record.block)}<br>"
        f"%{{x:,}} edges (%{{customdata:.1f}} live a token)<br>{value}<extra></extra>",
        row=1,
        col=column,
    )


def _add_dotted(figure: go.Figure, record: Record, column: int, curve: np.ndarray, colour: str) -> None:
    some = np.array(record.edges) > 0
    figure.add_scatter(
        x=np.array(record.edges)[some].tolist(),
        y=curve[some].tolist(),
        mode="lines",
        line={"color": colour, "width": 1, "dash": "dot"},
        name=f"{in_plot(record.method)}, random order",
        legendgroup=_legend_group(record.method),
        showlegend=False,
        hovertemplate=f"{in_plot(record.method)}, random order: %{{y:.3f}}<extra></extra>",
        row=1,
        col=column,
    )


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def style(figure: go.Figure, height: int) -> go.Figure:
    """The look of every figure."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 64, "r": 16, "t": 76, "b": 56},
        font={"family": "Inter, system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.24, "x": 0},
        hoverlabel={"bgcolor": "white", "font": {"size": 13}},
        bargap=0.25,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure
