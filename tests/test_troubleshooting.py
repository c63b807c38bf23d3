"""The page of messages: each of them is in the code, and those that are quickly had do come."""

import ast
import re
from pathlib import Path

import pytest
from forks import cli
from helpers import TINY, pictures, write_csv

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)


def written(node: ast.AST) -> str:
    """A text of the code, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) or "…" for part in node.values)
    return ""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = [path for name in ("pipeline", "stylize") for path in (ROOT / name).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    return [text for node in nodes if (text := written(node))]


def pattern(message: str) -> re.Pattern[str]:
    parts = (re.escape(part) for part in message.split("…"))
    return re.compile(".*".join(parts), re.DOTALL)


def test_each_message_stands_once() -> None:
    assert len(MESSAGES) > 35
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_is_one_of_the_programs(message: str, texts: list[str]) -> None:
    assert len(message.replace("…", "")) > 10
    assert any(pattern(message).search(text) for text in texts)


def said(words: str, output: str) -> None:
    """A message of the page that begins so was printed."""
    (message,) = (m for m in MESSAGES if words in m)
    assert pattern(message).search(output), output


def test_messages_come_as_the_page_has_them(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "c0.jpg").read_bytes()[:400])
    said("no command and no", cli("stileize").stderr)
    said("is not a manifest", cli("validate", tmp_path / "s.png").stderr)
    wrong = write_csv(tmp_path / "wrong.csv", [{"content": "c0.jpg", "stile_weight": 1}])
    said("no such column", cli("validate", wrong).stderr)
    good = write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])
    done = cli(good, *TINY, "--in-process", "--backbone", "auto")
    said("using the bundled VGG-16", done.stderr)
    write_csv(tmp_path / "m.csv", [{"id": "b", "content": "cut.jpg"}])
    failed = cli(good, *TINY, "--in-process")
    said("damaged or cut short", failed.stderr)
    said("some pairs failed", failed.stderr)
    said("no Ray cluster", cli(good, *TINY, "--address", "127.0.0.1:1").stderr)
