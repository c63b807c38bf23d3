"""One transfer explained in pictures: a folder with a page, figures and a film.

`stylize.explain` computes what is drawn here. Imports torch and matplotlib inside functions.
"""

from __future__ import annotations

import glob
import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline import storage
from pipeline.cost import share_done
from pipeline.display.progress import shown
from pipeline.single import SinglePair, check_targets
from pipeline.text import duration
from pipeline.views.templates import fill
from stylize import __version__
from stylize.config import SETTINGS, StyleConfig, as_text, parse_setting
from stylize.errors import ConfigError
from stylize.image import encode, fit, match_size
from stylize.plot import prepare_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stylize.explain import Explanation, Grams, Look, Maps
    from stylize.transfer import Stylizer

__all__ = [
    "coarse_note",
    "explain",
    "film",
    "gram_figure",
    "loss_figure",
    "map_figure",
    "parse_layers",
]

_FILM_SIDE = 384  # pixels
_FRAME, _LAST = 90, 2500  # milliseconds for which a frame of the film, and its last one, is shown
_DECADES = 4  # range of a Gram matrix's values that colours distinguish, powers of ten
_DPI = 110


def parse_layers(text: str) -> tuple[str, ...]:
    """Return the layers that `--layers` names, in their order. Raises `ConfigError`."""
    if not text:
        return ()
    try:
        return tuple(name for name, _ in parse_setting("content_layers", text))
    except ConfigError as error:
        limit = "names like relu1_1,relu4_2, each once"
        raise ConfigError(f"--layers is {text!r}; it must be {limit}") from error


def explain(pair: SinglePair, out: str, stylizer: Stylizer, layers: Sequence[str]) -> str:
    """Paint the pair, write the folder `out`, and return the line to print at the end.

    Raises `StylizeError`, and `StorageError`: before anything is painted where the
    folder cannot be written.
    """
    from stylize.explain import explain_transfer

    try:
        prepare_matplotlib()
    except OSError as error:
        raise storage.StorageError(
            "no folder for temporary files can be written; set TMPDIR to one that can"
        ) from error
    folder = glob.escape(storage.local_path(out) or out)
    maps_of_before = glob.glob(os.path.join(folder, "features-*.png"))  # of layers not known yet
    check_targets(pair, [*maps_of_before, *(storage.join(out, name) for name in _FILES)])
    page = storage.join(out, "explain.html")
    storage.put(storage.join(out, "content.png"), encode(pair.photo.picture, ".png"))
    share_of = share_done(pair.photo.picture.size, pair.config)
    with shown(pair.content, pair.styles, pair.config.steps, share_of) as on_step:
        explanation = explain_transfer(
            pair.photo,
            pair.paintings[0],
            pair.config,
            stylizer,
            layers=layers,
            init=pair.init,
            mask=pair.masks,
            style_mask=pair.style_masks,
            on_step=on_step,
        )
    files = {
        name: draw(explanation)
        for name, draw in _FILES.items()
        if name != _GRAMS or explanation.grams
    }
    for layer, maps in explanation.maps.items():
        files[f"features-{layer}.png"] = _png(map_figure(layer, maps))
    for name, data in files.items():
        storage.put(storage.join(out, name), data)
    storage.put(page, _page(explanation, (pair.content, pair.styles[0])).encode("utf-8", "replace"))
    done = explanation.result
    took = duration(done.seconds)
    return f"{page}: loss {done.loss:.4g} after {done.evaluations} evaluations, {took}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


_GRAMS = "gram.png"
_FILES: Mapping[str, Callable[[Explanation], bytes]] = {
    "content.png": lambda e: encode(e.content, ".png"),
    "style.png": lambda e: encode(e.style, ".png"),
    "result.png": lambda e: encode(
        e.result.image, ".png", e.result.config.without_folders().to_json()
    ),
    "losses.png": lambda e: _png(loss_figure(e)),
    "film.gif": lambda e: film(e.looks, e.result.image.convert("RGB")),
    _GRAMS: lambda e: _png(gram_figure(e.grams)),
}
"""The files beside the page, except the pictures of the layers."""


# --- figures -----------------------------------------------------------------------------------


def gram_figure(grams: Mapping[str, Grams]) -> Figure:
    """Draw Gram matrices as heat maps: a row for each layer with style, photograph and result.

    A row has one colour scale. Channels are in the order that `channel_order` gives the style's.
    """
    from stylize.explain import channel_order
    from stylize.plot import figure

    drawing = figure(9, 0.5 + 2.75 * len(grams))
    axes = drawing.subplots(len(grams), 3, squeeze=False)
    for row, (layer, three) in zip(axes, grams.items(), strict=True):
        order = channel_order(three.style)
        top = max(float(np.percentile(three.style.abs().numpy(), 99.9)), 1e-30)
        norm = {"norm": "log", "vmin": top * 10.0**-_DECADES, "vmax": top}
        for axis, name in zip(row, ("style", "content", "result"), strict=True):
            gram = getattr(three, name)
            values = gram[order][:, order].abs().numpy().clip(norm["vmin"], None)
            shown = axis.imshow(values, cmap="magma", **norm)
            axis.set_xticks([])
            axis.set_yticks([])
            if name != "style":
                energy = three.style.square().sum().clamp(min=1e-30)
                away = float((gram - three.style).square().sum() / energy)
                axis.set_xlabel(f"$E_l$ = {away:.3g}", fontsize=9)
        row[0].set_ylabel(f"{layer}\n{len(order)} channels", fontsize=10)
        bar = drawing.colorbar(shown, ax=list(row), shrink=0.85, pad=0.015)
        bar.ax.tick_params(labelsize=8)
    for axis, name in zip(axes[0], ("style", "photograph", "result"), strict=True):
        axis.set_title(name, fontsize=11)
    return drawing


