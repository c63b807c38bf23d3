"""OUT on object storage: whole runs by the real command against a real server on loopback."""

import datetime
import errno
import functools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from buckets import (
    HALF_GET,
    HALF_PUT,
    HERE,
    LOST,
    RESET,
    SECRET,
    UNCONDITIONAL,
    Answer,
    Bucket,
    Fault,
    Request,
    Studio,
    proxy,
)
from buckets import bucket as bucket
from buckets import studio as studio
from forks import cli, start
from helpers import TINY, begun, index_rows, soon, wait_for, write_csv

from pipeline import objects, read_index, storage
from pipeline.objects import StorageError
from pipeline.paint.backbones import local_weights
from pipeline.shard import Shard
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lease import Lease
from pipeline.store.lock import Lock, LockedError
from pipeline.store.log import RunLog
from pipeline.store.medium import Times
from pipeline.store.watch import look
from stylize import weights


def test_a_run_costs_two_requests_a_pair_and_a_resume_none(studio: Studio) -> None:
    costs = []
    for pairs in (41, 46):
        studio.fill(pairs, steps="1")
        before = 0 if pairs == 41 else 41
        done = studio.run()
        assert done.returncode == 0, done.stderr
        assert f"{pairs - before} painted" in done.stdout
        requests = studio.bucket.requests
        photos = Counter(r.key for r in requests if r.method == "GET" and r.key.endswith(".jpg"))
        assert set(photos.values()) == {1}
        assert len(photos) == pairs - before
        assert sum(r.key == "in/s.png" and r.method == "GET" for r in requests) == 1
        assert set(studio.puts().values()) == {1}
        assert len(studio.puts()) == pairs - before
        again = studio.run()
        assert again.returncode == 0, again.stderr
        assert f"0 painted, {pairs} done before" in again.stdout
        assert studio.puts() == {}
        assert studio.fetched_pictures() == []
        costs.append(studio.bucket.counted())
    # Whatever the number of pairs: listings, parts, the lock, run.json and the log.
    assert costs[1]["HEAD"] == 0
    assert studio.run("--shard", "1/3").returncode == 0
    assert sum(studio.bucket.counted().values()) - studio.bucket.counted()["HEAD"] < 40
    assert sum(costs[1].values()) <= sum(costs[0].values()) + 1  # one more part
    assert sum(costs[1].values()) < 40
    studio.check_whole(46)


POINTS = (
    "lock-taken",
    "run-json-renamed",
    "pair-begun@p1",
    "picture-temp-written",
    "picture-renamed",
    "record-returned@p3",
    "part-temp-written",
    "part-renamed",
    "part-written",
    "journal-deleted",
)


def test_a_driver_killed_at_each_point_in_turn_loses_nothing_and_paints_nothing_twice(
    studio: Studio,
) -> None:
    studio.fill(5)
    log = studio.folder / "begun"
    total: Counter[str] = Counter()
    repeated = 0
    for number, point in enumerate(POINTS):
        order = f"{point}:{studio.folder / f'flag{number}'}"
        done = studio.run(STYLIZE_CRASH_AT=order, STYLIZE_CRASH_LOG=str(log))
        total += studio.puts()
        assert studio.fetched_pictures() == []
        if done.returncode == 0:  # it had nothing left that comes by this point
            continue
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        repeated += point.startswith(("pair-begun", "picture-temp"))
        if len(total) == 5:  # all are painted: so that there is work again
            studio.bucket.delete(sorted(total)[0])
            del total[sorted(total)[0]]
            repeated += 1
    done = studio.run(STYLIZE_CRASH_LOG=str(log))
    assert done.returncode == 0, done.stderr
    studio.check_whole(5)
    assert sum(begun(log).values()) <= 5 + repeated


def test_a_long_pair_goes_on_from_what_was_kept_of_it_as_an_object(studio: Studio) -> None:
    studio.fill(1, steps="6")
    run = (*HERE, "--checkpoint-every", 4)
    killed = studio.run(*run, STYLIZE_CRASH_AT=f"picture-temp-written:{studio.folder / 'flag'}")
    assert killed.returncode == -signal.SIGKILL
    assert sum("/_state/checkpoints/" in key for key in studio.bucket.listed()) == 1
    done = studio.run(*run)
    assert done.returncode == 0, done.stderr
    assert index_rows(studio.out)["p0"]["notes"] == "went on from evaluation 4"
    studio.check_whole(1)


