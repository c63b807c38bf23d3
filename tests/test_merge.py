"""Several output folders become one, or are refused before anything is written."""

import os
from pathlib import Path

import pytest
from forks import cli
from helpers import TINY, check_whole, index_rows, picture, pictures, write_csv

from pipeline.store.folder import OutFolder
from pipeline.store.lock import Lock

FAST = ("--in-process", *TINY)


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """A manifest of four pairs, painted as two manifests; the last one has no photograph."""
    pictures(tmp_path, 3)
    rows = [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in range(4)]
    write_csv(tmp_path / "all.csv", rows)
    for name, part in (("a", rows[:2]), ("b", rows[2:])):
        done = cli(write_csv(tmp_path / f"{name}.csv", part), *FAST)
        assert done.returncode in (0, 3), done.stderr
    return tmp_path / "a", tmp_path / "b"


def test_two_halves_become_one_and_nothing_of_it_is_painted_again(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = halves
    whole = tmp_path / "whole"
    before = {path: path.stat().st_mtime_ns for out in halves for path in out.rglob("*")}
    merged = cli("merge", a, b, "--out", whole)
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout == f"{whole}: 4 rows, 3 pictures copied\n"
    check_whole(whole)
    assert before == {path: path.stat().st_mtime_ns for out in halves for path in out.rglob("*")}
    rows = index_rows(whole)
    for out in halves:
        for pair_id, row in index_rows(out).items():
            assert rows[pair_id] == row  # loss curves and the run that painted it, too
    assert rows["g0"]["loss_curve"]
    picture(tmp_path / "c3.jpg", 3)
    done = cli(tmp_path / "all.csv", *FAST, "--out", whole)
    assert "4 pairs: 1 painted, 3 done before" in done.stdout
    check_whole(whole)
    again = cli("merge", a, b, "--out", whole)  # it has the newer row of the pair that failed
    assert again.stdout == f"{whole}: 4 rows, 0 pictures copied\n"
    assert index_rows(whole)["g3"]["status"] == "ok"
    check_whole(whole)


def test_a_merge_that_was_killed_is_carried_on(halves: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    points = ("part-temp-written", "part-renamed", "part-renamed", "run-json-renamed")
    for number, point in enumerate(points):
        order = f"{point}:{tmp_path / str(number)}"
        killed = cli("merge", *halves, "-o", whole, STYLIZE_CRASH_AT=order)
        assert killed.returncode == -9, (point, killed.stderr)
    assert cli("merge", *halves, "-o", whole).returncode == 0
    check_whole(whole)
    assert len(index_rows(whole)) == 4


def test_what_clashes_is_named_and_nothing_is_written(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    a, _ = halves
    rows: list[dict[str, object]] = [
        {"id": "g0", "content": "c0.jpg", "steps": 4, "output": ""},
        {"id": "x1", "content": "c1.jpg", "steps": "", "output": "images/C1.s.g1.png"},
    ]
    other = tmp_path / "c"
    assert cli(write_csv(tmp_path / "c.csv", rows), *FAST).returncode == 0
    refused = cli("merge", a, other, "--out", tmp_path / "whole")
    assert refused.returncode == 2
    assert '"g0" has different pictures in' in refused.stderr
    assert '"images/C1.s.g1.png" is the output of "g1"' in refused.stderr
    assert "2 problems; nothing was merged" in refused.stderr
    assert not (tmp_path / "whole").exists()
    OutFolder(other).fix(weights={"vgg16": "0" * 64})
    refused = cli("merge", a, other, "--out", tmp_path / "whole")
    assert "the weights of vgg16: " in refused.stderr


def test_a_folder_that_a_run_is_writing_to_is_refused(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    with Lock(OutFolder(halves[0]), "r9"):
        refused = cli("merge", *halves, "--out", tmp_path / "whole")
    assert refused.returncode == 5
    assert f"is in use by process {os.getpid()}" in refused.stderr
    assert cli("merge", tmp_path, "--out", tmp_path / "whole").returncode == 2


def test_a_picture_that_is_gone_is_named_and_painted_by_the_next_run(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = halves
    whole = tmp_path / "whole"
    (a / index_rows(a)["g0"]["output"]).unlink()
    merged = cli("merge", a, b, "--out", whole)
    assert merged.returncode == 0, merged.stderr
    assert "images/c0.s.g0.png: the picture is missing; the next run paints it" in merged.stderr
    assert merged.stdout == f"{whole}: 4 rows, 2 pictures copied\n"
    picture(tmp_path / "c3.jpg", 3)
    done = cli(tmp_path / "all.csv", *FAST, "--out", whole)
    assert "4 pairs: 2 painted, 2 done before" in done.stdout
    check_whole(whole)
