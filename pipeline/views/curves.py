"""The loss curves of a whole run in one figure, for a notebook. Never imports torch or ray."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline.store.folder import OutFolder
from pipeline.store.index import read_curves, read_results
from pipeline.views.grid import values_of
from stylize.plot import figure, loss_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_LOSSES = ("loss", "content_loss", "style_loss", "tv_loss")
_NAMED = 10  # lines that a legend still tells apart: matplotlib's cycle has so many colours


def plot_curves(
    out: str | os.PathLike[str],
    loss: str = "loss",
    *,
    label: str = "pair_id",
    only: Collection[str] = (),
) -> Figure:
    """Loss over evaluations, a line for each pair of the output folder `out`, safe during a run.

    `loss`: or content_loss, style_loss, tv_loss, unweighted. `label`: the column of the index,
    the setting or the ``meta.NAME`` that tells lines apart; lines of one value share a colour.
    `only`: these pair ids.
    A matplotlib figure, which shows itself in a notebook. Raises `ValueError`.
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
    colours = {value: f"C{place % _NAMED}" for place, value in enumerate(dict.fromkeys(values))}
    named: set[str] = set()
    made = figure(8, 4.5)
    axes = loss_axes(made, loss.replace("_", " "))
    column = 2 + _LOSSES.index(loss)  # behind step and seconds
    for result, value in zip(results, values, strict=True):
        curve = curves[result.pair_id]
        axes.plot(
            [step[0] for step in curve],
            [step[column] for step in curve],
            color=colours[value] if len(colours) <= _NAMED else "0.4",
            linewidth=1.3 if len(results) <= _NAMED else 0.6,
            label=None if value in named else value or "none",
        )
        named.add(value)
    if len(colours) <= _NAMED:
        made.legend(loc="outside right upper", frameon=False, fontsize=9, title=label)
    return made
