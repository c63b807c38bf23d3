"""Workers in this process: groups, what they share, and memory that does not suffice."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.paint.room import DeviceFullError
from pipeline.paint.worker import Job, NotReadyError, Worker
from pipeline.records import InputRef, Pair, Result, Task, objective
from stylize.config import StyleConfig
from stylize.image import decode
from stylize.transfer import Request, Stylizer
from stylize.weights import BUNDLED

CONFIG = StyleConfig.of("draft", size=48, steps=3, backbone="vgg16")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name, tint in (("a", "orange"), ("b", "navy"), ("c", "teal"), ("d", "gold")):
        board = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
        Image.blend(board, Image.new("RGB", board.size, tint), 0.4).save(tmp_path / f"{name}.png")
    Image.effect_mandelbrot((80, 80), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(
        tmp_path / "style.png"
    )
    weights = {"auto": str(BUNDLED), "vgg16": str(BUNDLED)}
    out, folder = str(tmp_path / "out"), str(tmp_path)
    return Job(out=out, folder=folder, weights=weights, device="cpu", threads=1)


def pairs(*names: str) -> list[Pair]:
    return [
        Pair(
            row=number,
            pair_id=name,
            output=f"images/{name}.png",
            inputs=(
                InputRef("content", f"{name}.png", f"{name}.png"),
                InputRef("style", "style.png", "style.png"),
            ),
            config=CONFIG,
        )
        for number, name in enumerate(names, 1)
    ]


def run(worker: Worker, *names: str) -> dict[str, Result]:
    results = worker.run([Task(pair) for pair in pairs(*names)])
    return {result.pair_id: result for result in results if result}


def test_pairs_of_one_size_are_painted_together_as_they_are_alone(job: Job) -> None:
    together = run(Worker(job), "a", "b", "c")
    assert [(r.status, r.batch) for r in together.values()] == [("ok", 3)] * 3
    for name, result in together.items():
        alone = run(Worker(job), name)[name]
        assert alone.batch == 1
        assert alone.loss == pytest.approx(result.loss, rel=1e-3)


def test_a_worker_whose_card_torch_cannot_see_says_so_and_is_not_ready(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NotReadyError, match="granted a GPU that torch cannot see; install torch"):
        Worker(dataclasses.replace(job, expect_gpu=True)).ready()


def test_a_seed_for_each_pair_leaves_them_together_and_each_its_own_key(job: Job) -> None:
    alike = pairs("a", "b", "c")
    seeded = [
        dataclasses.replace(pair, config=dataclasses.replace(CONFIG, init="noise", seed=seed))
        for seed, pair in enumerate(alike)
    ]
    assert len({objective(pair) for pair in seeded}) == 1
    rows = Worker(job).run([Task(pair) for pair in seeded])
    assert [(row.status, row.batch) for row in rows if row] == [("ok", 3)] * 3
    assert [json.loads(row.settings)["seed"] for row in rows if row] == [0, 1, 2]
    for row, pair in zip(rows, seeded, strict=True):
        (alone,) = Worker(job).run([Task(pair)])
        assert alone
        assert row
        assert alone.key == row.key
        assert alone.loss == pytest.approx(row.loss, rel=1e-3)


def test_a_painting_is_decoded_once_for_all_its_pairs(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def counted(data: bytes, *options: Any) -> Image.Image:
        nonlocal decoded
        decoded += 1
        return decode(data, *options)

    monkeypatch.setattr("pipeline.paint.inputs.decode", counted)
    worker = Worker(job)
    assert [result.status for result in run(worker, *"abc").values()] == ["ok"] * 3
    assert decoded == 1  # photographs are opened by themselves
    assert run(worker, "d")["d"].status == "ok"
    assert decoded == 1
    Image.radial_gradient("L").convert("RGB").save(Path(job.folder, "style.png"))
    before = run(Worker(job), "a")["a"].key
    assert run(worker, "a")["a"].key == before  # another painting now, by the same name
    assert decoded == 1 + 1 + 1


def test_where_memory_is_short_half_of_the_pictures_are_painted_at_a_time(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    transfer_batch = Stylizer.transfer_batch

    def short(stylizer: Stylizer, requests: Sequence[Request]) -> object:
        tried.append(len(requests))
        if len(requests) > 2:
            raise MemoryError
        return transfer_batch(stylizer, requests)

    monkeypatch.setattr(Stylizer, "transfer_batch", short)
    worker = Worker(job)
    results = run(worker, "a", "b", "c", "d")
    assert [(r.status, r.notes) for r in results.values()] == [("ok", "")] * 4
    assert tried == [4, 2, 2]
    run(worker, "a", "b", "c")
    assert tried == [4, 2, 2, 1, 2]  # it is remembered


def test_the_time_limit_of_pairs_together_holds_for_their_halves_too(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer_batch = Stylizer.transfer_batch

    now = 0.0

    def slow(stylizer: Stylizer, requests: Sequence[Request]) -> object:
        nonlocal now
        if len(requests) > 2:
            raise MemoryError
        now += len(requests)
        return transfer_batch(stylizer, requests)

    monkeypatch.setattr(Stylizer, "transfer_batch", slow)
    monkeypatch.setattr("pipeline.paint.worker.time.monotonic", lambda: now)
    within = run(Worker(dataclasses.replace(job, timeout=1.5)), "a", "b", "c", "d")
    assert [r.status for r in within.values()] == ["ok"] * 4
    beyond = run(Worker(dataclasses.replace(job, timeout=0.9)), "a", "b", "c", "d")
    assert [r.status for r in beyond.values()] == ["timeout"] * 4


def test_groups_grow_again_after_a_want_of_memory_that_passed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, tried = 1, []
    transfer_batch = Stylizer.transfer_batch

    def short(stylizer: Stylizer, requests: Sequence[Request]) -> object:
        tried.append(len(requests))
        if len(requests) > fits:
            raise MemoryError
        return transfer_batch(stylizer, requests)

    monkeypatch.setattr(Stylizer, "transfer_batch", short)
    worker = Worker(job)
    run(worker, *"abcd")
    assert tried == [4, 2, 1, 1, 1, 1]
    fits, tried[:] = 4, []
    batches = [run(worker, *"abcd")["a"].batch for _ in range(4)]
    assert batches == [4] * 4  # one group to the time limit, however it is painted
    assert tried[-1] == 4
    assert len(tried) < 12
    fits = 1
    run(worker, *"abcd")
    tried[:] = []
    for _ in range(3):  # the second time it takes longer until more is tried
        run(worker, *"abcd")
    assert max(tried) <= 2


def test_a_gpu_that_others_have_filled_fails_no_pair_and_one_that_is_too_small_does(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(stylizer: Stylizer, requests: Sequence[Request]) -> object:
        raise MemoryError("no room")

    monkeypatch.setattr(Stylizer, "transfer_batch", short)
    row = run(Worker(job), "a")["a"]
    assert (row.status, row.too_large) == ("failed", True)
    monkeypatch.setattr("pipeline.paint.room.crowded", lambda device: "others hold 70 of 80 GB")
    with pytest.raises(DeviceFullError, match="others hold 70 of 80 GB"):
        run(Worker(job), "a", "b")


def test_a_row_says_whether_an_input_could_not_even_be_opened(job: Job) -> None:
    Path(job.folder, "a.png").unlink()
    Path(job.folder, "b.png").write_bytes(b"no picture")
    rows = run(Worker(job), "a", "b", "c")
    assert {name: (row.status, row.unopened) for name, row in rows.items()} == {
        "a": ("failed", True),
        "b": ("failed", False),
        "c": ("ok", False),
    }
