"""The index: nothing lost by kills at any point, damage set aside, readable at every moment."""

import dataclasses
import datetime
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.records import Input, Result
from pipeline.shard import Shard
from pipeline.storage import StorageError
from pipeline.store.folder import Fixed, OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock, LockedError, at_work
from pipeline.store.medium import Times
from pipeline.store.reading import read_index, read_results
from pipeline.store.rows import SCHEMA, Stamp, newest, to_table

CURVE = tuple((i, i / 2, 8.0 / (i + 1), 4.0 / (i + 1), 3.0 / (i + 1), 1.0) for i in range(3))


def result(pair_id: str = "a", **changes: Any) -> Result:
    ok = changes.get("status", "ok") == "ok"
    values: dict[str, Any] = {
        "pair_id": pair_id,
        "row": 1,
        "content": "c.jpg",
        "style": "s.jpg",
        "output": f"images/{pair_id}.png",
        "status": "ok",
        "key": f"key of {pair_id}" if ok else "",
        "inputs": (Input("content", "c.jpg", "1:2", "aa"), Input("style", "s.jpg", "3:4", "bb")),
        "output_sha256": "pp" if ok else "",
        "output_bytes": 1234 if ok else None,
        "settings": '{"size":64}',
        "loss": 2.5 if ok else None,
        "loss_curve": CURVE if ok else (),
        "seconds": 0.25,
        "started_at": "2025-01-02T03:04:05.678901+00:00",
        "finished_at": "2025-01-02T03:04:06+00:00",
        "meta": {"shot": "12 ü"},
    }
    return Result(**{**values, **changes})


def fill(out: Path, run_id: str, *names: str, **options: Any) -> None:
    """One clean run that does the named pairs."""
    with Index(OutFolder(out), run_id, **options) as index:
        for name in names:
            index.append(result(name))


def parts(out: Path) -> list[str]:
    """Files in index/, but for the part without rows that keeps a new index readable."""
    return sorted(n for n in os.listdir(out / "index") if not n.endswith("-000000.parquet"))


def journals(out: Path) -> list[str]:
    return sorted(os.listdir(out / "_state" / "journal"))


# What is stored


def test_schema_has_the_columns_of_the_contract_in_order() -> None:
    columns = (
        "pair_id key row content style output inputs output_sha256 output_bytes settings preset "
        "backbone weights_sha256 algorithm status error_type error_message attempt notes width "
        "height steps evaluations stop_reason loss content_loss style_loss tv_loss loss_curve "
        "seconds device dtype threads batch host peak_memory run_id epoch seq version "
        "schema_version started_at finished_at meta generated_id output_etag tile compile"
    )
    assert SCHEMA.names == columns.split()
    fields = {field.name for field in dataclasses.fields(Result)}
    assert set(SCHEMA.names) == fields - {"traceback", "unopened", "too_large", "checkpoint"}
    assert SCHEMA.field("loss").type == pa.float64()
    assert SCHEMA.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert SCHEMA.field("meta").type == pa.map_(pa.string(), pa.string())
    assert SCHEMA.field("seconds").metadata == {b"unit": b"s"}
    assert all(field.nullable for field in SCHEMA)


