"""What is decided in columns is what is decided pair by pair, also where rows are awkward."""

import csv
import dataclasses
import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.manifest.pairs import Manifest
from pipeline.manifest.reader import read_manifest
from pipeline.manifest.table import ManifestError
from pipeline.options import Options
from pipeline.paint.attempts import new_row
from pipeline.plan import Plan, pending
from pipeline.records import Input, Pair, Result, Task, pair_key
from pipeline.run import make_plan
from pipeline.settled import settle
from pipeline.store.facts import FileFacts
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock
from pipeline.store.reading import read_results
from stylize import weights
from stylize.config import ALGORITHM, StyleConfig

WEIGHTS = weights.identity(weights.BUNDLED)[1]
COLUMNS = [
    "id",
    "content",
    "style",
    "output",
    "style_weight",
    "preset",
    "init",
    "mask",
    "meta.shot",
]
LATER = "2100-01-01T00:00:00.250000+00:00"
AWKWARD: list[dict[str, str]] = [
    {"content": "photos/ä ö.jpg"},
    {"content": "photos/(1).jpg", "style": "s.jpg|t.jpg"},
    {"content": ".hidden.jpg", "id": "a.b..c"},
    {"content": "photos/" + "n" * 100 + ".jpg"},
    {"style": "s.jpg|t.jpg", "mask": "m.png|n.png"},
    {"init": "start.png", "mask": "m.png"},
    {"init": "noise", "preset": "draft"},
    {"output": "mine/{n}.JPG"},
    {"output": "mine/ä {n}.png", "id": "né {n}"},
    {"id": "x.preview {n}"},
    {"id": ""},
    {"id": "", "style_weight": "{n}", "meta.shot": "scene {n}"},
    {"style_weight": " 7{n} ", "meta.shot": " "},
    {"meta.shot": "two\nlines"},
]


def row_of(n: int, changes: dict[str, str]) -> dict[str, str]:
    usual = {"id": f"p{n}", "content": f"photos/c{n}.jpg", "style": "s.jpg", "style_weight": "60"}
    return {name: text.format(n=n) for name, text in {**usual, **changes}.items()}


def rows(seed: int) -> list[dict[str, str]]:
    dice = random.Random(seed)
    rows = [row_of(n, dice.choice([{}, {}, *AWKWARD])) for n in range(60)]
    # Twice the same id or output is a problem, which another test has.
    return [*{(row["id"], row["content"], row["style_weight"]): row for row in rows}.values()]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("seed", range(6))
def test_rows_with_usual_names_become_the_pairs_that_are_read_with_care(
    tmp_path: Path, seed: int
) -> None:
    good = rows(seed)
    path = write(tmp_path / "m.csv", good)
    quickly = read_manifest(path, defaults={"preset": "paper"})
    # One row with a problem has all of them read with care, one by one.
    write(tmp_path / "m.csv", [*good, row_of(99, {"style": ""})])
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, defaults={"preset": "paper"})
    assert list(caught.value.pairs) == list(quickly)
    assert len(quickly) == len(good)
    assert [pair.row for pair in quickly] == list(range(1, len(good) + 1))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"id": "same"}, {"id": "same"}, "is also the id of line 2"),
        ({"output": "a/B.png"}, {"output": "a/b.png"}, "differs only in case"),
        ({"output": "a/b.png"}, {"output": "a/b.png/c.png"}, "lies in a folder"),
        ({"output": "A.png/x/c.png"}, {"output": "a.png"}, "lies in a folder"),
        ({"id": "", "content": "c"}, {"id": "", "content": "c"}, "settings of line 2"),
        ({"id": "A"}, {"id": "a", "content": "photos/C0.jpg"}, "differs only in case"),
    ],
)
def test_what_two_usual_rows_share_is_named(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "m.csv", [row_of(0, first), row_of(1, second)])
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert len(caught.value.problems) == 1


