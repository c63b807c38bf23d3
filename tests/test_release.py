"""What a release says of itself, in several places: the same everywhere."""

import re
import tomllib
from pathlib import Path

from stylize import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def names(needs: list[str]) -> list[str]:
    return [re.split(r"[^\w.-]", need)[0] for need in needs]


def test_the_version_is_one_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    (version,) = re.findall(r"^version: (.+)$", citation, re.MULTILINE)
    (date,) = re.findall(r'^date-released: "(.+)"$', citation, re.MULTILINE)
    released = re.findall(
        r"^## \[(\d.+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert (version, (version, date)) == (__version__, released[0])


def test_the_licences_are_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    (licences,) = re.findall(r"^license:\n((?:  - .+\n)+)", citation, re.MULTILINE)
    assert re.findall(r"- (.+)", licences) == PROJECT["license"].split(" AND ")


def test_the_changelog_has_the_kinds_of_changes_that_its_form_knows() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_each_dependency_is_explained_and_no_other() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    explained = re.findall(r"^\| ([\w-]+) \|", page.split("## What is private")[0], re.MULTILINE)
    assert explained[2:] == names(PROJECT["dependencies"])
    extras = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert extras == list(PROJECT["optional-dependencies"])


def test_each_dependency_is_imported_by_the_program() -> None:
    files = [path for name in ("pipeline", "stylize") for path in (ROOT / name).rglob("*.py")]
    sources = "\n".join(path.read_text("utf-8") for path in files)
    modules = {"pillow": "PIL"}
    for name in names(PROJECT["dependencies"]):
        module = modules.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b", sources, re.MULTILINE), name


def test_what_is_private_or_patched_has_a_highest_version() -> None:
    capped = [need for need in PROJECT["dependencies"] if "<" in need]
    assert names(capped) == ["ray", "obstore"]


def test_each_licence_of_what_ships_is_there() -> None:
    found = [path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)]
    text = "\n".join(path.read_text("utf-8") for path in found)
    assert len(found) == 4
    for words in (
        "MIT License",
        "Leon Sorokin",
        "https://creativecommons.org/licenses/by/4.0/",
        "Visual Geometry Group",
    ):
        assert words in text
    for picture in (ROOT / "manifests" / "images").iterdir():
        assert f"`images/{picture.name}`" in text
