"""`stylize-batch doctor`: what it finds, what it advises, and what a report of it holds."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from buckets import SECRET, UNCONDITIONAL, Answer, Bucket
from buckets import bucket as bucket
from helpers import cli, ray_folders, start

from pipeline import doctor, objects
from pipeline.doctor import Check, examine, facts
from pipeline.store.folder import OutFolder
from pipeline.store.lock import Lock

NAMES = [
    *("Python", "packages", "torch", "GPU", "cores", "memory", "shared memory"),
    *("temporary folder", "Ray", "cache", "language", "VGG-16", "VGG-19", "output"),
]


def found(name: str, **arguments: str) -> Check:
    """One check of a machine whose Ray is not asked, which would take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_ray", lambda address: Check("Ray", "ok", address))
        checks = {check.name: check for check in examine(**arguments)}
    return checks[name]


def test_a_machine_that_works_is_told_so_and_ray_is_gone(tmp_path: Path) -> None:
    process = start("doctor", "--out", tmp_path / "not" / "yet")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = [line for line in output.splitlines() if line[0] != " "]
    assert [line[7:25].strip() for line in lines] == NAMES
    assert not [line for line in lines if line.startswith("fails")]
    assert "started and ended" in output
    assert ray_folders(process.pid) == []
    assert list(tmp_path.iterdir()) == []


def test_what_fails_ends_with_5_and_stands_in_the_report_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = cli(
        *("doctor", "--json", "--out", tmp_path / "file" / "out", "--address", "127.0.0.1:1"),
        RAY_AUTH_TOKEN="secret1",
        AWS_SECRET_ACCESS_KEY="secret2",
        STYLIZE_VGG19_URL="https://me:secret3@127.0.0.1:1/vgg19-00000000.pth",
        HOME=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path / "kept"),
    )
    assert done.returncode == 5
    assert "a run would fail here: see Ray, output above" in done.stderr
    report = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert [name for name, state in states.items() if state == "fails"] == ["Ray", "output"]
    assert report["packages"]["torch"]
    assert report["environment"]["XDG_CACHE_HOME"] == "~/kept"
    assert "secret" not in done.stdout
    assert str(tmp_path) not in done.stdout


def test_a_card_that_torch_cannot_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    monkeypatch.setattr(doctor, "_DRIVER", str(driver))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check = found("GPU")
    assert check.state == "note"
    assert check.found.startswith("NVIDIA driver 470.57.02, which torch")


def test_a_machine_without_a_card_uses_its_cpu_and_apples_is_said_not_to_be_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_DRIVER", "/nowhere")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (found("GPU").state, found("GPU").found) == ("ok", "none: runs use the CPU")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    apple = found("GPU")
    assert (apple.state, apple.found) == ("note", "Apple's (mps)")
    assert apple.remedy == "the tests were not run on it"


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("Python", "sys.platform", "darwin", "on Linux only"),
        ("Python", "sys.version_info", (3, 99), "run with 3.11 to 3.13"),
        (
            "shared memory",
            "pipeline.paint.ray_session.SHARED_MEMORY",
            "/nowhere",
            "Ray uses its folder",
        ),
        ("shared memory", "pipeline.paint.ray_session.STORE", 2**60, "--shm-size=256m"),
        ("memory", "pipeline.paint.fleet.WORKER_MEMORY", (1e15, 1), "--workers 1"),
        ("language", "sys.getfilesystemencoding", lambda: "ascii", "LANG=C.UTF-8"),
    ],
)
def test_what_makes_runs_worse_is_a_note_with_a_remedy(
    name: str, place: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, value)
    check = found(name)
    assert check.state == "note"
    assert words in check.remedy


def test_a_check_that_breaks_down_is_a_failure_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(path: object) -> str:
        raise OSError("the file is cut short\nand more")

    monkeypatch.setattr("stylize.weights.verify", broken)
    check = found("VGG-16")
    assert (check.state, check.found) == ("fails", "OSError: the file is cut short")
    assert check.remedy == "install stylize-batch again"
    assert found("VGG-19").state == "note"


def test_a_cache_that_cannot_be_written_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STYLIZE_CACHE", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    check = found("cache")
    assert (check.state, check.found) == (
        "note",
        f"{tmp_path / 'a' / 'b'}: {tmp_path} cannot be written",
    )
    assert "set STYLIZE_CACHE" in check.remedy


def test_vgg19_is_said_to_be_here_or_to_come_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylize.weights.why_not_fetched", lambda: "")
    check = found("VGG-19")
    assert (check.state, check.found) == ("note", "not on this disk; it can be downloaded")
    assert "548 MB, unless it has --backbone vgg16" in check.remedy
    monkeypatch.setattr("stylize.weights.vgg19_on_disk", lambda: Path("/kept/vgg19.safetensors"))
    assert found("VGG-19") == Check("VGG-19", "ok", "on this disk: /kept/vgg19.safetensors")


def test_a_temporary_folder_without_room_fails_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.paint.ray_folder.LEAST_FREE", 10**18)
    check = found("temporary folder")
    assert check.state == "fails"
    assert "MB free and Ray needs" in check.found
    assert check.remedy == "make room, or set TMPDIR to a writable folder with a short name"


def test_an_output_that_another_run_uses_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    assert found("output", out=str(tmp_path)).state == "ok"
    with Lock(OutFolder(tmp_path), "another"):
        check = found("output", out=str(tmp_path))
    assert check.state == "note"
    assert f"is in use by process {os.getpid()}" in check.found
    assert check.remedy.startswith("wait until it is done")


def test_a_bucket_that_works_is_told_so_and_nothing_is_left_in_it(bucket: Bucket) -> None:
    out = f"{bucket.uri}/out"
    check = found("output", out=out)
    assert (check.state, check.found) == ("ok", f"{out} can be written")
    assert bucket.listed() == []
    with Lock(OutFolder(out), "another"):
        check = found("output", out=out)
    assert check.state == "note"
    assert f"is in use, or a run died there: process {os.getpid()} on " in check.found
    assert "after 5 minutes" in check.remedy


def test_a_bucket_that_a_run_could_not_use_fails_with_the_remedy(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket.uri}/out"
    bucket.fault = lambda request: UNCONDITIONAL
    check = found("output", out=out)
    assert check.state == "fails"
    assert "this store ignores conditions on writes" in check.found
    assert check.remedy.startswith("choose a store that has them")
    assert bucket.listed() == []
    bucket.fault = lambda request: Answer(403, "AccessDenied")
    check = found("output", out=out)
    assert check.state == "fails"
    assert "access is refused (AccessDenied)" in check.found
    assert "AWS_ACCESS_KEY_ID" in check.remedy
    assert SECRET not in check.found + check.remedy
    bucket.fault = lambda request: None
    assert "there is no bucket 'nowhere'" in found("output", out="s3://nowhere/out").found
    monkeypatch.setattr(objects, "HASTE", 0.5)  # and a run would wait for three minutes
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    objects.forget()
    check = found("output", out=out)
    assert check.state == "fails"
    assert "does not answer" in check.found


def test_a_report_names_the_versions_and_the_home_by_a_tilde() -> None:
    report = facts([Check("cache", "ok", os.path.expanduser("~/x"))])
    assert report["python"] == sys.version
    assert report["checks"] == [{"name": "cache", "state": "ok", "found": "~/x", "remedy": ""}]