def test_a_picture_whose_driver_died_before_its_row_is_adopted_without_being_read(
    studio: Studio,
) -> None:
    studio.fill(3)
    flag = studio.folder / "flag"
    killed = studio.run(STYLIZE_CRASH_AT=f"record-returned@p2:{flag}")
    assert killed.returncode == -signal.SIGKILL
    painted = [studio.bucket.get(key) for key in sorted(studio.puts())]
    assert len(painted) == 3
    assert index_rows(studio.out) == {}
    plan = cli("plan", studio.manifest, "--out", studio.out, *TINY[:8])
    assert "0 to paint, 0 done, 3 to adopt" in plan.stdout
    assert "adopt  row 1  images/c0.s.p0.png  (finished, not in the index)" in plan.stdout
    again = studio.run()
    assert again.returncode == 0, again.stderr
    assert "0 painted, 3 done before" in again.stdout
    assert studio.fetched_pictures() == []
    assert [r.key for r in studio.bucket.requests if r.key.endswith(".jpg")].count("in/c0.jpg") == 1
    studio.check_whole(3)
    row = index_rows(studio.out)["p1"]
    assert (row["content"], row["row"], row["width"]) == ("c1.jpg", 2, 32)
    assert len(row["loss_curve"]) == row["steps"] == 3
    assert row["started_at"] < row["finished_at"]
    assert row["output_etag"]
    # Nothing but the put is known of a picture that somebody else has written since.
    (key,) = [key for key in studio.bucket.listed() if "c1" in key and "images" in key]
    studio.bucket.put(key, b"edited by hand")
    kept = studio.run()
    assert kept.returncode == 0
    assert "picture was edited by hand; it is kept" in kept.stderr
    assert studio.bucket.get(key) == b"edited by hand"


@pytest.mark.parametrize(
    "faults",
    [
        (Answer(503, "SlowDown"), RESET),
        (Answer(429, "SlowDown"), HALF_PUT),
        (LOST, 0.1),
        (HALF_GET,),
    ],
    ids=str,
)
def test_a_run_goes_on_whatever_fails_first_of_each_request_that_it_makes(
    studio: Studio, faults: tuple[Fault, ...]
) -> None:
    studio.fill(3)
    studio.bucket.page = 2  # so that listings have several pages
    seen: Counter[object] = Counter()

    def at_first(request: Request) -> Fault:
        asked = (request.method, request.key, tuple(sorted(request.query.items())))
        seen[asked] += 1
        return faults[seen[asked] - 1] if seen[asked] <= len(faults) else None

    studio.bucket.fault = at_first
    done = studio.run(before="from pipeline import objects; objects.FIRST_WAIT = 0.02")
    assert done.returncode == 0, done.stderr
    assert "3 painted" in done.stdout
    assert len(seen) > 15
    studio.bucket.fault = lambda request: None
    studio.check_whole(3)


