"""Loss curves as matplotlib figures. Imports matplotlib only when a figure is made."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stylize.request import StyleResult

__all__ = ["figure", "loss_axes", "plot_result", "prepare_matplotlib"]


@functools.cache
def prepare_matplotlib() -> None:
    """Give matplotlib a temporary folder where it cannot write its usual ones.

    It needs one, and tells of it in several lines. Raises `OSError` if no folder can be written.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return
    settings = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    with contextlib.suppress(OSError):
        os.makedirs(os.path.join(settings, "matplotlib"), exist_ok=True)
    if not os.access(os.path.join(settings, "matplotlib"), os.W_OK):
        folder = tempfile.mkdtemp(prefix="matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = folder


@functools.cache
def _figure_class() -> type[Figure]:
    prepare_matplotlib()
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows, with or without pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return NotebookFigure


def figure(width: float, height: float) -> Figure:
    """Create an empty figure of a size in inches; not with pyplot, so it need not be closed."""
    return _figure_class()(figsize=(width, height), layout="constrained")


def loss_axes(figure: Figure, ylabel: str = "loss") -> Axes:
    """Add axes for losses over evaluations, with a logarithmic scale, to a figure."""
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_xlabel("evaluations")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_result(result: StyleResult) -> Figure:
    """Plot the loss and its weighted parts over the evaluations of one transfer."""
    content_weight, style_weight = result.config.weights()
    parts = {
        "loss": [s.loss for s in result.curve],
        "content": [content_weight * s.content_loss for s in result.curve],
        "style": [style_weight * s.style_loss for s in result.curve],
        "total variation": [result.config.tv_weight * s.tv_loss for s in result.curve],
    }
    return _curves([s.step for s in result.curve], parts)


def _curves(steps: Sequence[int], parts: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a line for each part that is not 0 throughout, the first one strongest."""
    plot = figure(7, 4)
    axes = loss_axes(plot)
    for place, (name, values) in enumerate(parts.items()):
        if any(values):
            colour, width = ("0.25", 2.2) if place == 0 else (f"C{place - 1}", 1.4)
            axes.plot(steps, values, color=colour, linewidth=width, label=name)
    if axes.lines:
        axes.legend(frameon=False)
    return plot
