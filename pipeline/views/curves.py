"""A figure of the loss curves of a whole run, for a notebook. Never imports torch or ray."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline.store.folder import OutFolder
from pipeline.store.reading import read_curves, read_results
from pipeline.views.grid import values_of
from stylize.plot import figure, loss_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_LOSSES = ("loss", "content_loss", "style_loss", "tv_loss")
_MOST_COLOURS = 10  # of matplotlib's cycle; with more values there is no legend


def plot_curves(
    out: str | os.PathLike[str],
    loss: str = "loss",
    *,
    label: str = "pair_id",
    only: Collection[str] = (),
) -> Figure:
    """Return a figure of the loss over evaluations, with a line for each pair of the folder `out`.

    `loss` is the column to plot: loss, or content_loss, style_loss or tv_loss, which are
    unweighted. `label` is a column of the index, a setting or a ``meta.NAME``; lines with the same
    value share a colour. `only` limits the figure to these pair ids. It is a matplotlib figure,
    which a notebook displays. Reading is safe during a run.
    Raises `ValueError` for an unknown `loss` or `label`, or if no pair has a curve.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be {' or '.join(_LOSSES)}")
    folder = OutFolder(out)
    results = [r for r in read_results(folder).values() if not only or r.pair_id in only]
    curves = read_curves(folder, [result.pair_id for result in results])
    results = [result for result in results if curves.get(result.pair_id)]
    if not results:
        raise ValueError(f"{out} has no loss curve{' of these pairs' if only else ' yet'}")
    values = values_of(results, label, "label")
    distinct = dict.fromkeys(values)
    colours = {value: f"C{number % _MOST_COLOURS}" for number, value in enumerate(distinct)}
    in_legend: set[str] = set()
    chart = figure(8, 4.5)
    axes = loss_axes(chart, loss.replace("_", " "))
    column = 2 + _LOSSES.index(loss)  # after step and seconds
    for result, value in zip(results, values, strict=True):
        curve = curves[result.pair_id]
        axes.plot(
            [step[0] for step in curve],
            [step[column] for step in curve],
            color=colours[value] if len(colours) <= _MOST_COLOURS else "0.4",
            linewidth=1.3 if len(results) <= _MOST_COLOURS else 0.6,
            label=None if value in in_legend else value or "none",
        )
        in_legend.add(value)
    if len(colours) <= _MOST_COLOURS:
        chart.legend(loc="outside right upper", frameon=False, fontsize=9, title=label)
    return chart