# Less patient with a server that is away; or speaking of it sooner.
_HASTY = "from pipeline import objects; objects.PATIENCE, objects.HASTE = 2.0, 0.5"
_TALKATIVE = "from pipeline import objects; objects.LATE = 2.0"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_goes_away_in_mid_run_fails_no_pair(
    studio: Studio, *, comes_back: bool
) -> None:
    studio.fill(3)
    front = Bucket("studio", 0, studio.bucket.server_port)
    asked, gone = threading.Event(), threading.Event()

    def hold(request: Request) -> Fault:
        if request.key != "in/c1.jpg":
            return None
        asked.set()
        gone.wait(100)
        return RESET

    front.fault = hold
    arguments = (studio.manifest, "--out", studio.out, *TINY, *HERE)
    with proxy(front):
        env = {"AWS_ENDPOINT_URL": front.endpoint}
        run = start(*arguments, before=_TALKATIVE if comes_back else _HASTY, **env)
        assert asked.wait(100)
    gone.set()  # nobody listens at its address any more
    if comes_back:
        time.sleep(4)
        front.fault = lambda request: None
        with proxy(front):
            stdout, stderr = run.communicate(timeout=120)
        assert run.returncode == 0, stderr
        assert "3 pairs: 3 painted" in stdout
        assert "s3://studio has not answered for 2 s; waiting for it, 3 minutes at most" in stderr
    else:
        _, stderr = run.communicate(timeout=120)
        assert run.returncode == 5, stderr
        (line,) = [line for line in stderr.splitlines() if line.startswith("stylize-batch:")]
        assert "s3://studio does not answer as it should: " in line
        assert line.endswith("; run again when it does")
        assert index_rows(studio.out) == {}  # the row waits in its picture
        assert "3 pairs: 2 painted, 1 done before" in studio.run().stdout
    studio.check_whole(3)


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied"])
def test_credentials_that_end_in_mid_run_end_it_with_5_and_fail_no_pair(
    studio: Studio, code: str
) -> None:
    studio.fill(5)

    def expire(request: Request) -> Fault:
        begun = sum(r.method == "PUT" and "/images/" in r.key for r in studio.bucket.requests)
        return Answer(403, code) if begun > 2 else None

    studio.bucket.fault = expire
    done = studio.run()
    assert done.returncode == 5
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("stylize-batch:")]
    assert "s3://studio" in line
    assert ("have expired" if code == "ExpiredToken" else "access is refused") in line
    assert "AWS_ACCESS_KEY_ID" in line
    assert "Traceback" not in done.stderr
    studio.bucket.fault = lambda request: None
    again = studio.run()
    assert again.returncode == 0, again.stderr
    assert "3 painted, 2 done before" in again.stdout
    studio.check_whole(5)


def test_ctrl_c_is_seen_while_a_store_does_not_answer(studio: Studio) -> None:
    studio.fill(2)
    studio.bucket.fault = lambda request: 200.0 if request.key.endswith(".jpg") else None
    studio.bucket.requests.clear()
    command = start("validate", studio.manifest)
    try:
        wait_for(lambda: any(r.key.endswith(".jpg") for r in studio.bucket.requests))
        began = time.monotonic()
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=120)
    finally:
        command.kill()
    assert command.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert time.monotonic() - began < soon()


def test_a_bucket_that_is_not_there_is_a_5_and_a_missing_photograph_a_3(studio: Studio) -> None:
    studio.fill(2)
    for arguments in (
        (studio.manifest, "--out", "s3://nowhere/out", *TINY, *HERE),
        ("status", "s3://nowhere/out"),
        ("validate", "s3://nowhere/in/m.csv"),
    ):
        done = cli(*arguments)
        assert done.returncode == 5, done.stderr
        assert done.stderr.count("\n") == 1
        assert "there is no bucket 'nowhere' at s3://; make it, or correct the name" in done.stderr
    studio.bucket.delete("in/c1.jpg")
    done = studio.run()
    assert done.returncode == 3
    row = index_rows(studio.out)["p1"]
    assert row["status"] == "failed"
    assert "there is no such file at s3://studio/in/c1.jpg" in row["error_message"]
    checked = cli("validate", studio.manifest)
    assert checked.returncode == 2
    assert '"c1.jpg" does not exist' in checked.stderr


def test_outputs_that_cannot_be_objects_or_are_inputs_are_refused_before_anything_is_painted(
    studio: Studio,
) -> None:
    studio.fill(1, output="images/what?a=b.png")
    asked = studio.run()
    assert asked.returncode == 2
    assert '"images/what?a=b.png" contains a ?' in asked.stderr
    studio.fill(1, output="c0.jpg")
    over = cli(studio.manifest, "--out", f"{studio.bucket.uri}/in", *TINY, *HERE)
    assert over.returncode == 2
    assert '"c0.jpg" in "s3://studio/in" is the content of row 1' in over.stderr
    assert not any(key.startswith("out/") for key in studio.bucket.listed())
    web = cli(studio.manifest, "--out", "https://studio/out", *TINY, *HERE)
    assert web.returncode == 5
    assert "results cannot be written to https://; choose a folder, or a bucket" in web.stderr


