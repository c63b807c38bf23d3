"""What explains a transfer: its numbers against those of the transfer, its files, its page."""

import html.parser
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import matplotlib.figure
import numpy as np
import pytest
import torch
from forks import cli
from helpers import TINY, picture
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from pipeline import plot_curves
from pipeline.explain import coarse_note, film, gram_figure, loss_figure, map_figure
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from stylize.config import StyleConfig
from stylize.explain import (
    Explanation,
    LayerLosses,
    channel_order,
    explain_transfer,
    look_at,
    strongest,
)
from stylize.image import to_tensor
from stylize.inputs import Inputs
from stylize.stages import Stage
from stylize.transfer import Step, StyleResult, Stylizer
from stylize.weights import Weights

LAYERS = ("relu1_1", "relu3_2")


@pytest.fixture(scope="module")
def stylizer(bundled: Weights) -> Stylizer:
    return Stylizer(bundled, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image.Image, Image.Image]:
    folder = tmp_path_factory.mktemp("pair")
    paths = picture(folder / "c.png", 1, (64, 48)), picture(folder / "s.png", 2, (64, 64))
    return Image.open(paths[0]).convert("RGB"), Image.open(paths[1]).convert("RGB")


@pytest.fixture(scope="module")
def found(stylizer: Stylizer, pair: tuple[Image.Image, Image.Image]) -> Explanation:
    config = StyleConfig.of(
        "default", size=64, steps=9, scales=2, coarsest=32, motifs=1, tv_weight=0.1
    )
    return explain_transfer(*pair, config, stylizer, layers=LAYERS)


def layer_losses(
    stylizer: Stylizer,
    content: Image.Image,
    style: Image.Image,
    config: StyleConfig,
    mask: Image.Image | None = None,
) -> LayerLosses:
    inputs = Inputs(content, [style], config, mask=mask)
    inputs.plan(stylizer.reach(inputs))
    return LayerLosses(stylizer, inputs)


# The numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"style_loss": "wasserstein", "style_scale": 0.5, "strength": 0.3},
        {"style_loss": "moments", "preserve_color": "histogram"},
        {"preserve_color": "luminance", "relative": False},
        {"preset": "paper", "size": 48, "init": "content"},
        {"content_weight": 0.0},
    ],
    ids=["default", "wasserstein", "moments", "luminance", "paper", "no content"],
)
def test_the_layers_add_up_to_the_loss_of_each_step(
    settings: dict[str, object],
    dtype: str,
    bundled: Weights,
    pair: tuple[Image.Image, Image.Image],
) -> None:
    stylizer = Stylizer(bundled, device="cpu", dtype=dtype)
    # At 64x48 and 48x36 (zeros beyond the edge) nothing is extended that was cropped.
    values = {"size": 64, "steps": 4, "scales": 1, **settings}
    config = StyleConfig.of(str(values.pop("preset", "default")), **values)
    losses = layer_losses(stylizer, *pair, config)
    sums: list[tuple[float, float]] = []

    def compare(step: Step, x: torch.Tensor) -> None:
        content, style = losses(x)
        sums.append((sum(content.values()) + sum(style.values()), step.loss))

    stylizer.transfer(*pair, config, on_step=compare)
    assert len(sums) == 4
    for ours, told in sums:
        assert ours == pytest.approx(told, rel=1e-4)


@pytest.mark.parametrize("size", [(64, 41), (41, 64), (70, 33)])
def test_the_style_goes_into_the_picture_and_not_into_what_is_cut_off(
    size: tuple[int, int], stylizer: Stylizer, tmp_path: Path
) -> None:
    photo, painting = (
        Image.open(picture(tmp_path / f"{n}.png", n, size)).convert("RGB") for n in (1, 2)
    )
    config = StyleConfig.of("default", size=max(size), steps=30, scales=1, motifs=1)
    result = stylizer.transfer(photo, painting, config)
    content, style = layer_losses(stylizer, photo, painting, config)(to_tensor(result.image))
    assert sum(style.values()) < 1.5 * config.style_weight * result.style_loss
    assert sum(content.values()) == pytest.approx(result.content_loss, rel=0.2)


