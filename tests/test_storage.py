"""Storage: whole files or none, clear errors, nothing left behind. Real files, real processes."""

import errno
import hashlib
import os
import pickle
import platform
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.leftovers import sweep_temporaries
from pipeline.storage import OutsideError, StorageError
from stylize.files import sync_folder

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )


def test_put_makes_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    storage.put(str(path), b"one")
    storage.put(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["c.bin"]


def test_sha256_and_stat_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 5_000_000_123))
    # FIPS 180-2, appendix B.1: the digest of "abc".
    assert storage.sha256(str(path)).startswith("ba7816bf8f01cfea414140de5dae2223")
    assert storage.stat(str(path)) == "3:5000000123"
    assert storage.exists(str(path))
    assert not storage.exists(str(tmp_path))  # a folder is no file
    assert not storage.exists(str(tmp_path / "no\0such"))


def test_names_of_255_bytes_with_emoji_and_newlines_are_written(tmp_path: Path) -> None:
    name = "🎨 \n" + "x" * (255 - len("🎨 \n".encode()))
    storage.put(str(tmp_path / name), b"1")
    assert storage.read_bytes(str(tmp_path / name)) == b"1"


def test_file_uri_is_a_local_path(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/a%20b.bin"
    storage.put(uri, b"x")
    assert (tmp_path / "a b.bin").read_bytes() == b"x"
    assert storage.read_bytes(uri) == b"x"


def test_join_keeps_uris_and_their_options() -> None:
    assert storage.join("/out", "images/a.png") == "/out/images/a.png"
    assert storage.join("s3://b/out/", "a.png") == "s3://b/out/a.png"
    assert storage.join("s3://b/out?region=eu", "a.png") == "s3://b/out/a.png?region=eu"
    assert storage.join("s3://b/jobs/x", "../photos/./a.png") == "s3://b/jobs/photos/a.png"
    assert storage.join("s3://b/jobs", "../../a.png") == "s3://b/../a.png"  # refused when read
    assert storage.join("folder", "s3://b/a.png") == "s3://b/a.png"
    assert storage.join("s3://b/jobs", "/photos/a.png") == "/photos/a.png"


def test_output_path_refuses_a_link_out_of_the_folder(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "images").symlink_to(elsewhere)
    (out / "inside").symlink_to(out / "real")
    with pytest.raises(OutsideError, match="symbolic link"):
        storage.output_path(str(out), "images/a.png")
    assert storage.output_path(str(out), "inside/a.png") == f"{out}/inside/a.png"
    link = tmp_path / "link"  # OUT itself may be a link
    link.symlink_to(out)
    assert storage.output_path(str(link), "b/a.png") == f"{link}/b/a.png"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EDQUOT, "quota"),
        (errno.ENOENT, "folder is gone"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_each_failed_write_names_file_cause_and_remedy(number: int, words: str) -> None:
    text = str(storage.storage_error(OSError(number, os.strerror(number)), "/some/where/a\nb.png"))
    assert "a\\nb.png" in text
    assert words in text
    assert "--out" in text
    assert "/some/where" not in text
    assert "\n" not in text


def test_storage_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("cannot write 'a'")))
    assert isinstance(error, StorageError)
    assert str(error) == "cannot write 'a'"


def test_write_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        storage.put(str(tmp_path / "file" / "a.png"), b"")


def test_full_disk_is_a_storage_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        target = tmp_path / "a.bin"
        storage.put(str(target), b"old")
        with pytest.raises(StorageError, match="no space left"):
            storage.put(str(target), b"x" * 400_000)
        assert target.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.bin"]
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(StorageError, match="read-only"):
            storage.put(str(target), b"new")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("point", "before", "after"),
    [("picture-temp-written", b"old", b"old"), ("picture-renamed", b"old", b"new")],
)
def test_a_kill_inside_put_leaves_the_old_or_the_new_file_whole(
    tmp_path: Path, point: str, before: bytes, after: bytes
) -> None:
    target = tmp_path / "images" / "a.png"
    target.parent.mkdir()
    target.write_bytes(before)
    code = f"from pipeline.storage import put; put({str(target)!r}, b'new', point='picture')"
    flag = tmp_path / "flag"
    died = run(code, STYLIZE_CRASH_AT=f"{point}:{flag}")
    assert died.returncode == -signal.SIGKILL
    assert target.read_bytes() == after
    left = [name for name in os.listdir(target.parent) if name != "a.png"]
    assert len(left) == (point == "picture-temp-written")
    sweep_temporaries(str(tmp_path))
    assert os.listdir(target.parent) == ["a.png"]
    again = run(code, STYLIZE_CRASH_AT=f"{point}:{flag}")  # the flag file stands: no second time
    assert again.returncode == 0, again.stderr
    assert target.read_bytes() == b"new"


def test_sweep_takes_only_what_dead_processes_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = f".stylize-{HOST}.tmp-{dead.pid}-00000000"
    living = f".stylize-{HOST}.tmp-{os.getppid()}-00000000"
    foreign_new = ".stylize-00000000.tmp-1-00000000"
    foreign_old = ".stylize-00000000.tmp-2-00000000"
    pictures = ["a.png", ".hidden", f".stylize-{HOST}.tmp-{dead.pid}-00000000.png"]
    for name in (mine, living, foreign_new, foreign_old, *pictures):
        (tmp_path / name).touch()
    os.utime(tmp_path / foreign_old, (0, 0))
    sweep_temporaries(str(tmp_path))
    assert set(os.listdir(tmp_path)) == {living, foreign_new, *pictures}
    sweep_temporaries(str(tmp_path / "no such folder"))


def test_naming_storage_loads_neither_pyarrow_nor_obstore() -> None:
    code = (
        "import sys, pipeline.storage as s; s.exists('/x')\n"
        "print({'pyarrow', 'obstore'} & set(sys.modules))"
    )
    assert run(code).stdout == "set()\n"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_is_good_enough(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    storage.put(str(tmp_path / "a.txt"), b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"whole"


def test_a_folder_that_cannot_be_synced_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


def test_what_has_no_end_or_is_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(tmp_path / "film.jpg", "wb") as file:
        file.truncate(3 * 2**30)
    for name, words in (("pipe.jpg", "a pipe or a device"), ("film.jpg", "it has 3.0 GB; the")):
        with pytest.raises(OSError, match=words):
            storage.read_bytes(str(tmp_path / name))
    with pytest.raises(OSError, match="a pipe or a device"):
        storage.sha256(str(tmp_path / "pipe.jpg"))


def test_a_target_that_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(storage.StorageError, match="a file stands where a folder is needed"):
        storage.check_writable(str(tmp_path / "file" / "a.png"))
    storage.check_writable(str(tmp_path / "new" / "a.png"))
    assert list((tmp_path / "new").iterdir()) == []
