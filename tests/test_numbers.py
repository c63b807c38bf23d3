"""Numbers at their limits through the real command: a picture that was really painted, or a failure
with its reason; never a black one that says ok."""

from typing import Any

import pytest
from forks import cli
from helpers import check_whole, index_rows, pictures, tiny, write_csv
from PIL import Image, ImageStat

PLAIN = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A manifest of extremes, painted; with the pictures' brightness in `light`."""
    folder = tmp_path_factory.mktemp("numbers")
    pictures(folder, 1)
    for name, colour in PLAIN.items():
        Image.new("RGB", (48, 36), colour).save(folder / f"{name}.png")
    pair = {"content": "c0.jpg", "style": "s.png"}
    asked = {
        "ordinary": pair,
        "style 1e30": {**pair, "style_weight": "1e30"},
        "all 1e30": {**pair, "style_weight": "1e30", "content_weight": "1e30", "tv_weight": "1e30"},
        "adam 1e30": {**pair, "style_weight": "1e30", "optimizer": "adam"},
        "too much": {**pair, "style_weight": "1e30", "relative": "false", "motifs": "1"},
        "nothing": {**pair, "style_weight": "0", "content_weight": "0"},
        "black style": {**pair, "style": "black.png"},
        "white style": {**pair, "style": "white.png"},
        "black photo": {**pair, "content": "black.png"},
        "all black": {"content": "black.png", "style": "black.png"},
        "all grey": {"content": "grey.png", "style": "grey.png", "style_loss": "wasserstein"},
        "itself": {**pair, "style": "c0.jpg", "init": "content"},
    }
    manifest = write_csv(folder / "m.csv", [{"id": id_, **row} for id_, row in asked.items()])
    done = cli(manifest, "--in-process", *tiny(steps=12))
    assert done.returncode == 3, done.stderr
    check_whole(folder / "m")
    found = index_rows(folder / "m")
    for row in found.values():
        if row["status"] == "ok":
            with Image.open(folder / "m" / row["output"]) as image:
                row["light"] = max(ImageStat.Stat(image).mean)
    return found


@pytest.mark.parametrize("name", ["style 1e30", "all 1e30", "adam 1e30"])
def test_huge_weights_are_painted_like_others(name: str, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[name]
    assert row["status"] == "ok"
    curve = [step["loss"] for step in row["loss_curve"]]
    assert min(curve) < 0.95 * curve[0]
    assert row["loss"] == pytest.approx(min(curve), rel=1e-5)


def test_weights_alike_on_every_part_give_the_ordinary_picture(
    rows: dict[str, dict[str, Any]],
) -> None:
    # The content's share of 1 in 100 aside, huge weights and small ones ask for the same.
    ordinary, huge = rows["ordinary"]["style_loss"], rows["style 1e30"]["style_loss"]
    assert huge == pytest.approx(ordinary, rel=0.2)


def test_a_loss_beyond_all_numbers_fails_with_the_reason(
    rows: dict[str, dict[str, Any]],
) -> None:
    row = rows["too much"]
    assert (row["status"], row["error_type"]) == ("failed", "DivergedError")
    assert "the loss became inf at evaluation 1; lower the weights" in str(row["error_message"])


def test_a_photograph_that_comes_out_black_is_a_failure_and_leaves_no_picture(
    rows: dict[str, dict[str, Any]],
) -> None:
    row = rows["black style"]
    assert (row["status"], row["error_type"]) == ("failed", "BlackError")
    assert "the picture came out black" in str(row["error_message"])
    assert not row["output_sha256"]


def test_no_other_picture_is_black_unless_its_photograph_is(
    rows: dict[str, dict[str, Any]],
) -> None:
    dark = {name for name, row in rows.items() if row["status"] == "ok" and row["light"] < 16}
    assert dark == {"all black"}


@pytest.mark.parametrize("name", ["nothing", "white style", "black photo", "all grey", "itself"])
def test_constant_pictures_and_weights_of_nothing_end_ok_with_finite_losses(
    name: str, rows: dict[str, dict[str, Any]]
) -> None:
    assert rows[name]["status"] == "ok"
    assert abs(float(rows[name]["loss"])) < 1e6
    assert rows[name]["stop_reason"] == "steps"