def test_secrets_in_addresses_go_nowhere(studio: Studio) -> None:
    studio.fill(1)
    secret = f"s3://AKIDEXAMPLE:{SECRET}@studio"
    local = studio.folder / "m.csv"
    local.write_text(f"content,style\n{secret}/in/c0.jpg,s3://studio/in/s.png\n")
    for arguments in (
        (local, "--out", studio.out, *TINY, *HERE),
        (studio.manifest, "--out", f"{secret}/out", *TINY, *HERE),
        (f"{secret}/in/m.csv", "--out", studio.out, *TINY, *HERE),
        ("validate", local),
        ("status", f"{secret}/out"),
    ):
        done = cli(*arguments)
        assert done.returncode in (2, 5)
        assert "a key or password before the @" in done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert not any(SECRET in str(r.query) + r.key for r in studio.bucket.requests)
    options = f"?endpoint_override=127.0.0.1:{studio.bucket.port}&scheme=http"
    local.write_text(f"content,style\ns3://studio/in/c0.jpg{options},s3://studio/in/s.png\n")
    done = cli(local, "--out", studio.out, *TINY, *HERE)
    assert done.returncode == 0, done.stderr
    (key,) = [key for key in studio.bucket.listed() if "/images/" in key]
    assert "endpoint" not in key