class House:
    """A manifest whose pairs are in many states."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.rows = rows(seed)
        self.manifest = write(folder / "m.csv", self.rows)
        self.out = OutFolder(folder / "m")
        with Lock(self.out, "r"), Index(self.out, "r") as index:
            self.out.fix(backbone="vgg16", weights={"vgg16": WEIGHTS})
            for pair in read_manifest(self.manifest, defaults={"backbone": "vgg16"}):
                for ref in pair.inputs:
                    Path(ref.path).parent.mkdir(exist_ok=True)
                    Path(ref.path).write_bytes(ref.path.encode())
                index.extend(self.dice.choice(STATES)(self, pair))

    def painted(self, pair: Pair, algorithm: int = ALGORITHM, **changes: Any) -> Result:
        """Put a picture at the output, and return its row."""
        inputs = tuple(
            Input(ref.role, ref.written, storage.stat(ref.path), storage.sha256(ref.path))
            for ref in pair.inputs
        )
        hashes = {given.role: given.sha256 for given in inputs}
        data = pair.output.encode()
        storage.put(self.out.path(pair.output), data)
        result = dataclasses.replace(
            new_row(Task(pair)),
            status="ok",
            inputs=inputs,
            algorithm=algorithm,
            key=pair_key(hashes, pair.config.digest(algorithm), WEIGHTS, algorithm),
            backbone="vgg16",
            weights_sha256=WEIGHTS,
            output_sha256=hashlib.sha256(data).hexdigest(),
            output_bytes=len(data),
            finished_at=LATER,
        )
        return dataclasses.replace(result, **changes)


def _done(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair)]


def _new(house: House, pair: Pair) -> list[Result]:
    return []


def _moved(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair, row=pair.row + 1)]


def _other_words(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair, meta={"shot": "another"}, generated_id=None)]


def _older(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair, ALGORITHM - 1)]


def _touched(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    os.utime(pair.inputs[0].path, ns=(1, house.dice.randrange(10**9)))
    return [result]


def _changed_input(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    Path(pair.inputs[0].path).write_bytes(b"other bytes")
    return [result]


def _input_gone(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    Path(pair.inputs[0].path).unlink()
    return [result]


def _unknown_input(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    inputs = result.inputs[0]._replace(path="elsewhere.jpg"), *result.inputs[1:]
    return [dataclasses.replace(result, inputs=inputs)]


def _in_another_order(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    return [dataclasses.replace(result, inputs=result.inputs[::-1])]


def _other_settings(house: House, pair: Pair) -> list[Result]:
    config = pair.config.changed(steps=7)
    return [house.painted(dataclasses.replace(pair, config=config))]


def _picture_gone(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    os.remove(house.out.path(pair.output))
    return [result]


def _edited(house: House, pair: Pair) -> list[Result]:
    result = house.painted(pair)
    Path(house.out.path(pair.output)).write_bytes(b"edited")
    return [result]


def _newer_picture(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair, finished_at="2001-01-01T00:00:00+00:00")]


def _foreign_picture(house: House, pair: Pair) -> list[Result]:
    house.painted(pair)
    return []


def _other_output(house: House, pair: Pair) -> list[Result]:
    return [house.painted(dataclasses.replace(pair, output=f"old/{pair.row}.png"))]


def _failed(house: House, pair: Pair) -> list[Result]:
    return [dataclasses.replace(new_row(Task(pair)), error_message="why", finished_at=LATER)]


def _poison(house: House, pair: Pair) -> list[Result]:
    return [dataclasses.replace(row, status="poison") for row in _failed(house, pair)]


def _failed_after_a_picture(house: House, pair: Pair) -> list[Result]:
    return [house.painted(pair), *_failed(house, pair)]


def _painted_twice(house: House, pair: Pair) -> list[Result]:
    return [*_other_settings(house, pair), house.painted(pair)]


STATES = [
    *(_done, _done, _done, _done, _new, _moved, _other_words, _older, _touched, _changed_input),
    *(_input_gone, _unknown_input, _in_another_order, _other_settings, _picture_gone, _edited),
    *(_newer_picture, _foreign_picture, _other_output, _failed, _poison),
    *(_failed_after_a_picture, _painted_twice),
]


def told(plan: Plan) -> dict[str, Any]:
    """What a plan says, so that two of them can be compared."""
    return {
        "todo": [(pair.pair_id, reason) for pair, reason in plan.todo],
        "skipped": [(pair.pair_id, reason) for pair, reason in plan.skipped],
        "done": [pair.pair_id for pair in plan.done],
        "older": [pair.pair_id for pair in plan.older],
        "adopt": plan.adopt,
    }


def one_by_one(house: House, pairs: Manifest, options: Options) -> tuple[Plan, FileFacts]:
    """The plan without anything settled beforehand."""
    facts = FileFacts(house.out, lambda _: WEIGHTS, verify_inputs=options.verify_inputs)
    plan = pending(
        list(pairs),
        read_results(house.out),
        facts=facts,
        force=options.force,
        retry_failed=options.retries,
        redo_changed=options.redo_changed,
        redo_older=options.redo_older,
    )
    return plan, facts


@pytest.mark.parametrize("seed", range(4))
def test_what_is_settled_beforehand_is_what_would_be_found_pair_by_pair(
    tmp_path: Path, seed: int
) -> None:
    house = House(tmp_path, seed)
    seen = set()
    for changes in (
        {},
        {"force": True},
        {"redo_older": True},
        {"redo_changed": True},
        {"verify_inputs": True},
        {"no_retry_failed": True},
        {"only": tuple(row["id"] for row in house.rows[10:40] if row["id"])},
    ):
        options = Options(out=house.out.written, **changes)
        plan, pairs, _ = make_plan(house.manifest, {"backbone": "vgg16"}, options, print)
        expected, facts = one_by_one(house, pairs, options)
        assert told(plan) == told(expected), changes
        # The rows that a run writes again are the same, too.
        results = read_results(house.out)
        assert todays(plan.stale, results, facts) == todays(expected.done, results, facts)
        seen |= {bool(plan.done), len(plan.stale) < len(plan.done)}
    assert seen == {True, False}  # much was settled, and with --force nothing


def test_pictures_are_strangers_only_where_the_whole_manifest_lacks_their_pairs(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, 0)
    whole = read_manifest(house.manifest, defaults={"backbone": "vgg16"})
    facts = FileFacts(house.out, lambda _: WEIGHTS)

    def strangers(whole: Manifest, pairs: Manifest) -> set[str]:
        tables = settle(whole, pairs, facts, redo=False, older=False).strangers
        return {name for table in tables for name in table["pair_id"].to_pylist()}

    assert strangers(whole, whole) == strangers(whole, whole[:20]) == set()
    rest = {row.pair_id for row in read_results(house.out).values() if row.output_sha256}
    assert strangers(whole[:20], whole[:20]) == rest - set(whole[:20].ids.to_pylist()) != set()


def todays(pairs: Any, results: dict[str, Result], facts: FileFacts) -> list[Result]:
    rows = [facts.restate(pair, results[pair.pair_id]) for pair in pairs]
    return [row for row in rows if row != results[row.pair_id]]


def test_settings_that_are_changed_are_those_that_are_made_anew() -> None:
    for changes in ({"style_weight": 5}, {"steps": 7, "init": "noise"}, {"size": "12MP"}):
        made = StyleConfig.of("paper", **changes)
        changed = StyleConfig.of("paper").changed(**changes)
        assert (changed, changed.digest()) == (made, made.digest())
        assert repr(changed) == repr(made)
