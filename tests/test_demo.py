"""The demo that ships with the program: what it writes, and that nothing is written over."""

import csv
import tomllib
from pathlib import Path

import pytest
from forks import cli
from helpers import statuses

from pipeline.demo import lay_out, manifest_in
from stylize.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_the_demo_paints_goes_on_and_leaves_other_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    small = ("--size", "64", "--steps", "3", "--limit", "1", "--in-process", "--threads", "1")
    assert cli("demo", folder, *small).returncode == 0
    assert list(statuses(folder / "demo").values()) == ["ok"]
    again = cli("demo", folder, *small)
    assert "1 painted, 1 done before" in again.stdout
    with open(folder / "demo.csv", newline="") as file:
        assert {(row["size"], row["steps"]) for row in csv.DictReader(file)} == {("64", "3")}
    other = cli("demo", folder, "--size", "96")
    assert other.returncode == 2
    assert f"run stylize-batch {folder}/demo.csv" in other.stderr


def test_a_picture_of_the_users_own_is_never_written_over(tmp_path: Path) -> None:
    own = tmp_path / "images" / "coffee.jpg"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="differs from the demo's; choose another folder"):
        lay_out(str(tmp_path), {})
    assert own.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["coffee.jpg", "images"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = cli("demo", tmp_path / "file" / "demo")
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1


def test_the_wheel_holds_every_file_that_the_demo_writes(tmp_path: Path) -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packed = targets["targets"]["wheel"]["force-include"]
    lay_out(str(tmp_path), {})
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    inside = "pipeline/assets/demo/"
    assert {f"manifests/{name}": f"{inside}{name}" for name in written} == packed
    assert Path(manifest_in(str(tmp_path))).exists()
