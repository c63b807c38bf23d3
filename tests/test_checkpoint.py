"""Long pairs go on from a kept picture: after a kill, and not from one that is damaged."""

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks
from helpers import check_whole, index_rows, log_of, pictures, tiny, write_csv
from PIL import Image

from stylize.checkpoint import Checkpoint
from stylize.config import StyleConfig
from stylize.errors import CheckpointError, Interrupted
from stylize.stages import Stage
from stylize.transfer import Request, StyleResult, Stylizer
from stylize.weights import BUNDLED, load

PHOTO = Image.radial_gradient("L").resize((48, 40)).convert("RGB")
STYLE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 40).convert("RGB")
LONG = tiny(steps=40, scales=2, coarsest=16, motifs=1, plateau=0)


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    return Stylizer(load(BUNDLED), device="cpu")


def paint(stylizer: Stylizer, config: StyleConfig, **more: Any) -> StyleResult:
    (done,) = stylizer.transfer_batch([Request(PHOTO, STYLE, config, **more)])
    assert isinstance(done, StyleResult)
    return done


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_picture_that_goes_on_ends_within_1_percent_of_one_that_was_not_disturbed(
    stylizer: Stylizer, optimizer: str
) -> None:
    size: dict[str, Any] = {"size": 48, "scales": 2, "coarsest": 16, "motifs": 1}
    config = StyleConfig(**size, steps=90, plateau=0, backbone="vgg16", optimizer=optimizer)
    kept: dict[int, bytes] = {}

    def look(evaluations: int, make: Any) -> None:
        kept[evaluations] = make().encode("key")

    whole = paint(stylizer, config, on_look=look)
    stages = set()
    for at in (10, max(kept) // 2, max(kept)):
        checkpoint = Checkpoint.decode(kept[at], "key")
        stages.add(checkpoint.stage)
        again = paint(stylizer, config, checkpoint=checkpoint)
        assert again.loss <= 1.01 * whole.loss, at
        assert again.curve[:at] == whole.curve[:at]
        assert [step.step for step in again.curve] == list(range(1, len(again.curve) + 1))
        assert again.notes == f"went on from evaluation {at}"
        assert len(again.curve) <= len(whole.curve) + 10
    assert len(stages) > 1


def test_what_is_kept_is_used_only_whole_and_for_the_same_picture() -> None:
    curve = torch.ones(3, 6, dtype=torch.float64)
    one = Checkpoint(1, (40, 30), 7, torch.rand(1, 3, 32, 48), curve, (torch.rand(1, 5),))
    data = one.encode("key")
    back = Checkpoint.decode(data, "key")
    assert dataclasses.replace(back, picture=one.picture, curve=curve, memory=()) == (
        dataclasses.replace(one, memory=())
    )
    assert torch.equal(back.picture, one.picture)
    assert torch.equal(back.memory[0], one.memory[0])
    with pytest.raises(CheckpointError, match="other inputs, settings or weights"):
        Checkpoint.decode(data, "another")
    for damaged in (data[:-1], b"", data[:40], data[:100] + b"?" + data[101:]):
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoint.decode(damaged, "key")
    stages = [Stage((20, 15), 30), Stage((40, 30), 8)]
    assert one.fits(stages)
    assert not one.fits(stages[:1])
    assert not one.fits([stages[0], Stage((44, 30), 8)])
    assert not one.fits([stages[0], Stage((40, 30), 7)])


def test_a_checkpoint_that_does_not_fit_is_left_aside_and_a_batch_uses_none(
    stylizer: Stylizer,
) -> None:
    config = StyleConfig.of("draft", size=48, steps=4, backbone="vgg16")
    other = Checkpoint(0, (9, 9), 1, torch.rand(1, 3, 16, 16), torch.ones(1, 6))
    alone = paint(stylizer, config)
    assert paint(stylizer, config, checkpoint=other).curve[0].loss == alone.curve[0].loss

    def never(evaluations: int, make: Any) -> None:
        raise AssertionError

    fits = Checkpoint(0, PHOTO.size, 1, torch.rand(1, 3, 48, 48), torch.ones(1, 6))
    request = Request(PHOTO, STYLE, config, checkpoint=fits, on_look=never)
    for done in stylizer.transfer_batch([request, request]):
        assert isinstance(done, StyleResult)
        assert done.curve[0].step == 1
        assert done.notes == ""


def test_what_a_look_raises_ends_the_transfer(stylizer: Stylizer) -> None:
    config = StyleConfig.of("draft", size=48, steps=9, backbone="vgg16")

    def look(evaluations: int, make: Any) -> None:
        if evaluations == 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        paint(stylizer, config, on_look=look)


# The command


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    pictures(tmp_path, 2)
    return write_csv(tmp_path / "m.csv", [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in (0, 1)])


def kept_files(out: Path) -> list[Path]:
    return sorted((out / "_state" / "checkpoints").glob("*"))


def test_a_pair_whose_process_died_goes_on_from_its_kept_picture(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    out = manifest.with_suffix("")
    run = (manifest, "--in-process", *LONG, "--checkpoint-every", 7)
    died = forks(*run, STYLIZE_CRASH_AT=f"picture-temp-written:{tmp_path / 'flag'}")
    assert died.returncode == -signal.SIGKILL
    (kept,) = kept_files(out)
    shutil.copytree(out, tmp_path / "damaged")
    shutil.copytree(out, tmp_path / "changed")
    done = forks(*run)
    assert done.returncode == 0, done.stderr
    assert kept_files(out) == []
    check_whole(out)
    rows = index_rows(out)
    assert {name: row["notes"] for name, row in rows.items()} == {
        "g0": "went on from evaluation 35",
        "g1": "",
    }
    assert "goes on from its kept picture at evaluation 35" in log_of(out)

    plain = tmp_path / "plain"
    assert forks(manifest, "--in-process", *LONG, "-o", plain).returncode == 0
    undisturbed = index_rows(plain)
    for name, row in rows.items():
        assert row["key"] == undisturbed[name]["key"]
        assert row["settings"] == undisturbed[name]["settings"]
        assert row["loss"] <= 1.01 * undisturbed[name]["loss"]
    assert rows["g1"]["output_sha256"] == undisturbed["g1"]["output_sha256"]
    # Once more without the option: done is done.
    again = forks(manifest, "--in-process", *LONG)
    assert again.counted("painted") == 0

    # One that is damaged, or of other settings, is told of in the log and not used.
    damaged = tmp_path / "damaged"
    broken = damaged / "_state" / "checkpoints" / kept.name
    broken.write_bytes(broken.read_bytes()[:-9])
    done = forks(*run, "--only", "g0", "-o", damaged)
    assert done.returncode == 0, done.stderr
    assert "its kept picture was not used: it is damaged" in log_of(damaged)
    assert kept_files(damaged) == []
    (row,) = index_rows(damaged).values()
    assert row["output_sha256"] == undisturbed["g0"]["output_sha256"]
    changed = tmp_path / "changed"
    done = forks(*run, "--only", "g0", "--style-weight", 30, "-o", changed)
    assert done.returncode == 0, done.stderr
    assert "not used: it is of other inputs, settings or weights" in log_of(changed)
    assert kept_files(changed) == []
