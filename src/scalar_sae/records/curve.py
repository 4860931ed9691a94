"""The curve of a record as a table and as a plot, and the recovery that both show."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scalar_sae.errors import UserError
from scalar_sae.table import Table

_AXES = {
    "recovery": "recovery of the full circuit",
    "kl_model": "KL(model || sub-circuit), nats",
    "kl_circuit": "KL(full circuit || sub-circuit), nats",
    "faithfulness": "faithfulness to the model",
    "live_edges": "kept edges per token whose latents are live",
    "l0_down": "live downstream latents per token",
}
"""Labels of the vertical axis, by column."""


def recovery(
    counts: Int[np.ndarray, " n_counts"], kl_circuit: Float[np.ndarray, "*resample n_counts"]
) -> Float[np.ndarray, "*resample n_counts"]:
    """1 - KL(full circuit || n) / KL(full circuit || 0): 0 with no edges, 1 with all."""
    assert counts[0] == 0
    nothing = kl_circuit[..., :1]
    # a circuit without any effect counts as fully recovered
    return 1 - kl_circuit / np.where(nothing > 0, nothing, 1.0)


def draw(curve: Table, of: str, label: str, ax: Any = None, per_token: bool = False) -> Any:
    """Draw a column of a curve over the number of edges, with its 95 % interval if the table has one.

    Args:
        curve: rows with the column `edges`. A row with 0 edges is not drawn, since the axis is logarithmic.
        of: the column.
        label: name of the curve in the legend.
        ax: Matplotlib axes to draw on; None creates new ones.
        per_token: whether edges are counted per token.

    Returns:
        The axes.

    Raises:
        UserError: Matplotlib is not installed, or the curve has no such column.
    """
    if of not in _AXES:
        raise UserError(f"curve {of!r}: expected one of {', '.join(_AXES)}")
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError("plot needs Matplotlib; install it with pip install 'scalar-sae[notebook]'") from error
    axes: Any = plt.subplots(layout="constrained")[1] if ax is None else ax
    shown = [row for row in curve if row["edges"] > 0]
    edges = [row["edges"] for row in shown]
    (line,) = axes.plot(edges, [row[of] for row in shown], label=label)
    if shown and shown[0].get(f"{of}_low") is not None:
        ends = [[row[f"{of}_{end}"] for row in shown] for end in ("low", "high")]
        axes.fill_between(edges, *ends, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="edges kept per token" if per_token else "edges kept", ylabel=_AXES[of])
    axes.legend(frameon=False)
    return axes
