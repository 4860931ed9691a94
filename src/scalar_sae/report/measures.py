"""Plotly figures of the measures: firing rates, agreement of seeds."""

from collections.abc import Sequence

import plotly.graph_objects as go

from scalar_sae.records.sae_results import SaeFidelity, SeedAgreement
from scalar_sae.report.figures import style
from scalar_sae.report.text import in_plot

RATES = [f"{10 ** (-6 + i / 2):.0e}" for i in range(12)]


def density(saes: Sequence[SaeFidelity], colours: dict[str, str]) -> list[go.Figure]:
    """A histogram of firing rates a method, a line a site."""
    found: list[go.Figure] = []
    for method, colour in colours.items():
        mine = [sae for sae in saes if sae.method == method]
        if not mine:
            continue
        figure = go.Figure()
        for number, sae in enumerate(mine):
            share = [count / sae.d_sae for count in sae.density]
            figure.add_scatter(
                x=["never", *RATES],
                y=[sae.dead, *share],
                name=in_plot(sae.site),
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                opacity=0.35 + 0.65 * (number + 1) / len(mine),
                hovertemplate=f"{in_plot(method)}, {in_plot(sae.site)}: "
                "%{y:.1%} of latents from %{x}<extra></extra>",
            )
        figure.update_xaxes(title_text="share of tokens, from", type="category")
        figure.update_yaxes(title_text=f"share of latents, {in_plot(method)}", tickformat=".0%")
        found.append(style(figure, height=320))
    return found


def agreement(seeds: Sequence[SeedAgreement], colours: dict[str, str]) -> go.Figure:
    """PW-MCC by how often a latent fires, a line a method and site, mean over pairs of seeds."""
    figure = go.Figure()
    for one in seeds:
        rates = sorted({bin_.low for pair in one.pairs for bin_ in pair.by_frequency})
        weighted = [
            [(bin_.n, bin_.mcc) for pair in one.pairs for bin_ in pair.by_frequency if bin_.low == low] for low in rates
        ]
        figure.add_scatter(
            x=rates,
            y=[sum(n * mcc for n, mcc in some) / sum(n for n, _ in some) for some in weighted],
            mode="lines+markers",
            name=f"{in_plot(one.method)} {in_plot(one.site)}",
            line={"color": colours[one.method], "width": 2},
            hovertemplate=f"{in_plot(one.method)}, {in_plot(one.site)}: %{{y:.3f}} at rates from %{{x}}<extra></extra>",
        )
    figure.update_xaxes(title_text="share of tokens a latent fires on, from", type="log", exponentformat="power")
    figure.update_yaxes(title_text="mean matched cosine", range=[0, 1.02])
    return style(figure, height=340)