def test_every_command_takes_such_an_out(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.fill(3)
    assert studio.run().returncode == 0
    monkeypatch.chdir(studio.folder)

    def told(*arguments: object) -> str:
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "3 ok" in told("status", studio.out)
    assert "3 done" in told("plan", studio.manifest, "--out", studio.out, *TINY[:8])
    assert told("montage", studio.out, "-o", "grid.png")
    assert (studio.folder / "grid.png").stat().st_size > 1000
    assert "out-report/report.html" in told("report", studio.out)
    thumbs = list((studio.folder / "out-report" / "report" / "thumbs").iterdir())
    assert len(thumbs) == 7  # three photographs, a style, three results
    assert "compacted" in told("compact", studio.out)
    assert [k for k in studio.bucket.listed() if k.startswith("out/index/")] == [
        "out/index/part-compact-000001.parquet"
    ]
    assert read_index(studio.out)["pair_id"].to_pylist() == ["p0", "p1", "p2"]
    write_csv(studio.folder / "less.csv", [{"id": "p0", "content": "c0.jpg"}])
    assert "2 pictures" in told("prune", studio.out, "-m", "less.csv")
    assert "removed 2 pictures" in told("prune", studio.out, "-m", "less.csv", "--yes")
    assert len([k for k in studio.bucket.listed() if "/images/" in k]) == 1
    for key in studio.bucket.listed():
        if key.startswith("out/index/"):
            studio.bucket.delete(key)
    assert "1 row made from pictures" in told("rebuild-index", studio.out)
    assert index_rows(studio.out)["p0"]["status"] == "ok"


def test_outputs_merge_to_object_storage_and_back_and_nothing_is_painted_again(
    studio: Studio,
) -> None:
    studio.fill(3)
    assert studio.run("--only", "p0", "--only", "p1").returncode == 0
    (edited,) = [key for key in studio.bucket.listed() if "c1" in key and "/images/" in key]
    studio.bucket.put(edited, b"edited by hand")
    here, whole, back = studio.folder / "here", f"{studio.bucket.uri}/whole", studio.folder / "back"
    assert cli(studio.manifest, "--out", here, *TINY, *HERE, "--only", "p2").returncode == 0
    for point in ("part-renamed", "part-temp-written"):  # of the empty index; after the pictures
        order = f"{point}:{studio.folder / point}"
        studio.bucket.requests.clear()
        killed = cli("merge", studio.out, here, "--out", whole, STYLIZE_CRASH_AT=order)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    copied = [r.method for r in studio.bucket.requests if "/images/" in r.key]
    assert Counter(copied) == {"GET": 2, "PUT": 3}
    merged = cli("merge", studio.out, here, "--out", whole)
    assert merged.returncode == 0, merged.stderr
    # Again only the one that was edited: nothing of it says that it is a copy.
    assert merged.stdout == f"{whole}: 3 rows, 1 picture copied\n"
    assert cli("merge", studio.out, here, "--out", whole).stdout.endswith(" 0 pictures copied\n")
    assert cli("merge", whole, "--out", back).stdout == f"{back}: 3 rows, 3 pictures copied\n"
    assert cli("merge", whole, "--out", back).stdout.endswith(" 0 pictures copied\n")
    for out in (whole, back):
        rows = index_rows(out)
        assert rows.keys() == {"p0", "p1", "p2"}
        assert all(row["loss_curve"] for row in rows.values())
        studio.bucket.requests.clear()
        done = cli(studio.manifest, "--out", out, *TINY, *HERE)
        assert "3 pairs: 0 painted, 2 done before, 1 skipped" in done.stdout, done.stderr
        assert "picture was edited by hand; it is kept" in done.stderr
        fetched = [r.key for r in studio.bucket.requests if r.method == "GET" and "images" in r.key]
        assert set(fetched) <= {edited.replace("out/", "whole/", 1)}
    # The copies carry their rows: a lost index costs nothing there either.
    for key in studio.bucket.listed():
        if key.startswith("whole/index/"):
            studio.bucket.delete(key)
    studio.bucket.requests.clear()
    done = cli(studio.manifest, "--out", whole, *TINY, *HERE)
    assert "0 painted, 2 done before" in done.stdout


def test_a_damaged_part_is_set_aside_and_its_rows_are_made_again(studio: Studio) -> None:
    studio.fill(2)
    assert studio.run().returncode == 0
    (part,) = [k for k in studio.bucket.listed() if k.endswith("-000001.parquet")]
    studio.bucket.put(part, studio.bucket.get(part)[:500])
    done = studio.run()
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert "0 painted, 2 done before" in done.stdout
    assert part.replace("index", "_state/damaged") in studio.bucket.listed()


def test_small_parts_are_joined_while_a_run_goes_on(bucket: Bucket) -> None:
    from test_index import result

    out = OutFolder(f"{bucket.uri}/out")
    with Lock(out, "r1"), Index(out, "r1", seconds_per_part=0) as index:
        for number in range(50):
            index.append(result(f"p{number}"))
            assert len([k for k in bucket.listed() if k.endswith(".parquet")]) <= 17
    assert set(read_index(str(out))["pair_id"].to_pylist()) == {f"p{n}" for n in range(50)}


# Several drivers

# As on another machine, where a lock is given up early.
_ELSEWHERE = """
from pipeline.store import bucket, lease
from pipeline.store.medium import Times
lease._machine = lambda: {machine!r}
bucket.TIMES = Times(0.5, dead=3.0, look=0.5, unsure=100.0)
"""


def test_three_drivers_at_once_of_which_one_is_killed_and_started_again_elsewhere(
    studio: Studio,
) -> None:
    studio.fill(11)
    log = studio.folder / "begun"
    shard_of = {
        f"in/c{n}.jpg": str(shard)
        for n in range(11)
        for shard in (Shard(1, 3), Shard(2, 3), Shard(3, 3))
        if shard.has(f"p{n}")
    }
    sizes = Counter(shard_of.values())
    assert min(sizes.values()) >= 2
    goes_on, asked = threading.Event(), Counter[str]()

    def hold(request: Request) -> Fault:
        """Each driver paints one pair, and waits for its second photograph."""
        shard = shard_of.get(request.key)
        if shard and request.method == "GET":
            asked[shard] += 1
            if asked[shard] > 1:
                goes_on.wait(100)
        return None

    def arguments(shard: str) -> tuple[object, ...]:
        return (studio.manifest, "--out", studio.out, *TINY, *HERE, "--shard", shard)

    env = {"STYLIZE_CRASH_LOG": str(log)}
    studio.bucket.fault = hold
    drivers = {shard: start(*arguments(shard), **env) for shard in ("1/3", "3/3")}
    first, second = (_ELSEWHERE.format(machine=name) for name in ("first", "second"))
    drivers["2/3"] = start(*arguments("2/3"), before=first, **env)
    try:
        wait_for(lambda: sum("/images/" in key for key in studio.bucket.listed()) == 3)
        wait_for(lambda: len(asked) == 3 and min(asked.values()) >= 2)
        status = cli("status", studio.out).stdout
        assert all(f"at work: shard {shard}: process" in status for shard in drivers)
        drivers["2/3"].kill()
        for refused in (studio.run(), studio.run("--shard", "1/2")):
            assert refused.returncode == 5
            assert "of 3 (shard 1/3: process" in refused.stderr
            assert "cannot be painted beside them; use --shard I/3" in refused.stderr
        drivers["2/3"] = start(*arguments("2/3"), before=second, **env)
        goes_on.set()
        said = {}
        for shard, driver in drivers.items():
            stdout, said[shard] = driver.communicate(timeout=120)
            assert driver.returncode == 0, said[shard]
            assert f"shard {shard}, {sizes[shard]} pairs: " in stdout
    finally:
        goes_on.set()
        for driver in drivers.values():
            driver.kill()
    assert "waiting to see whether it is alive: 3 seconds at most" in said["2/3"]
    assert sum(begun(log).values()) == 12  # the one in hand was begun again
    studio.check_whole(11)  # the last one merged what all have left
    parts = [key for key in studio.bucket.listed() if key.endswith(".parquet")]
    assert cli("status", studio.out).stdout == "11 ok\n"
    done = studio.run()
    assert "11 pairs: 0 painted, 11 done before" in done.stdout
    assert parts == [key for key in studio.bucket.listed() if key.endswith(".parquet")]


def test_a_run_is_watched_from_beside_it(studio: Studio) -> None:
    studio.fill(3)
    goes_on = threading.Event()

    def hold(request: Request) -> Fault:
        if request.key == "in/c2.jpg":
            goes_on.wait(100)
        return None

    studio.bucket.fault = hold
    run = start(studio.manifest, "--out", studio.out, *TINY, *HERE)
    try:
        wait_for(lambda: sum("/images/" in key for key in studio.bucket.listed()) == 2)
        out, plans, now = (
            OutFolder(studio.out),
            dict[str, Any](),
            datetime.datetime.now(datetime.UTC),
        )
        assert str(look(out, now, plans)) == (
            "no rows yet, 3 left; 0 pairs an hour; 1 run at work"  # rows come with the first part
        )
        studio.bucket.requests.clear()
        look(out, now, plans)
        assert studio.bucket.counted() == {"LIST": 2, "GET": 1}  # index, locks, and the lock
        goes_on.set()
        assert run.wait(100) == 0
    finally:
        goes_on.set()
        run.kill()
    assert str(look(out, now, plans)) == "3 ok; no run is at work"


def test_a_log_is_put_half_a_minute_after_a_line_even_if_no_other_comes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.bucket._LOG_SECONDS", 0.3)
    with RunLog(OutFolder(f"{bucket.uri}/out"), "r1") as log:
        for event in ("first", "second"):
            log.write(event)
            wait_for(functools.partial(_has, bucket, "out/_state/log/r1.jsonl", event), 20)


def _has(bucket: Bucket, key: str, text: str) -> bool:
    return key in bucket.listed() and text in bucket.get(key).decode()


# The lock


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are renewed every moment, and given up in a minute."""
    give_up(monkeypatch)


def give_up(monkeypatch: pytest.MonkeyPatch, *, dead: float = 60.0, unsure: float = 50.0) -> None:
    monkeypatch.setattr("pipeline.store.bucket.TIMES", Times(0.2, dead, 0.3, unsure))


def lease(bucket: Bucket, run: str) -> Lease:
    """The lock as a process of another machine takes it."""
    holder = {"pid": 1, "host": "elsewhere", "run_id": run, "started": "now", "machine": run}
    locks = OutFolder(f"{bucket.uri}/out").medium.locks()
    return Lease(f"{bucket.uri}/out", locks, "lock", holder, locks.look("lock"))


def test_a_second_driver_is_refused_as_soon_as_the_first_shows_life(
    bucket: Bucket, quick: None
) -> None:
    out, first = OutFolder(f"{bucket.uri}/out"), lease(bucket, "r1")
    began = time.monotonic()
    with pytest.raises(LockedError, match=r"in use by process 1 on elsewhere \(run r1"):
        Lock(out, "r2")
    assert time.monotonic() - began < 30
    first.check()
    first.release()
    first.release()
    Lock(out, "r2").release()
    assert bucket.listed() == []


def test_a_lease_that_stands_still_is_taken_over_and_its_holder_ends(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(monkeypatch, dead=2.0)
    first = lease(bucket, "r1")
    first._ended.set()  # its process stands still
    first._thread.join()
    began, said = time.monotonic(), []
    second = Lock(OutFolder(f"{bucket.uri}/out"), "r2", say=lambda line: said.append(line))
    assert time.monotonic() - began >= 1.9
    assert said == ["elsewhere holds it; waiting to see whether it is alive: 2 seconds at most"]
    second.check()
    first._ended.clear()  # and goes on
    thread = threading.Thread(target=first._renew)
    thread.start()
    wait_for(lambda: first._lost)
    with pytest.raises(StorageError, match="taken over by another run"):
        first.check()
    thread.join()
    first.release()
    assert json.loads(bucket.get("out/_state/lock"))["run_id"] == "r2"
    second.release()


def test_a_holder_that_cannot_renew_stops_writing_in_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up(monkeypatch, unsure=1.5)
    held = lease(bucket, "r1")
    bucket.fault = lambda request: Answer(403, "AccessDenied")
    time.sleep(2)
    with pytest.raises(StorageError, match=r"could not be renewed for .* access is refused"):
        held.check()
    bucket.fault = lambda request: None
    wait_for(lambda: _checks(held))
    held.release()


def _checks(held: Lease) -> bool:
    try:
        held.check()
    except StorageError:
        return False
    return True


def test_the_lease_of_a_process_of_this_machine_that_died_is_taken_at_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before whoever has to wait looks again.
    monkeypatch.setattr("pipeline.store.bucket.TIMES", Times(30.0, 600.0, 60.0, 240.0))
    code = (
        "import os, signal\nfrom pipeline.store.folder import OutFolder\n"
        "from pipeline.store.lock import Lock\n"
        f"lock = Lock(OutFolder('{bucket.uri}/out'), 'r1')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert bucket.listed() == ["out/_state/lock"]
    began = time.monotonic()
    Lock(OutFolder(f"{bucket.uri}/out"), "r2").release()
    assert time.monotonic() - began < 40
    assert bucket.listed() == []


def test_a_store_without_conditions_is_refused_with_the_reason(bucket: Bucket) -> None:
    bucket.fault = lambda request: UNCONDITIONAL
    with pytest.raises(StorageError, match="ignores conditions on writes"):
        Lock(OutFolder(f"{bucket.uri}/out"), "r1")
    assert bucket.listed() == []


def test_a_part_that_another_run_has_put_is_not_written_over(bucket: Bucket) -> None:
    from test_index import result

    out = OutFolder(f"{bucket.uri}/out")
    with Lock(out, "r1"):
        index = Index(out, "r1")
        index.append(result("a"))
        bucket.put("out/index/part-r1-000001.parquet", b"of another")
        with pytest.raises(StorageError, match="is there already, so another run writes here"):
            index.seal()
    assert bucket.get("out/index/part-r1-000001.parquet") == b"of another"


def test_a_worker_that_dies_after_its_put_costs_nothing_on_ray(studio: Studio) -> None:
    studio.fill(3)
    log, flag = studio.folder / "begun", studio.folder / "flag"
    done = studio.run_on_ray(
        "--workers",
        1,
        STYLIZE_CRASH_AT=f"picture-renamed:{flag}",
        STYLIZE_CRASH_LOG=str(log),
    )
    assert done.returncode == 0, done.stderr
    assert flag.exists()
    assert set(begun(log).values()) == {1}
    assert set(studio.puts().values()) == {1}
    assert studio.fetched_pictures() == []
    studio.check_whole(3)


def test_nodes_fetch_the_weights_below_out_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STYLIZE_CACHE", str(tmp_path))
    name, sha256 = weights.identity(weights.BUNDLED)
    uri = OutFolder(f"{bucket.uri}/out").weights(name, sha256)
    storage.put(uri, weights.BUNDLED.read_bytes())
    bucket.requests.clear()
    assert weights.identity(local_weights(uri)) == (name, sha256)
    assert local_weights(uri).is_relative_to(tmp_path)
    assert bucket.counted() == {"GET": 1}
    assert local_weights(str(weights.BUNDLED)) == weights.BUNDLED


def test_objects_carry_their_row_and_files_do_not(studio: Studio) -> None:
    from pipeline.store.metadata import attributes, carried, from_attributes

    studio.fill(1)
    assert studio.run().returncode == 0
    (key,) = studio.puts()
    head = objects.head(f"{studio.bucket.uri}/{key}")
    row = from_attributes(head.attributes)
    assert row is not None
    assert head.attributes["stylizekey"] == row.key
    from_bytes = carried(studio.bucket.get(key))
    assert from_bytes is not None
    assert (row.key, row.loss, row.output_sha256) == (
        from_bytes.key,
        from_bytes.loss,
        from_bytes.output_sha256,
    )
    assert all(source.stat for source in row.inputs)
    assert sum(len(name) + len(text) for name, text in head.attributes.items()) < 2000
    recorded = index_rows(studio.out)["p0"]
    assert row.started_at == recorded["started_at"].isoformat()
    assert 0 < (row.seconds or 0) <= recorded["seconds"]
    assert row.started_at < row.finished_at <= recorded["finished_at"].isoformat()
    # The curve, to three digits; of one that is long every second step, or third, as far as S3 has
    # room, and the last.
    assert [list(step) for step in row.loss_curve] == [
        pytest.approx(list(step.values()), rel=4e-3) for step in recorded["loss_curve"]
    ]
    chance = random.Random(0)
    for length, least in ((40, 40), (140, 30), (1000, 30)):
        curve = tuple((n, n / 3, *(1e6 * chance.random() for _ in range(4))) for n in range(length))
        # Plain tuples, whose length mypy cannot count through the star.
        carries = attributes(replace(row, loss_curve=curve))  # type: ignore[arg-type]
        assert sum(len(name) + len(text) for name, text in carries.items()) < 2000
        back = from_attributes(carries)
        assert back is not None
        assert replace(back, loss_curve=()) == replace(row, loss_curve=())
        assert len(back.loss_curve) >= least
        steps = {step[0]: step for step in curve}
        assert all(step == pytest.approx(steps[step[0]], rel=4e-3) for step in back.loss_curve)
        assert back.loss_curve[-1][0] == length - 1
    long = replace(row, notes=secrets.token_hex(2000))
    assert attributes(long).keys() == {"stylizekey"}  # S3 has room for no more


def test_each_part_of_the_index_is_fetched_once_by_a_plan_and_by_a_run_with_nothing_to_do(
    studio: Studio,
) -> None:
    studio.fill(4)
    for _ in range(4):
        assert studio.run("--limit", 1).returncode == 0  # a part each
    parts = [key for key in studio.bucket.listed() if key.startswith("out/index/")]
    assert len(parts) == 5
    where = studio.manifest, "--out", studio.out
    for command in (("plan", *where, *TINY[:8]), (*where, *TINY, *HERE)):
        studio.bucket.requests.clear()
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        fetched = Counter(r.key for r in studio.bucket.requests if r.method == "GET")
        assert {key: fetched[key] for key in parts} == dict.fromkeys(parts, 1)
        assert studio.bucket.counted()["LIST"] < 20


def test_a_large_part_is_read_piece_by_piece_and_what_broke_off_comes_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_index import result

    monkeypatch.setattr(objects, "_PIECE", 2000)
    monkeypatch.setattr(objects, "_CHUNK", 500)
    out = OutFolder(f"{bucket.uri}/out")
    with Lock(out, "r1"), Index(out, "r1") as index:
        index.extend([result(f"p{n}") for n in range(40)])
    (part,) = [key for key in bucket.listed() if key.endswith("-000001.parquet")]
    size = len(bucket.get(part))
    pieces = [f"bytes={at}-{min(at + 2000, size) - 1}" for at in range(0, size, 2000)]
    assert len(pieces) > 2
    seen: Counter[str] = Counter()

    def half(request: Request) -> Fault:
        if request.key != part:
            return None
        piece = request.headers["range"]
        seen[piece] += 1
        return HALF_GET if piece == pieces[1] and seen[piece] == 1 else None

    bucket.fault = half
    bucket.requests.clear()
    assert len(read_index(f"{bucket.uri}/out")) == 40
    assert seen.keys() > set(pieces)
    assert sum(seen.values()) == len(pieces) + 1  # the rest of the one that broke off


def test_a_full_folder_for_temporary_files_is_named_and_none_at_all_is_no_hindrance(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_index import result

    out = OutFolder(f"{bucket.uri}/out")
    with Lock(out, "r1"), Index(out, "r1") as index:
        index.append(result("a"))

    def fails(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        with pytest.raises(StorageError, match=r"No space left on device; .* set TMPDIR"):
            read_index(f"{bucket.uri}/out")
    monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    assert len(read_index(f"{bucket.uri}/out")) == 1