def test_a_mask_counts_as_it_does_in_the_transfer(
    stylizer: Stylizer, pair: tuple[Image.Image, Image.Image]
) -> None:
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    config = StyleConfig.of("default", size=64, steps=2, scales=1)
    masked, plain = (layer_losses(stylizer, *pair, config, m) for m in (mask, None))
    differ: list[float] = []

    def compare(step: Step, x: torch.Tensor) -> None:
        content, style = masked(x)
        assert sum(content.values()) + sum(style.values()) == pytest.approx(step.loss, rel=1e-4)
        differ.append(abs(sum(plain(x)[1].values()) - sum(style.values())) / step.loss)

    stylizer.transfer(*pair, config, mask=mask, on_step=compare)
    assert len(differ) == 2
    assert max(differ) > 0.01


def test_a_mask_named_in_the_config_counts_too(
    stylizer: Stylizer, pair: tuple[Image.Image, Image.Image], tmp_path: Path
) -> None:
    mask = Image.new("L", (40, 30), 0)
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / "mask.png")
    settings = {"size": 32, "steps": 2, "scales": 1}
    given = StyleConfig.of("default", **settings)
    named = StyleConfig.of("default", mask=str(tmp_path / "mask.png"), **settings)
    wanted = explain_transfer(*pair, given, stylizer, layers=LAYERS, mask=mask)
    found = explain_transfer(*pair, named, stylizer, layers=LAYERS)
    assert [look.style for look in found.looks] == [look.style for look in wanted.looks]
    for layer, grams in wanted.grams.items():
        assert torch.equal(found.grams[layer].result, grams.result)


def test_the_gram_matrices_are_those_of_the_features(
    found: Explanation, stylizer: Stylizer
) -> None:
    assert list(found.grams) == [name for name, _ in found.result.config.style_layers]
    for name, image in (("style", found.style), ("result", found.result.image)):
        with torch.no_grad():
            features = stylizer.encoder(found.result.config)(to_tensor(image), ["relu2_1"])
        flat = features["relu2_1"][0].flatten(1)  # (N, M)
        by_hand = flat @ flat.T / flat.shape[1]
        # The 8-bit copy of the style is half a level off at most.
        error = (getattr(found.grams["relu2_1"], name) - by_hand).norm() / by_hand.norm()
        assert error < (1e-2 if name == "style" else 1e-5)


def test_a_callers_modes_of_torch_change_nothing(
    bundled: Weights, pair: tuple[Image.Image, Image.Image]
) -> None:
    config = StyleConfig.of("default", size=32, steps=2, scales=1)

    def explain() -> Explanation:
        fresh = Stylizer(bundled, device="cpu", dtype="float32")
        return explain_transfer(*pair, config, fresh, layers=LAYERS)

    wanted = explain()
    for mode in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            there = explain()
        assert there.result.image.tobytes() == wanted.result.image.tobytes()
        assert [look.style for look in there.looks] == [look.style for look in wanted.looks]
        for layer, grams in wanted.grams.items():
            assert torch.equal(there.grams[layer].style, grams.style)


def test_looks_are_in_order_and_maps_have_their_layers_shapes(found: Explanation) -> None:
    assert [look.step.step for look in found.looks] == list(range(1, 10))
    assert found.looks[0].picture.size == (32, 24)
    assert found.looks[-1].picture.size == (64, 48)
    assert list(found.maps) == list(LAYERS)
    assert found.maps["relu1_1"].result.shape == (8, 48, 64)
    assert found.maps["relu3_2"].content.shape == (8, 12, 16)
    assert found.maps["relu3_2"].style.shape == (8, 16, 16)


