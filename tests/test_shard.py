"""Several drivers for one manifest and one OUT, each with its shard, at the same time."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from azurite import container as container
from buckets import bucket as bucket
from forks import cli as forked
from forks import start
from helpers import (
    TINY,
    Gate,
    check_whole,
    journal_lines,
    pictures,
    statuses,
    wait_for,
    write_csv,
)

from pipeline.paint.backbones import Backbones, GivenWeights, UnableError
from pipeline.records import Result
from pipeline.shard import Shard, parse_shard
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock, LockedError, at_work
from pipeline.store.reading import read_results
from stylize.errors import ConfigError

HERE = ("--in-process", *TINY)


def test_every_pair_belongs_to_exactly_one_shard_and_they_are_of_like_size() -> None:
    ids = [f"pair-{n}" for n in range(3000)]
    for count in (2, 3, 7):
        shards = [Shard(number, count) for number in range(1, count + 1)]
        assert all(sum(shard.has(pair_id) for shard in shards) == 1 for pair_id in ids)
        sizes = [sum(shard.has(pair_id) for pair_id in ids) for shard in shards]
        assert max(sizes) < 1.3 * min(sizes)
    assert Shard(1, 3).has("\udcff") in (True, False)  # a name that is not UTF-8


def slurm(task: int, count: int, **more: int) -> dict[str, str]:
    values = {"ID": task, "COUNT": count, **more}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environ", "shard"),
    [
        ("", {}, None),
        ("2/3", {}, Shard(2, 3)),
        ("1/1", {}, None),
        ("slurm", slurm(3, 3), Shard(3, 3)),
        ("slurm", slurm(0, 3, MIN=0, STEP=1), Shard(1, 3)),
        ("slurm", slurm(9, 4, MIN=3, STEP=2), Shard(4, 4)),
        ("slurm", slurm(7, 1, MIN=7), None),
    ],
    ids=str,
)
def test_a_shard_is_named_or_comes_from_slurm(
    text: str, environ: dict[str, str], shard: Shard | None
) -> None:
    assert parse_shard(text, environ) == shard


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("0/3", {}, "0/3; the parts of n are 1/n to n/n"),
        ("4/3", {}, "4/3; the parts"),
        ("a third", {}, "'a third'; write it like 1/3, or slurm"),
        ("slurm", {}, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT are not set"),
        ("slurm", slurm(9, 3, MIN=1), "give the array ids without gaps, like --array=1-3"),
    ],
    ids=str,
)
def test_a_shard_that_is_none_is_refused(text: str, environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_shard(text, environ)
    assert words in str(refused.value)


@pytest.fixture(params=["disk", "bucket", "container"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> OutFolder:
    """An OUT of each kind."""
    if request.param == "disk":
        return OutFolder(tmp_path / "out")
    place = request.getfixturevalue(request.param)
    return OutFolder(f"{getattr(place, 'uri', place)}/out")


@pytest.fixture
def locks() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_shards_of_one_number_go_together_and_all_else_is_refused_with_the_reason(
    out: OutFolder, locks: ExitStack
) -> None:
    one = locks.enter_context(Lock(out, "r1", Shard(1, 3)))
    locks.enter_context(Lock(out, "r3", Shard(3, 3)))
    assert [line.partition(":")[0] for line in at_work(out)] == ["shard 1/3", "shard 3/3"]
    for shard, words in (
        (Shard(1, 3), f"has its shard 1/3: process {os.getpid()} on "),
        (Shard(2, 4), "in use by 2 shards of 3 (shard 1/3: process"),
        (None, "use --shard I/3, wait until they are done, or choose another --out"),
    ):
        with pytest.raises(LockedError) as refused:
            Lock(out, "r9", shard)
        assert words in str(refused.value)
        assert not refused.value.passes_soon
    locks.enter_context(Lock(out, "r2", Shard(2, 3)))
    assert not one.alone()


def test_a_shard_is_refused_beside_a_whole_run_and_waits_for_one_that_tidies_up(
    out: OutFolder,
) -> None:
    with Lock(out, "whole"), pytest.raises(LockedError, match="run whole, since") as refused:
        Lock(out, "r1", Shard(1, 3))
    assert not refused.value.passes_soon
    with Lock(out, "r1", Shard(1, 3)) as last:
        assert last.alone()
        with pytest.raises(LockedError) as refused:
            Lock(out, "r2", Shard(2, 3))
        assert refused.value.passes_soon
    with Lock(out, "whole"):
        assert at_work(out)
    assert at_work(out) == []


def at_once(*works: Callable[[], object]) -> list[object]:
    """What each returns, or the `LockedError` that it raises."""
    begin = threading.Barrier(len(works))

    def one(work: Callable[[], object]) -> object:
        begin.wait()
        try:
            return work()
        except LockedError as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


def test_of_shards_that_end_at_once_one_tidies_up_and_no_run_begins_beside_a_shard(
    out: OutFolder,
) -> None:
    for _ in range(5):
        shards = [Lock(out, f"r{number}", Shard(number, 3)) for number in (1, 2, 3)]
        assert sorted(map(bool, at_once(*(lock.alone for lock in shards)))) == [False, False, True]
        for lock in shards:
            lock.release()
        both = at_once(lambda: Lock(out, "whole"), lambda: Lock(out, "r1", Shard(1, 2)))
        got = [lock for lock in both if isinstance(lock, Lock)]
        assert len(got) <= 1
        for lock in got:
            lock.release()


def row(pair_id: str, **changes: Any) -> Result:
    facts = {"row": 1, "content": "c", "style": "s", "output": f"images/{pair_id}.png"}
    return Result(**{"pair_id": pair_id, "status": "ok", **facts, **changes})


def test_a_shard_leaves_the_journals_of_others_alone_and_its_rows_are_the_newest(
    tmp_path: Path,
) -> None:
    out = OutFolder(tmp_path / "out")
    whole = Index(out, "whole")  # killed: never closed
    whole.append(row("a", loss=1.0))
    alone = False
    first = Index(out, "x.1-of-2", shard=Shard(1, 2), alone=lambda: alone)
    assert first.epoch > whole.epoch
    first.append(row("a", loss=2.0))
    other = Index(out, "y.2-of-2", shard=Shard(2, 2), alone=lambda: alone)
    other.append(row("b"))
    killed = Index(out, "z.1-of-2", shard=Shard(1, 2), alone=lambda: alone)  # the first came again
    assert {name.partition("-0")[0] for name in os.listdir(out.journal)} == {"whole", "y.2-of-2"}
    assert read_results(out)["a"].loss == 2.0
    other.close()
    killed.append(row("c"))
    alone = True
    last = Index(out, "w.2-of-2", shard=Shard(2, 2), alone=lambda: alone)
    last.close()
    assert os.listdir(out.journal) == []
    assert sorted(read_results(out)) == ["a", "b", "c"]
    assert read_results(out)["a"].loss == 2.0


def test_shards_that_would_begin_with_different_weights_do_not(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    (tmp_path / "out" / "_state").mkdir(parents=True)
    given = GivenWeights("", "torchvision")
    backbones = Backbones(out, given, print)
    backbones.sha256("vgg16")
    out.fix(backbone="vgg19", weights={"vgg16": "0" * 64})  # by another shard, meanwhile
    with pytest.raises(UnableError, match="another shard has begun this output with vgg19"):
        backbones.fix()


def test_three_drivers_at_once_of_which_one_is_killed_and_started_again(
    tmp_path: Path, gate: Gate
) -> None:
    pictures(tmp_path, 12)
    rows = [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in range(12)]
    path = write_csv(tmp_path / "m.csv", rows)
    out = tmp_path / "m"
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    mine = {str(shard): [r["id"] for r in rows if shard.has(str(r["id"]))] for shard in shards}
    assert all(len(ids) >= 2 for ids in mine.values())
    env = gate.env(*(ids[1] for ids in mine.values()))  # each has one pair done, and one in hand
    drivers = {s: start(path, *HERE, "--shard", s, **env) for s in mine}
    try:
        wait_for(lambda: all(gate.begun()[ids[1]] for ids in mine.values()))
        wait_for(lambda: journal_lines(out) == 3)
        drivers["2/3"].kill()
        status = forked("status", out)
        assert "at work: shard 1/3: process" in status.stdout
        assert "at work: shard 3/3: process" in status.stdout
        assert "shard 2/3" not in status.stdout
        for refused in (forked(path, *HERE), forked(path, *HERE, "--shard", "1/2")):
            assert refused.returncode == 5
            assert "of 3 (shard " in refused.stderr
        drivers["2/3"] = start(path, *HERE, "--shard", "2/3", **env)
        gate.open()
        for shard, driver in drivers.items():
            stdout, stderr = driver.communicate(timeout=120)
            assert driver.returncode == 0, stderr
            assert f"shard {shard}, {len(mine[shard])} pairs: " in stdout
    finally:
        for driver in drivers.values():
            driver.kill()
    assert statuses(out) == {f"g{n}": "ok" for n in range(12)}
    assert sum(gate.begun().values()) == 13  # the one in hand was begun again
    check_whole(out)  # the last one merged what all have left
    assert forked("status", out).stdout == "12 ok\n"
    done = forked(path, *HERE)
    assert "12 pairs: 0 painted, 12 done before" in done.stdout