def test_a_result_comes_back_as_it_was_with_run_epoch_and_seq(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1") as index:
        written = index.append(result())
        bare = index.append(Result("b", 2, "c", "s", "b.png", "failed"))
    assert (written.run_id, written.epoch, written.seq, bare.seq) == ("r1", 1, 1, 2)
    read = read_results(OutFolder(tmp_path))
    later = "2025-01-02T03:04:06.000000+00:00"  # Parquet has microseconds
    assert read["a"] == dataclasses.replace(written, loss_curve=(), finished_at=later)
    assert read["b"] == bare
    table = read_index(str(tmp_path))
    assert table.schema.equals(SCHEMA)
    row = table.to_pylist()[0]
    moment = datetime.datetime(2025, 1, 2, 3, 4, 5, 678901, datetime.UTC)
    assert row["started_at"] == moment
    assert [step["loss"] for step in row["loss_curve"]] == [8.0, 4.0, pytest.approx(8 / 3)]
    assert row["meta"] == [("shot", "12 ü")]


def test_names_that_are_no_utf8_and_odd_numbers_do_not_stop_the_index(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.jpg")
    odd = result(content=name, meta={name: name}, loss=float("nan"), tv_loss=1e300, host="\0\n")
    fill(tmp_path, "r0", "b")
    with Index(OutFolder(tmp_path), "r1") as index:
        index.append(odd)
    read = read_results(OutFolder(tmp_path))["a"]
    assert read.content == "a\\udcff.jpg"
    assert read.meta == {"a\\udcff.jpg": "a\\udcff.jpg"}
    assert read.loss != read.loss
    assert (read.tv_loss, read.host) == (1e300, "\0\n")


def test_an_impossible_value_is_refused_before_it_reaches_the_journal(tmp_path: Path) -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"width": "wide"},
        {"width": 2**31},
        {"peak_memory": 2**63},
        {"loss": "small"},
        {"compile": 1},
        {"host": 3},
        {"started_at": "today"},
        # The type checker sees what is wrong here; the index has to see it, too.
        {"inputs": (Input("content", "c.jpg", "1:2", 3),)},  # type: ignore[arg-type]
        {"loss": 2**2000},
        {"loss_curve": ((1,),)},
        {"loss_curve": ((1, "2", 3.0, 4.0, 5.0, 6.0),)},
    )
    with Index(OutFolder(tmp_path), "r1") as index:
        for impossible in cases:
            with pytest.raises((pa.ArrowException, TypeError, ValueError, OverflowError)):
                index.extend([result("z"), result(**impossible)])
        index.append(result("b"))
    assert set(read_results(OutFolder(tmp_path))) == {"b"}