def test_what_is_looked_at_has_both_ends_of_each_stage_and_is_denser_at_its_start() -> None:
    wanted = look_at([Stage((9, 9), 100), Stage((18, 18), 40)], 28)
    assert {1, 100, 101, 140} <= wanted
    assert max(wanted) == 140
    assert 22 <= len(wanted) <= 28
    assert len({w for w in wanted if w <= 50}) > len({w for w in wanted if 50 < w <= 100})
    assert look_at([Stage((9, 9), 0), Stage((9, 9), 1)], 60) == {1}
    assert look_at([Stage((9, 9), 0)], 60) == set()


def test_the_strongest_channels_are_strong_in_every_picture() -> None:
    one, two = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    one[0, :, 0, 0] = torch.tensor([9.0, 1.0, 2.0, 0.0])
    two[0, :, 0, 0] = torch.tensor([0.0, 1.0, 3.0, 9.0])
    # Products of energies: 0, 1, 36, 0.
    assert strongest([one, two], 2) == (2, 1)


def test_channels_that_respond_together_stand_together_and_silent_ones_last() -> None:
    # Channels 0, 3, 5 respond in one half of the places and 1, 4 in the other; 2 never.
    features = torch.zeros(6, 8)
    features[[0, 3, 5], :4] = torch.tensor([[1.0], [3.0], [2.0]])
    features[[1, 4], 4:] = torch.tensor([[1.0], [2.0]])
    order = channel_order(features @ features.T / 8).tolist()
    assert order[-1] == 2
    # Within each group, strongest first.
    assert order[:5] in ([3, 5, 0, 4, 1], [4, 1, 3, 5, 0])


# The figures


def test_the_gram_figure_has_one_scale_a_row_and_the_styles_order(found: Explanation) -> None:
    figure = gram_figure(found.grams)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 3 * 5
    for row in range(5):
        limits = {axes.images[0].get_clim() for axes in maps[3 * row : 3 * row + 3]}
        assert len(limits) == 1
        low, high = limits.pop()
        assert high == pytest.approx(1e4 * low)
    order = channel_order(found.grams["relu1_1"].style)
    shown = maps[2].images[0].get_array()
    assert shown is not None
    expected = found.grams["relu1_1"].result[order][:, order].numpy()
    strong = expected > maps[2].images[0].get_clim()[0]
    assert strong.any()
    assert (shown[strong] == expected[strong]).all()
    away = maps[1].get_xlabel()
    g, a = found.grams["relu1_1"].content, found.grams["relu1_1"].style
    assert f"{float((g - a).square().sum() / a.square().sum()):.3g}" in away


def heights(line: Line2D) -> list[float]:
    values: list[float] = np.asarray(line.get_ydata()).tolist()
    return values


def test_the_loss_figure_has_a_line_for_each_layer_and_the_total(found: Explanation) -> None:
    axes = loss_figure(found).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert axes.get_yscale() == "log"
    wanted = {"total", "content relu4_2", "total variation"}
    wanted |= {f"style relu{block}_1" for block in range(1, 6)}
    assert {name for name in lines if not name.startswith("_")} == wanted
    assert heights(lines["total"]) == [step.loss for step in found.result.curve]
    style = [look.style["relu5_1"] for look in found.looks]
    assert heights(lines["style relu5_1"]) == style


def test_a_map_figure_shows_three_pictures_of_each_channel(found: Explanation) -> None:
    maps = found.maps["relu3_2"]
    axes = map_figure("relu3_2", maps).axes
    assert len(axes) == 3 * 8
    shown = axes[2 * 8 + 1].images[0].get_array()
    assert shown is not None
    assert (shown == maps.result[1].numpy()).all()
    assert [a.get_title() for a in axes[:8]] == [f"channel {c}" for c in maps.channels]


def test_the_film_has_a_frame_a_look_at_one_size_and_ends_on_the_result(
    found: Explanation,
) -> None:
    with Image.open(io.BytesIO(film(found.looks, found.result.image))) as image:
        assert isinstance(image, GifImageFile)
        assert image.format == "GIF"
        # The last look may be the result itself; Pillow then keeps one of the two.
        assert image.n_frames - len(found.looks) in (0, 1)
        image.seek(image.n_frames - 1)
        last = image.convert("RGB")
    width, height = found.result.image.size
    assert last.size == (width, height + 4)  # the line of progress
    shown = to_tensor(last.crop((0, 0, width, height)))
    # 256 colours: near on the whole.
    assert (shown - to_tensor(found.result.image)).abs().mean() < 0.05


