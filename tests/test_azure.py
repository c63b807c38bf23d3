"""OUT on Azure's object storage, where its ways differ from those of S3."""

import signal
from pathlib import Path

import pytest
from azurite import container as container
from helpers import TINY, cli, index_rows, pictures, write_csv

from pipeline import objects, storage
from pipeline.objects import ChangedError, StorageError
from pipeline.store.folder import OutFolder
from pipeline.store.reading import read_results


def test_conditions_listings_and_attributes_are_as_on_s3(container: str) -> None:
    uri = f"{container}/lock"
    first = objects.create(uri, b"one")
    with pytest.raises(FileExistsError):
        objects.create(uri, b"two")
    objects.replace(uri, b"three", first)
    with pytest.raises(ChangedError):
        objects.replace(uri, b"four", first)
    beside = {"stylizekey": "k", "stylizerow": "ab+/="}
    etag = objects.put(f"{container}/out/a.png", b"1", beside)
    head = objects.head(f"{container}/out/a.png")
    assert (head.attributes, head.etag) == (beside, etag)
    names = [f"{number:02}.png" for number in range(20)]
    for name in names:
        objects.put(f"{container}/out/x/{name}", b"1")
    listed = dict(objects.listing(f"{container}/out"))
    assert list(listed) == ["a.png", *(f"x/{name}" for name in names)]
    assert listed["a.png"].stat == head.stat  # though the listing has the ETag without quotes
    assert [name for name, _ in objects.listing(f"{container}/out/x", "16.png")] == names[17:]
    storage.remove_all([f"{container}/out/x/{name}" for name in [*names, "gone.png"]])
    assert [name for name, _ in objects.listing(container)] == ["lock", "out/a.png"]
    for ask in (objects.head, lambda uri: list(objects.listing(uri))):
        with pytest.raises(StorageError, match="there is no bucket 'nowhere' at az://"):
            ask("az://nowhere/a")


def test_a_run_that_is_killed_and_run_again_paints_nothing_twice(
    container: str, tmp_path: Path
) -> None:
    pictures(tmp_path, 3)
    rows = [{"id": f"p{n}", "content": f"c{n}.jpg"} for n in range(3)]
    storage.put(f"{container}/in/m.csv", write_csv(tmp_path / "m.csv", rows).read_bytes())
    for name in ("c0.jpg", "c1.jpg", "c2.jpg", "s.png"):
        storage.put(f"{container}/in/{name}", (tmp_path / name).read_bytes())
    run = (f"{container}/in/m.csv", "--out", f"{container}/out", *TINY, "--in-process")
    killed = cli(*run, STYLIZE_CRASH_AT=f"record-returned@p1:{tmp_path / 'flag'}")
    assert killed.returncode == -signal.SIGKILL
    again = cli(*run)
    assert again.returncode == 0, again.stderr
    assert (
        "3 pairs: 0 painted, 3 done before" in again.stdout or "1 painted, 2 done" in again.stdout
    )
    out = OutFolder(f"{container}/out")
    for row in read_results(out).values():
        look = out.medium.look(row.output)
        assert look is not None
        assert out.medium.is_as_recorded(
            look, row.finished_at, row.output_etag
        )  # so that no picture is read to know that
    assert all(row["loss_curve"] for row in index_rows(str(out)).values())
    assert cli("status", out).stdout == "3 ok\n"