def test_a_folder_that_is_not_there_is_no_empty_index(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such output folder"):
        read_index(tmp_path / "none")


def test_an_empty_output_folder_reads_as_an_empty_index(tmp_path: Path) -> None:
    assert read_results(OutFolder(tmp_path / "none")) == {}
    assert read_results(OutFolder(tmp_path)) == {}
    assert read_index(tmp_path).schema.equals(SCHEMA)
    fill(tmp_path, "r1")
    assert parts(tmp_path) == []
    assert read_index(str(tmp_path)).num_rows == 0
    by_duckdb = duckdb.sql(f"select * from '{tmp_path}/index/*.parquet'")
    assert by_duckdb is not None
    for rows in (
        ds.dataset(tmp_path / "index").to_table().num_rows,
        len(pd.read_parquet(tmp_path / "index")),
        len(pl.read_parquet(tmp_path / "index")),
        len(by_duckdb.fetchall()),
    ):
        assert rows == 0


# Which row counts


def test_newest_is_by_epoch_then_seq_and_never_by_position() -> None:
    rows = [
        Stamp("a", 2, 1, "a.png", "new"),
        Stamp("a", 1, 9, "a.png", "old"),
        Stamp("b", 1, 2, "b.png", "new"),
        Stamp("b", 1, 1, "b.png", "old"),
    ]
    assert sorted(newest(rows)) == [(0, 0), (2, 2)]


def test_a_failed_attempt_keeps_what_is_known_of_the_picture_that_still_stands() -> None:
    ok, failed, again = (
        Stamp("a", 1, 1, "a.png", "x"),
        Stamp("a", 2, 1, "a.png", ""),
        Stamp("a", 3, 1, "a.png", None),
    )
    assert newest([ok, failed, again]) == [(2, 0)]
    elsewhere = Stamp("a", 4, 1, "b.png", "")  # its output is another: nothing stands there
    assert newest([ok, elsewhere]) == [(1, 1)]
    never = [Stamp("a", 1, 1, "a.png", ""), Stamp("a", 1, 2, "a.png", "")]
    assert newest(never) == [(1, 1)]


def test_of_a_row_and_its_compacted_copy_the_one_that_knows_the_picture_wins() -> None:
    copy, original = Stamp("a", 2, 1, "a.png", "x"), Stamp("a", 2, 1, "a.png", "")
    assert newest([copy, original]) == [(0, 0)]
    assert newest([original, copy]) == [(1, 1)]
    assert newest([]) == []


def test_a_failure_after_a_success_keeps_key_and_hash_over_every_later_run(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    for run in ("r2", "r3"):
        with Index(OutFolder(tmp_path), run) as index:
            index.append(result(status="failed", error_message=run))
        (row,) = read_index(str(tmp_path)).to_pylist()
        assert (row["status"], row["error_message"], row["epoch"]) == ("failed", run, int(run[1]))
        assert (row["key"], row["output_sha256"]) == ("key of a", "pp")
        assert row["output_bytes"] == 1234
        assert row["loss"] is None
        assert pq.read_table(tmp_path / "index").num_rows == 1


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "r9", "a")
    with Index(OutFolder(tmp_path), "r1") as index:
        index.append(result(key="second", finished_at="1999-01-01T00:00:00+00:00"))
    os.utime(tmp_path / "index" / parts(tmp_path)[0], (0, 0))
    assert read_results(OutFolder(tmp_path))["a"].key == "second"


# Segments and parts


def test_segments_are_sealed_by_rows_and_by_time(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1", rows_per_part=2) as index:
        for name in "abcde":
            index.append(result(name))
        assert parts(tmp_path) == ["part-r1-000001.parquet", "part-r1-000002.parquet"]
        assert journals(tmp_path) == ["r1-000003.jsonl"]
    assert parts(tmp_path) == [f"part-r1-00000{i}.parquet" for i in (1, 2, 3)]
    assert journals(tmp_path) == []
    with Index(OutFolder(tmp_path), "r2", seconds_per_part=0) as index:
        index.append(result("f"))
        assert journals(tmp_path) == []
    assert set(read_results(OutFolder(tmp_path))) == set("abcdef")


def stats(out: Path) -> dict[str, tuple[int, int, int]]:
    """Which file each part is, and when it was written. (Reading changes the rest.)"""
    found = {name: (out / "index" / name).stat() for name in parts(out)}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def test_rows_that_are_restated_keep_their_curves_and_are_the_newest(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a", "b", "c")
    before = read_results(OutFolder(tmp_path))
    with Index(OutFolder(tmp_path), "r2") as index:
        index.append(result("d"))
        index.restate([dataclasses.replace(before[name], row=7) for name in ("c", "a")])
        index.append(result("e"))
    table = read_index(str(tmp_path))
    assert [row["pair_id"] for row in table.to_pylist()] == ["b", "d", "e", "a", "c"]
    assert {row["run_id"] for row in table.to_pylist() if row["row"] == 7} == {"r2"}
    assert len({str(row["loss_curve"]) for row in table.to_pylist()}) == 1
    assert sorted(table["seq"].to_pylist()) == [1, 2, 2, 3, 4]


def test_a_clean_exit_merges_parts_that_hold_a_pair_twice_and_leaves_the_others(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "r1", "a", "b", rows_per_part=1)
    before = stats(tmp_path)
    fill(tmp_path, "r2", "b")
    assert parts(tmp_path) == ["part-r1-000001.parquet", "part-r2-000002.parquet"]
    kept = "part-r1-000001.parquet"
    assert stats(tmp_path)[kept] == before[kept]
    check_readers(tmp_path, 2)


def test_a_clean_exit_merges_more_than_16_parts_into_one(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(16)]
    fill(tmp_path, "r1", *names[:15], rows_per_part=1)
    assert len(parts(tmp_path)) == 15  # and the first, empty one
    fill(tmp_path, "r2", names[15])
    assert os.listdir(tmp_path / "index") == ["part-r2-000002.parquet"]
    check_readers(tmp_path, 16)


def test_a_part_is_never_written_over(tmp_path: Path) -> None:
    """duckdb and polars open a file twice to read it: another in its place would be rubbish."""
    kill(
        tmp_path,
        "i = Index(out, 'r1'); i.append(row('a')); i.append(row('b'))\n"
        "os.environ['STYLIZE_CRASH_AT'] = 'part-written'; i.seal()",
    )
    before = stats(tmp_path)
    fill(tmp_path, "r2", "c")
    assert {name: stat for name, stat in stats(tmp_path).items() if name in before} == before
    check_readers(tmp_path, 3)


def test_a_run_that_does_nothing_rewrites_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a", "b")
    before = stats(tmp_path)
    fill(tmp_path, "r2")
    assert stats(tmp_path) == before


def test_after_a_clean_exit_each_pair_is_there_once_in_the_order_of_rows(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1") as index:
        for name, row in (("b", 2), ("a", 1), ("b", 2)):
            index.append(result(name, row=row))
    table = pq.read_table(tmp_path / "index")
    assert table["pair_id"].to_pylist() == ["a", "b"]
    assert table["seq"].to_pylist() == [2, 3]


def test_a_run_id_used_twice_overwrites_no_part(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    fill(tmp_path, "r1", "b")
    results = read_results(OutFolder(tmp_path))
    assert {name: row.epoch for name, row in results.items()} == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="run_id"):
        Index(OutFolder(tmp_path), "../r")


def test_rows_are_read_in_the_manifests_order_and_those_without_a_number_last(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "r1", "unnumbered")
    (name,) = parts(tmp_path)
    path = tmp_path / "index" / name
    pq.write_table(pq.read_table(path).drop_columns(["row"]), path)
    with Index(OutFolder(tmp_path), "r2", rows_per_part=2) as index:
        for pair_id, row in (("c", 3), ("b", 2), ("d", 2), ("a", 10), ("rebuilt", 0)):
            index.append(result(pair_id, row=row))
        ordered = ["rebuilt", "b", "d", "c", "a", "unnumbered"]
        assert list(read_results(OutFolder(tmp_path))) == ordered  # parts and journal
    assert read_index(str(tmp_path))["pair_id"].to_pylist() == ordered


def test_parts_of_older_and_newer_versions_are_read_and_kept(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    (name,) = parts(tmp_path)
    path = tmp_path / "index" / name
    older = pq.read_table(path).drop_columns(["peak_memory", "meta", "notes"])
    pq.write_table(older.append_column("new_in_v9", pa.array(["x"])), path)
    fill(tmp_path, "r2", "b")
    read = read_results(OutFolder(tmp_path))
    assert (read["a"].peak_memory, read["a"].meta, read["a"].notes) == (None, {}, "")
    assert read_index(str(tmp_path)).schema.equals(SCHEMA)
    raw = pq.read_table(tmp_path / "index")
    assert dict(zip(*raw.select(["pair_id", "new_in_v9"]).to_pydict().values(), strict=True)) == {
        "a": "x",
        "b": None,
    }


# Readers


def ask(sql: str) -> list[Any]:
    relation = duckdb.sql(sql)
    assert relation is not None
    return list(relation.fetchall())


def check_readers(out: Path, count: int) -> None:
    """pyarrow, pandas, polars and duckdb each read the folder as it is."""
    index = out / "index"
    rows = ds.dataset(index).to_table().to_pylist()
    assert len(rows) == count
    for row in rows:
        curve = [step["loss"] for step in row["loss_curve"]]
        assert curve == sorted(curve, reverse=True)
    assert len(pd.read_parquet(index)) == count
    assert pl.read_parquet(index / "*.parquet").height == count
    assert pl.scan_parquet(index).select(pl.col("pair_id").count()).collect().item() == count
    sql = f"from read_parquet('{index}/*.parquet', union_by_name=true)"
    assert ask(f"select count(*) {sql}") == [(count,)]
    nested = "meta['shot'], loss_curve[1].loss, inputs[2].role"
    found = ask(f"select distinct {nested} {sql} where status = 'ok'")
    assert found == ([("12 ü", 8.0, "style")] if rows else [])


def test_pyarrow_pandas_polars_and_duckdb_read_the_folder(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1", rows_per_part=2) as index:
        for name in "abcd":
            index.append(result(name))
        check_readers(tmp_path, 4)
    check_readers(tmp_path, 4)


def test_one_line_of_sql_drops_older_rows(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1", rows_per_part=1) as index:
        for key in ("first", "second"):
            index.append(result(key=key))
        sql = (
            f"select key from read_parquet('{tmp_path}/index/*.parquet') qualify "
            "row_number() over (partition by pair_id order by epoch desc, seq desc) = 1"
        )
        assert ask(sql) == [("second",)]


def test_live_rows_are_read_while_the_writer_works(tmp_path: Path) -> None:
    with Index(OutFolder(tmp_path), "r1", rows_per_part=2) as index:
        for number, name in enumerate("abc", 1):
            index.append(result(name))
            assert len(read_results(OutFolder(tmp_path))) == number
        assert read_index(str(tmp_path)).num_rows == 3


def test_a_reader_never_sees_a_row_vanish_while_parts_are_sealed_and_merged(
    tmp_path: Path,
) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import test_index as t\n"
        f"out = Path({str(tmp_path)!r})\n"
        "for i in range(40): t.fill(out, f'r{i}', f'p{i}', rows_per_part=1)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    seen, reads = 0, 0
    while writer.poll() is None:
        count = len(read_results(OutFolder(tmp_path)))
        assert count >= seen
        seen, reads = count, reads + 1
    assert writer.returncode == 0
    assert len(read_results(OutFolder(tmp_path))) == 40
    assert reads > 10


def test_40000_rows_are_read_in_about_a_second(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    one = pq.read_table(tmp_path / "index").to_pylist()[0]
    one |= {"settings": json.dumps(dict.fromkeys(map(str, range(100)), 1))}
    rows = [
        {**one, "pair_id": f"p{i}", "key": f"{i:064}", "seq": i, "output": f"images/{i}.png"}
        for i in range(40_000)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, tmp_path / "index" / "part-r2-000001.parquet")
    begun = time.process_time()
    results = read_results(OutFolder(tmp_path))
    seconds = time.process_time() - begun
    assert len(results) == 40_001
    assert results["p7"].inputs == result().inputs
    assert results["p7"].meta == {"shot": "12 ü"}
    assert seconds < 8  # 1 to 1.5 s on one core


# Damage


def kill(out: Path, code: str, **env: str) -> None:
    """Run code with an open index in another process, which must end by SIGKILL."""
    lines = (
        "import os, signal",
        "from pipeline.store.folder import OutFolder",
        "from pipeline.store.index import Index",
        "from pipeline.records import Input, Result",
        f"out = OutFolder({str(out)!r})",
        "def row(i, **k):",
        "    d = dict(status='ok', key='k', output_sha256='p', meta={'shot': '12 ü'},",
        "             loss_curve=((1, .1, 8., 1., 1., 1.),), output=f'images/{i}.png',",
        "             inputs=(Input('content', 'c', '', ''), Input('style', 's', '', '')))",
        "    return Result(pair_id=i, row=1, content='c', style='s', **{**d, **k})",
        code,
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_torn_last_line_costs_only_that_row(tmp_path: Path) -> None:
    kill(
        tmp_path,
        "i = Index(out, 'r1'); i.append(row('a'))\n"
        "os.environ['STYLIZE_CRASH_AT'] = 'journal-half-written'; i.append(row('b'))",
    )
    (name,) = journals(tmp_path)
    text = (tmp_path / "_state" / "journal" / name).read_text()
    assert text.count("\n") == 1
    assert not text.endswith("\n")
    assert set(read_results(OutFolder(tmp_path))) == {"a"}
    with Index(OutFolder(tmp_path), "r2") as index:
        assert parts(tmp_path) == ["part-r1-000001.parquet"]
        assert [p for p in index.problems if "cut short" in p]
        assert index.append(result("b")).epoch == 2
    assert set(read_results(OutFolder(tmp_path))) == {"a", "b"}


def test_an_unreadable_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    kill(
        tmp_path,
        "i = Index(out, 'r1')\n"
        "for n in 'abc': i.append(row(n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    path = tmp_path / "_state" / "journal" / "r1-000001.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(
        b"\n".join([lines[0], b'{"pair_id": 7, "row": "x"}', b"\xff[]", lines[2], b""])
    )
    with Index(OutFolder(tmp_path), "r2") as index:
        assert "2 unreadable lines (2, 3)" in index.problems[0]
    assert set(read_results(OutFolder(tmp_path))) == {"a", "c"}
    assert os.listdir(tmp_path / "_state" / "damaged") == ["r1-000001.jsonl"]
    assert journals(tmp_path) == []


def damage_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_to_nothing, "is empty"),
        (damage_by_cutting, "is damaged"),
        (damage_in_the_middle, "is damaged"),
    ],
)
def test_a_damaged_part_is_set_aside_and_named(tmp_path: Path, damage: Any, words: str) -> None:
    fill(tmp_path, "r1", "a", "b")
    (name,) = parts(tmp_path)
    damage(tmp_path / "index" / name)
    with pytest.warns(UserWarning, match=name):
        assert read_results(OutFolder(tmp_path)) == {}
    with Index(OutFolder(tmp_path), "r2") as index:
        (problem,) = index.problems
        assert words in problem
        assert name in problem
        index.append(result("c"))
    assert os.listdir(tmp_path / "_state" / "damaged") == [name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_results(OutFolder(tmp_path))) == {"c"}
    check_readers(tmp_path, 1)


def test_damage_that_only_shows_in_a_loss_curve_costs_no_other_part(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    (name,) = parts(tmp_path)
    path = tmp_path / "index" / name
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    columns = [metadata.column(i) for i in range(metadata.num_columns)]
    (curve,) = [c for c in columns if c.path_in_schema == "loss_curve.list.element.loss"]
    data = bytearray(path.read_bytes())
    end = curve.data_page_offset + 60
    data[end - 8 : end] = bytes(b ^ 0xFF for b in data[end - 8 : end])
    path.write_bytes(data)
    with Index(OutFolder(tmp_path), "r2") as index:
        index.append(result("b"))
        index.compact()
    assert any(name in problem for problem in index.problems)
    assert read_index(str(tmp_path))["pair_id"].to_pylist() == ["b"]


def test_a_stray_file_is_named_and_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "r1", "a")
    (tmp_path / "index" / "no\x1btes.txt").write_text("mine")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "index" / "other.parquet")
    with Index(OutFolder(tmp_path), "r2") as index:
        assert len(index.problems) == 2
        assert all(problem.isprintable() for problem in index.problems)
    assert set(read_results(OutFolder(tmp_path))) == {"a"}
    assert {"no\x1btes.txt", "other.parquet"} < set(parts(tmp_path))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_folder_removed_during_the_run_is_a_storage_error(tmp_path: Path, rows: int) -> None:
    """Before the first row, too: a journal made anew would tell of pictures that are gone."""
    out = tmp_path / "out"
    index = Index(OutFolder(out), "r1")
    for _ in range(rows):
        index.append(result("a"))
    out.rename(tmp_path / "gone")
    for path in sorted((tmp_path / "gone").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(StorageError, match="folder is gone"):
        index.append(result("b"))


def test_a_full_disk_is_a_storage_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        index = Index(OutFolder(tmp_path), "r1", rows_per_part=20)

        def fill_up() -> None:
            with index:
                while True:
                    index.append(result(f"p{index.seq}", notes="x" * 2000))

        with pytest.raises(StorageError, match="no space left"):
            fill_up()
        written = index.seq
        assert written > 20
        # The row that could not be written may or may not be there; all others are.
        names = {f"p{number}" for number in range(written)}
        assert names <= set(read_results(OutFolder(tmp_path))) <= names | {f"p{written}"}
        subprocess.run(["mount", "-o", "remount,size=3m", str(tmp_path)], check=True)
        fill(tmp_path, "r2", "last")
        assert names | {"last"} <= set(read_results(OutFolder(tmp_path)))
        assert journals(tmp_path) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# Kills

POINTS = [
    "journal-half-written",
    "journal-synced",
    "part-written",
    "journal-deleted",
    "compaction-begun",
    "compaction-merged",
    "compaction-inputs-deleted",
]
STEP = """
from pipeline.store.reading import read_results
done = {n for n, r in read_results(out).items() if r.status == 'ok'}
with Index(out, 'r' + str(os.getpid()), rows_per_part=2) as index:
    index.append(row('z', status='failed', key='', output_sha256='', loss_curve=()))
    for name in 'abcde':
        if name not in done:
            index.append(row(name))
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_point_loses_no_row_that_was_returned(tmp_path: Path, point: str) -> None:
    fill(tmp_path, "r0", "z")  # its later attempts fail, its picture stands
    (tmp_path / "seen").mkdir()
    kill(tmp_path, STEP, STYLIZE_CRASH_AT=f"{point}:{tmp_path}/flag")
    raw = ds.dataset(tmp_path / "index").to_table()  # between crash and restart
    check_readers(tmp_path, raw.num_rows)
    before = read_results(OutFolder(tmp_path))
    assert before["z"].output_sha256 == "pp"
    names = ["a", "b", "c", "d", "e"]
    at_least = {"compaction-begun": 5, "compaction-merged": 5, "compaction-inputs-deleted": 5}
    assert set(names[: at_least.get(point, 0)]) <= set(before)
    with Index(OutFolder(tmp_path), "last", rows_per_part=2) as index:
        again = [name for name in names if name not in read_results(OutFolder(tmp_path))]
        for name in again:
            index.append(result(name))
    after = read_results(OutFolder(tmp_path))
    assert sorted(after) == [*names, "z"]
    for name, row in before.items():
        if name not in again:
            assert dataclasses.replace(row, run_id="") == dataclasses.replace(
                after[name], run_id=""
            )
    assert pq.read_table(tmp_path / "index").num_rows == 6
    assert journals(tmp_path) == []


def test_kills_at_every_point_in_turn_end_with_each_pair_once(tmp_path: Path) -> None:
    for point in POINTS:
        kill(tmp_path, STEP, STYLIZE_CRASH_AT=point)
    fill(tmp_path, "last", *"abcde")
    table = pq.read_table(tmp_path / "index")
    assert sorted(table["pair_id"].to_pylist()) == [*"abcde", "z"]
    assert (
        dict(zip(table["pair_id"].to_pylist(), table["epoch"].to_pylist(), strict=True))["a"] >= 2
    )


# The lock and run.json


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with Lock(OutFolder(tmp_path), "r1"):
        with pytest.raises(LockedError) as caught:
            Lock(OutFolder(tmp_path), "r2")
        assert f"process {os.getpid()} on " in str(caught.value)
        assert "run r1" in str(caught.value)
        assert "--out" in str(caught.value)
    lock = Lock(OutFolder(tmp_path), "r3")
    lock.release()
    lock.release()


def test_the_lock_of_a_dead_driver_is_taken(tmp_path: Path) -> None:
    take = "from pipeline.store.lock import Lock; Lock(out, 'r1')"
    kill(tmp_path, f"{take}; os.kill(os.getpid(), signal.SIGKILL)")
    kill(tmp_path, take.replace("r1", "r2"), STYLIZE_CRASH_AT="lock-taken")
    with Lock(OutFolder(tmp_path), "r3"):
        assert json.loads((tmp_path / "_state" / "lock").read_text())["run_id"] == "r3"


def test_the_lock_of_a_living_driver_in_another_process_holds(tmp_path: Path) -> None:
    code = (
        "from pipeline.store.folder import OutFolder; from pipeline.store.lock import Lock\n"
        f"lock = Lock(OutFolder({str(tmp_path)!r}), 'r1')\n"
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {holder.pid} on "):
        Lock(OutFolder(tmp_path), "r2")
    holder.communicate("\n")
    Lock(OutFolder(tmp_path), "r2").release()


def _no_flock(*_: object) -> None:
    """As on network disks where it does nothing."""


def _refused_flock(*_: object) -> None:
    """As on those that have none."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("flock", [_no_flock, _refused_flock])
def test_where_flock_does_nothing_one_of_two_drivers_is_refused_all_the_same(
    flock: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = OutFolder(tmp_path)
    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("pipeline.store.disk.TIMES", Times(0.2, 2.0, 0.2, math.inf))
    first = Lock(out, "r1")
    with pytest.raises(LockedError, match=r"in use by .* \(run r1"):
        Lock(out, "r2")  # on the same machine that is known at once
    monkeypatch.setattr("pipeline.store.lease._machine", lambda: "another")
    with pytest.raises(LockedError, match=r"in use by .* \(run r1"):
        Lock(out, "r2")  # on another as soon as the first shows life
    with pytest.raises(LockedError, match=r"in use by .* \(run r1"):
        Lock(out, "r3", Shard(1, 3))
    lease = first._lease
    assert lease is not None
    lease._ended.set()  # its process stands still
    lease._thread.join()
    began = time.monotonic()
    second = Lock(out, "r4")
    assert time.monotonic() - began >= 1.9
    lease._ended.clear()  # and goes on
    lease._renew()
    with pytest.raises(StorageError, match="was taken over by another run"):
        first.check()
    second.check()
    second.release()
    assert at_work(out) == []
    Lock(out, "r5").release()


def test_run_json_is_what_was_written_last_or_empty(tmp_path: Path) -> None:
    out = OutFolder(tmp_path)
    assert out.read_fixed() == Fixed()
    out.fix(backbone="vgg16", weights={"vgg16": "ü"})
    assert out.read_fixed() == Fixed("vgg16", {"vgg16": "ü"})
    path = Path(out.run_file)
    path.write_text(path.read_text().replace("{", '{"of a later version": 1, ', 1))
    out.fix(inputs="../lists")
    assert json.loads(path.read_text())["of a later version"] == 1
    for damaged in ("", "[]", '{"backbone', '{"weights": "vgg16"}'):
        path.write_text(damaged)
        with pytest.raises(StorageError, match="is damaged"):
            out.read_fixed()


def test_an_index_where_nothing_can_be_written_is_refused_clearly() -> None:
    with pytest.raises(StorageError, match="cannot be written to https://; choose a folder, or a"):
        OutFolder("https://host/out")


def test_a_folder_whose_name_is_no_utf8_has_an_index_like_others(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / os.fsdecode(b"caf\xe9"))
    for run in ("r1", "r2"):
        with Lock(out, run), Index(out, run) as index:
            index.append(result(f"pair-{run}"))
            assert index.problems == []
    assert sorted(read_results(out)) == ["pair-r1", "pair-r2"]
    assert not os.path.exists(os.path.join(out.state, "damaged"))


def test_an_index_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = OutFolder(tmp_path / "out")
    with Lock(out, "r"), Index(out, "r") as index:
        index.append(result())

    def refuse(path: str) -> list[str]:  # root, which may read all, runs this too
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("pipeline.store.index.os.listdir", refuse)
    message = r"cannot read '.*out': permission denied; check the path and who may read it"
    with pytest.raises(StorageError, match=message):
        read_results(out)


def test_what_leads_to_no_file_or_may_not_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    out.fix(backbone="vgg16")
    index, run = tmp_path / "out" / "index", tmp_path / "out" / "_state" / "run.json"
    index.mkdir()
    (index / "part-r-000001.parquet").symlink_to("gone")
    with pytest.raises(StorageError, match=r"out': no such file or directory; check the path"):
        read_results(out)
    run.unlink()
    run.mkdir()
    with pytest.raises(StorageError, match=r"run.json': is a directory; check the path"):
        out.read_fixed()


_MERGE = """
import resource, sys
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index

def peak():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit

index = Index(OutFolder(sys.argv[1]), "r2")
before = peak()
index.compact()
print(peak() - before)
"""


def test_a_merge_keeps_the_loss_curves_of_few_pairs_in_memory_at_a_time(tmp_path: Path) -> None:
    """Twenty parts, each with 8 MB of curves; all of them at once take 877 MB."""
    steps, pairs = 400, 1000
    rows = to_table([result(f"p{n}") for n in range(pairs)])
    kind = SCHEMA.field("loss_curve").type
    numbers = np.random.default_rng(0).random(steps * pairs, dtype=np.float32)
    columns = [pa.array(np.tile(np.arange(steps, dtype=np.int32), pairs))]
    columns += [pa.array(numbers)] * 5
    fields = [kind.value_type.field(at) for at in range(6)]
    offsets = pa.array(range(0, steps * pairs + 1, steps), pa.int32())
    curves = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields))
    out = tmp_path / "out"
    with Index(OutFolder(out), "r1", alone=lambda: False) as index:  # it merges nothing
        at = SCHEMA.get_field_index("loss_curve")
        for part in range(20):
            ids = pa.array([f"p{part}-{n}" for n in range(pairs)])
            table = rows.set_column(0, SCHEMA.field(0), ids)
            output = SCHEMA.get_field_index("output")
            names = pa.array([f"images/{part}-{n}.png" for n in range(pairs)])
            table = table.set_column(output, SCHEMA.field(output), names)
            index.add(table.set_column(at, SCHEMA.field(at), curves.cast(kind)))
    merged = subprocess.run(
        [sys.executable, "-c", _MERGE, str(out)], capture_output=True, text=True, check=True
    )
    assert len(parts(out)) == 1
    assert int(merged.stdout) < 500  # 877 where all parts are read at once
    assert read_index(out).num_rows == 20 * pairs
