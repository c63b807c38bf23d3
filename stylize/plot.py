"""Loss curves as figures. Imports matplotlib only when a figure is made."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stylize.transfer import StyleResult

__all__ = ["curves", "figure", "loss_axes", "plot_result"]


@functools.cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that shows itself in a notebook, with or without pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return Shown


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; not pyplot's, so that nothing has to be closed."""
    made: Figure = _figure_class()(figsize=(width, height), layout="constrained")
    return made


def loss_axes(made: Figure, ylabel: str = "loss") -> Axes:
    """Axes for losses over evaluations: a logarithmic scale, and a quiet look."""
    axes = made.add_subplot()
    axes.set_yscale("log")
    axes.set_xlabel("evaluations")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_result(result: StyleResult) -> Figure:
    """Loss and its weighted parts over the evaluations of one transfer."""
    content_weight, style_weight = result.config.weights()
    parts = {
        "loss": [s.loss for s in result.curve],
        "content": [content_weight * s.content_loss for s in result.curve],
        "style": [style_weight * s.style_loss for s in result.curve],
        "total variation": [result.config.tv_weight * s.tv_loss for s in result.curve],
    }
    return curves([s.step for s in result.curve], parts)


def curves(steps: Sequence[int], parts: Mapping[str, Sequence[float]]) -> Figure:
    """One line a part; those that are 0 throughout are left out, the first is drawn strongest."""
    made = figure(7, 4)
    axes = loss_axes(made)
    for place, (name, values) in enumerate(parts.items()):
        if any(values):
            colour, width = ("0.25", 2.2) if place == 0 else (f"C{place - 1}", 1.4)
            axes.plot(steps, values, color=colour, linewidth=width, label=name)
    if axes.lines:
        axes.legend(frameon=False)
    return made