def map_figure(layer: str, maps: Maps) -> Figure:
    """Draw a layer's strongest feature maps: a column for each channel, with photograph, style and
    result below each other.

    Each channel has one scale in the three rows, from 0, or its least value, to its largest.
    """
    from stylize.plot import figure

    number = len(maps.channels)
    three = {"photograph": maps.content, "style": maps.style, "result": maps.result}
    low = [min(0.0, *(float(m[k].min()) for m in three.values())) for k in range(number)]
    high = [max(float(m[k].max()) for m in three.values()) for k in range(number)]
    ratios = [m.shape[1] / m.shape[2] for m in three.values()]
    drawing = figure(11, 0.45 + 11 / number * sum(ratios))
    axes = drawing.subplots(3, number, squeeze=False, height_ratios=ratios)
    for row, (name, values) in zip(axes, three.items(), strict=True):
        for k, axis in enumerate(row):
            axis.imshow(values[k].numpy(), cmap="magma", vmin=low[k], vmax=high[k])
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=9)
    for axis, channel in zip(axes[0], maps.channels, strict=True):
        axis.set_title(f"channel {channel}", fontsize=9)
    return drawing


def loss_figure(explanation: Explanation) -> Figure:
    """Draw what each layer adds to the loss over the evaluations, and the loss itself."""
    from stylize.plot import figure, loss_axes

    drawing = figure(9, 5)
    axes = loss_axes(drawing, "weight times loss")
    steps = [look.step.step for look in explanation.looks]
    curve = explanation.result.curve
    axes.plot(
        [s.step for s in curve], [s.loss for s in curve], color="0.3", linewidth=2.4, label="total"
    )
    if explanation.looks:
        for place, layer in enumerate(explanation.looks[0].content):
            values = [look.content[layer] for look in explanation.looks]
            axes.plot(steps, values, "--", color=f"C{place}", label=f"content {layer}")
        shades = _shades(len(explanation.looks[0].style))
        for shade, layer in zip(shades, explanation.looks[0].style, strict=True):
            values = [look.style[layer] for look in explanation.looks]
            axes.plot(steps, values, color=shade, linewidth=1.5, label=f"style {layer}")
    if explanation.result.config.tv_weight:
        weighted = [explanation.result.config.tv_weight * s.tv_loss for s in curve]
        axes.plot([s.step for s in curve], weighted, ":", color="0.5", label="total variation")
    at = 1
    for stage in explanation.stages:
        if at > 1:
            axes.axvline(at - 0.5, color="0.7", linewidth=0.8)
        width, height = stage.size
        axes.text(
            at,
            1.01,
            f"{width}x{height}",
            transform=axes.get_xaxis_transform(),
            fontsize=9,
            color="0.35",
        )
        at += stage.evaluations
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing


def _shades(number: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * k / max(1, number - 1)) for k in range(number)]


def film(looks: Sequence[Look], result: Image.Image) -> bytes:
    """Return the optimisation as a GIF that ends on the result. A line below shows the progress."""
    size = fit(result.size, min(_FILM_SIDE, max(result.size)))
    last = looks[-1].step.step if looks else 1
    frames = [_frame(look.picture, size, look.step.step / last) for look in looks]
    frames.append(_frame(result, size, 1))
    times = [_FRAME] * (len(frames) - 1) + [_LAST]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()


def _frame(picture: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    line = 4
    canvas = Image.new("RGB", (size[0], size[1] + line), "#202020")
    canvas.paste(match_size(picture, size))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, size[1], round(share * (size[0] - 1)), size[1] + line), "#e8a33d")
    return canvas.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)


# --- the page ----------------------------------------------------------------------------------


def _page(explanation: Explanation, names: tuple[str, str]) -> str:
    """Return the page, which shows the files beside it."""
    content, style = (html.escape(os.path.basename(name)) for name in names)
    result = explanation.result
    sizes = ", ".join(f"{s.size[0]}x{s.size[1]} ({s.evaluations})" for s in explanation.stages)
    maps = "\n".join(
        f'<h3>{layer}</h3><img src="features-{layer}.png" loading="lazy" '
        f'alt="The strongest feature maps of {layer} of photograph, style and result">'
        for layer in explanation.maps
    )
    return fill(
        "explain.html",
        content=content,
        style=style,
        loss=f"{result.loss:.4g}",
        steps=result.evaluations,
        seconds=duration(result.seconds),
        sizes=sizes,
        grams='<img src="gram.png" alt="Gram matrices of style, photograph and result">'
        if explanation.grams
        else "",
        maps=maps,
        coarse=coarse_note(explanation),
        version=__version__,
        settings=html.escape(_changed(result.config.without_folders())),
    )


def coarse_note(explanation: Explanation) -> str:
    """Say what is minimised at the coarser sizes but not drawn."""
    from stylize.stages import plan_stages

    first = plan_stages(explanation.content.size, explanation.result.config)[0]
    said = []
    if first.content_factor != 1:
        said.append(
            f"At the coarser sizes the optimiser counts content {first.content_factor:g} times as "
            "much as is drawn."
        )
    if first.spread and first.evaluations:
        said.append(
            f"In the first {first.evaluations} steps {first.spread:.0%} of the style loss is over "
            "each quarter of the picture by itself."
        )
    return " ".join(said)


def _changed(config: StyleConfig) -> str:
    """Return the preset's name, and the settings that differ from it."""
    own = StyleConfig.of(config.preset)
    other = [name for name in SETTINGS if getattr(config, name) != getattr(own, name)]
    parts = [f"preset {config.preset}", *(f"{n} {as_text(n, getattr(config, n))}" for n in other)]
    return ", ".join(parts)