# The command


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.without_words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if source := given.get("src") or given.get("href"):
            self.sources.append(source)
            if tag == "img" and not given.get("alt"):
                self.without_words.append(source)


def test_the_command_leaves_a_page_whose_pictures_are_all_there(tmp_path: Path) -> None:
    content = picture(tmp_path / "<b>c.png", 1)
    style = picture(tmp_path / "s.jpg", 2)
    out = tmp_path / "out"
    done = cli("explain", content, style, "-o", out, "--layers", "relu2_2,relu1_1", *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out / 'explain.html'}: loss ")
    page = (out / "explain.html").read_text("utf-8")
    links = _Links()
    links.feed(page)
    assert links.without_words == []
    maps = ["features-relu2_2.png", "features-relu1_1.png"]
    pictures = ["content.png", "style.png", "result.png", "film.gif", "losses.png", "gram.png"]
    assert links.sources == [*pictures, *maps]
    assert {p.name for p in out.iterdir()} == {*links.sources, "explain.html"}
    for name in links.sources:
        with Image.open(out / name) as image:
            image.load()
    assert Image.open(out / "result.png").size == (32, 24)
    assert "<b>" not in page
    assert "&lt;b&gt;c.png" in page
    assert "$" not in page


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--layers", "conv9_9"), 2, "--layers is 'conv9_9'; it must be names like relu1_1"),
        (("--layers", "relu3_4"), 2, "relu3_4 is not in vgg16"),
        (("--steps", "-1"), 2, "steps is '-1'; it must be a whole number"),
        (("--init", "none.png"), 3, "init none.png: No such file"),
    ],
    ids=["no layer", "not this network's", "steps", "no file"],
)
def test_what_cannot_be_is_said_in_one_line(
    options: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    content, style = picture(tmp_path / "c.png", 1), picture(tmp_path / "s.png", 2)
    done = cli("explain", content, style, "-o", tmp_path / "out", *TINY, *options)
    assert done.returncode == code
    assert done.stderr.startswith(f"stylize-batch: {says}")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_is_told_before_anything_is_painted(tmp_path: Path) -> None:
    content, style = picture(tmp_path / "c.png", 1), picture(tmp_path / "s.png", 2)
    # So many evaluations would outlast the time limit.
    options = ("--size", "256", "--steps", "5000", "--backbone", "vgg16")
    done = cli("explain", content, style, "-o", content, *options)
    assert done.returncode == 5
    assert "a file stands where a folder is needed" in done.stderr
    assert done.stderr.count("\n") == 1


# Curves in a notebook


def _result() -> StyleResult:
    config = StyleConfig(content_weight=2.0, style_weight=3.0)
    curve = tuple(Step(i, i / 10, 5.0 / i, 1.0 / i, 1.0 / i, 0.0) for i in range(1, 5))
    image = Image.new("RGB", (16, 16))
    return StyleResult(image, config, 1.25, 0.25, 0.25, 0.0, curve, 4, "steps", 0.4)


def test_a_result_plots_its_loss_and_its_weighted_parts() -> None:
    figure = _result().plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    lines = {line.get_label(): heights(line) for line in figure.axes[0].lines}
    assert lines == {  # 2 content + 3 style = 5; no total variation, no line
        "loss": [5.0, 2.5, 5 / 3, 1.25],
        "content": [2.0, 1.0, 2 / 3, 0.5],
        "style": [3.0, 1.5, 1.0, 0.75],
    }
    shown = cast(Any, figure)._repr_png_()  # what a notebook asks for
    with Image.open(io.BytesIO(shown)) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def _row(number: int, weight: float, **changes: object) -> Result:
    curve = tuple((i, i / 10, weight / i, 0.1, 0.2, 0.0) for i in range(1, 4))
    values: dict[str, Any] = {
        "pair_id": f"p{number}",
        "row": number,
        "content": "c.png",
        "style": "s.png",
        "output": f"{number}.png",
        "status": "ok",
        "settings": f'{{"style_weight": {weight}}}',
        "loss_curve": curve,
    }
    return Result(**{**values, **changes})


def test_the_curves_of_a_whole_run_are_one_figure(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "test") as index:
        for number, weight in enumerate((8.0, 2.0, 8.0)):
            index.append(_row(number, weight))
        index.append(_row(9, 1.0, status="failed", loss_curve=()))
    axes = plot_curves(str(tmp_path)).axes[0]
    assert [line.get_label() for line in axes.lines] == ["p0", "p1", "p2"]
    assert list(np.asarray(axes.lines[1].get_xdata())) == [1, 2, 3]
    assert heights(axes.lines[1]) == pytest.approx([2, 1, 2 / 3])
    by_weight = plot_curves(str(tmp_path), "style_loss", label="style_weight").axes[0]
    colours = [line.get_color() for line in by_weight.lines]
    assert colours[0] == colours[2] != colours[1]
    assert heights(by_weight.lines[0]) == pytest.approx([0.2] * 3)
    assert len(plot_curves(str(tmp_path), only=["p2"]).axes[0].lines) == 1
    with pytest.raises(ValueError, match=r"label 'sytle': no column .* did you mean style\?"):
        plot_curves(str(tmp_path), label="sytle")
    with pytest.raises(ValueError, match="loss is 'lost'; it must be loss or content_loss"):
        plot_curves(str(tmp_path), "lost")
    with pytest.raises(ValueError, match="no loss curve of these pairs"):
        plot_curves(str(tmp_path), only=["p9"])


def test_curves_are_told_apart_by_meta_columns_too(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "test") as index:
        for number, client in enumerate(("Ada", "Bo", "Ada")):
            index.append(_row(number, 1.0, meta={"client": client}))
        index.append(_row(3, 1.0))  # a pair of an older manifest, without the column
    made = plot_curves(str(tmp_path), label="meta.client")
    colours = [line.get_color() for line in made.axes[0].lines]
    assert colours[0] == colours[2]
    assert len(set(colours)) == 3
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["Ada", "Bo", "none"]
    with pytest.raises(ValueError, match=r"label 'meta.clint': .* did you mean meta.client\?"):
        plot_curves(str(tmp_path), label="meta.clint")


@pytest.mark.parametrize(("number", "colours"), [(10, 10), (11, 1)])
def test_as_many_curves_have_a_legend_as_there_are_colours(
    number: int, colours: int, tmp_path: Path
) -> None:
    with Index(OutFolder(tmp_path), "test") as index:
        for place in range(number):
            index.append(_row(place, 1.0))
    made = plot_curves(str(tmp_path))
    assert len({to_hex(line.get_color()) for line in made.axes[0].lines}) == colours
    assert bool(made.legends) == (colours > 1)


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    code = (
        "import sys, stylize.transfer, stylize.explain, stylize.plot, pipeline.explain\n"
        "import pipeline.views.curves, pipeline.cli\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env=dict(os.environ),
    )
    assert done.stdout.split() == ["False"]


def test_the_page_says_what_is_minimised_at_thecoarse_note_sizes_and_not_drawn(
    found: Explanation,
) -> None:
    words = coarse_note(found)
    assert "the optimiser counts content 4 times as much as is drawn" in words
    assert "In the first 2 steps 40% of the style loss is over each quarter" in words


def test_the_pages_template_names_only_what_is_filled_in() -> None:
    template = Path(__file__).parents[1] / "pipeline" / "assets" / "explain.html"
    names = set(re.findall(r"\$(\w+)", template.read_text("utf-8")))
    assert names == {
        "content", "style", "loss", "steps", "seconds", "sizes", "settings", "version", "grams",
        "maps", "coarse",
    }  # fmt: skip
