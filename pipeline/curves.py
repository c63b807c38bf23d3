"""The loss curves of a whole run in one figure, for a notebook. Never imports torch or ray."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pipeline.index import read_index
from pipeline.tables import as_text
from stylize.plot import figure, loss_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_LOSSES = ("loss", "content_loss", "style_loss", "tv_loss")
_NAMED = 10  # lines that a legend still tells apart: matplotlib's cycle has so many colours


def plot_curves(
    out: str, loss: str = "loss", *, label: str = "pair_id", only: Collection[str] = ()
) -> Figure:
    """Loss over evaluations, a line for each pair of the output folder `out`, safe during a run.

    `loss`: or content_loss, style_loss, tv_loss, unweighted. `label`: the column of the index or
    the setting that tells lines apart; lines of one value share a colour. `only`: these pair ids.
    A matplotlib figure, which shows itself in a notebook. Raises `ValueError`.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be {' or '.join(_LOSSES)}")
    rows = [row for row in read_index(str(out)).to_pylist() if row["loss_curve"]]
    rows = [row for row in rows if not only or row["pair_id"] in only]
    if not rows:
        raise ValueError(f"{out} has no loss curve{' of these pairs' if only else ' yet'}")
    values = [_value(row, label) for row in rows]
    colours = {value: f"C{place % _NAMED}" for place, value in enumerate(dict.fromkeys(values))}
    named: set[str] = set()
    made = figure(8, 4.5)
    axes = loss_axes(made, loss.replace("_", " "))
    for row, value in zip(rows, values, strict=True):
        curve = row["loss_curve"]
        axes.plot(
            [step["step"] for step in curve],
            [step[loss] for step in curve],
            color=colours[value] if len(colours) <= _NAMED else "0.4",
            linewidth=1.3 if len(rows) <= _NAMED else 0.6,
            label=None if value in named else value,
        )
        named.add(value)
    if len(colours) <= _NAMED:
        made.legend(loc="outside right upper", frameon=False, fontsize=9, title=label)
    return made


def _value(row: dict[str, Any], name: str) -> str:
    settings = json.loads(row["settings"] or "{}")
    if name in settings:
        return as_text(name, settings[name])
    if name not in row:
        raise ValueError(f"label is {name!r}; it must be a column of the index or a setting")
    return as_text("", row[name])
