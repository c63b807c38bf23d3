"""The paper's figures in miniature, painted and laid out by the very commands of `make figures`.

What is claimed of them follows from the method: an optimum that weighs a loss more has less of it.
"""

import csv
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from forks import cli
from helpers import index_rows
from PIL import Image, ImageChops, ImageStat

from pipeline.manifest.reader import read_manifest
from stylize import StyleConfig
from stylize.image import match_size, to_tensor
from stylize.losses import gram_matrix
from stylize.transfer import Stylizer
from stylize.weights import Weights

ROOT = Path(__file__).parents[1]
FIGURES = ("figure1", "figure2", "figure3")
LAYERS = [f"relu{block}_1" for block in range(1, 6)]
# float32, so that what a machine can multiply quickly decides nothing.
SMALL = ("--in-process", "--threads", "1", "--dtype", "float32")


def rows_of(figure: str) -> list[dict[str, str]]:
    with open(ROOT / "manifests" / f"{figure}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


StyleLosses = Callable[[Image.Image, Image.Image], list[float]]

# Longest side and steps of the miniatures, and the rows that stand for all.
MINIATURES = {
    "figure1": (
        64,
        40,
        [*(f"content-{panel}" for panel in "abcde"), "style-a", "style-c", "style-e"],
    ),
    "figure2": (48, 12, ["A", "C", "E"]),
    "figure3": (48, 50, [f"conv3_1-{ratio}" for ratio in ("1e-5", "1e-4", "1e-3", "1e-2")]),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests as they ship, but for fewer rows, pixels and steps; painted."""
    folder = tmp_path_factory.mktemp("checkout")
    manifests = folder / "manifests"
    shutil.copytree(ROOT / "manifests" / "images", manifests / "images")
    for figure, (size, steps, names) in MINIATURES.items():
        rows = [row for row in rows_of(figure) if row["id"] in names]
        for row in rows:
            row["size"] = str(size)
            row["steps"] = row["steps"] if row["steps"] == "0" else str(steps)
        with open(manifests / f"{figure}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        done = cli(manifests / f"{figure}.csv", *SMALL)
        assert done.returncode == 0, done.stderr
    return folder


def painted(checkout: Path, figure: str) -> dict[str, Image.Image]:
    out = checkout / "manifests" / figure
    return {
        pair_id: Image.open(out / row["output"]).convert("RGB")
        for pair_id, row in index_rows(out).items()
    }


def original(name: str, size: tuple[int, int]) -> Image.Image:
    with Image.open(ROOT / "manifests" / name) as image:
        return match_size(image.convert("RGB"), size)


def distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square, in values of 0-255."""
    bands = ImageStat.Stat(ImageChops.difference(a, b)).rms
    return float((sum(band**2 for band in bands) / 3) ** 0.5)


@pytest.fixture(scope="module")
def style_losses(bundled: Weights) -> StyleLosses:
    """Function of two pictures: by layer, the Gram loss over the energy of the second's Gram."""
    stylizer = Stylizer(bundled, device="cpu", dtype="float32")
    encoder = stylizer.encoder(StyleConfig.of("paper"))

    def grams(image: Image.Image) -> list[torch.Tensor]:
        with torch.no_grad():
            features = encoder(to_tensor(image), LAYERS)
        return [gram_matrix(features[layer]) for layer in LAYERS]

    def losses(image: Image.Image, style: Image.Image) -> list[float]:
        pairs = zip(grams(image), grams(style), strict=True)
        return [float((g - a).square().mean() / a.square().mean()) for g, a in pairs]

    return losses


@pytest.mark.parametrize("figure", FIGURES)
def test_the_manifests_of_the_figures_are_valid_and_can_be_planned(figure: str) -> None:
    manifest = ROOT / "manifests" / f"{figure}.csv"
    pairs = read_manifest(str(manifest))
    assert all(Path(ref.path).is_file() for pair in pairs for ref in pair.inputs)
    done = cli("plan", manifest, "--out", "/nonexistent", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["todo"]) == len(pairs) == len(rows_of(figure))


def test_figure_3_has_every_alpha_over_beta_with_every_depth_of_style() -> None:
    rows = rows_of("figure3")
    grid = {(row["meta.style layers up to"], row["meta.alpha/beta"]) for row in rows}
    assert len(rows) == len(grid) == 20
    for row in rows:
        depth = int(row["meta.style layers up to"][4])
        assert row["style_layers"].split(",") == LAYERS[:depth]
        weights = float(row["content_weight"]), float(row["style_weight"])
        assert weights[0] / weights[1] == pytest.approx(1000 * float(row["meta.alpha/beta"]))


def test_figure_1_the_deeper_the_layer_the_less_of_the_pixels_comes_back(checkout: Path) -> None:
    found = painted(checkout, "figure1")
    photo = original("images/chelsea.jpg", found["content-a"].size)
    errors = [distance(found[f"content-{panel}"], photo) for panel in "abcde"]
    assert errors[0] < 5
    assert errors[1:] == sorted(errors[1:])
    assert errors[4] > 4 * errors[1]


def test_figure_1_a_style_is_matched_up_to_the_layers_that_were_asked_for(
    checkout: Path, style_losses: StyleLosses
) -> None:
    found = painted(checkout, "figure1")
    style = original("images/night-strokes.jpg", (64, 51))
    for depth, panel in ((1, "a"), (3, "c"), (5, "e")):
        losses = style_losses(found[f"style-{panel}"], style)
        assert max(losses[:depth]) < 0.3  # of the style's own energy; noise has 1
        if depth < 5:
            assert losses[depth] > 2 * max(losses[:depth])


def test_figure_2_the_photograph_is_a_panel_and_each_result_is_nearest_to_its_own_style(
    checkout: Path, style_losses: StyleLosses
) -> None:
    found = painted(checkout, "figure2")
    size = found["A"].size
    assert distance(found["A"], original("images/chelsea.jpg", size)) < 1
    styles = {row["id"]: row["style"] for row in rows_of("figure2") if row["id"] != "A"}
    for panel in found.keys() - {"A"}:
        losses = {}
        for name in styles.values():
            with Image.open(ROOT / "manifests" / name) as image:
                scale = 48 / max(image.size)
                style = match_size(image.convert("RGB"), (48, round(min(image.size) * scale)))
            losses[name] = sum(style_losses(found[panel], style))
        assert min(losses, key=lambda name: losses[name]) == styles[panel]


def test_figure_3_a_larger_alpha_over_beta_keeps_more_content_for_less_style(
    checkout: Path,
) -> None:
    rows = list(index_rows(checkout / "manifests" / "figure3").values())
    rows.sort(key=lambda row: float(dict(row["meta"])["alpha/beta"]))
    content = [row["content_loss"] for row in rows]
    style = [row["style_loss"] for row in rows]
    assert len(rows) == 4
    assert content == sorted(content, reverse=True)
    assert style == sorted(style)
    assert content[0] > 4 * content[3]
    assert style[3] > 4 * style[0]


@cache
def montages() -> dict[str, list[str]]:
    """The montage commands of `make figures`, without the folder that make has them in."""
    done = subprocess.run(
        ["make", "-n", "figures"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    joined = done.stdout.replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in joined if "stylize-batch montage" in line]
    return {Path(line[2]).name: line[1:] for line in words}


@pytest.mark.parametrize("figure", FIGURES)
def test_make_figures_lays_each_out(
    figure: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    command = montages()[figure]
    done = cli(*command, "--cell", 64)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no cell stands for several pairs
    target = command[command.index("-o") + 1]
    with Image.open(checkout / target) as image:
        columns = {"figure1": 6, "figure2": 3, "figure3": 5}[figure]
        assert image.width > columns * 64
