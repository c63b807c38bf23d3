"""What is to be done and why: every case of the contract, with facts given by hand."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.plan import Picture, Plan, pending, taken_outputs
from pipeline.records import Input, InputRef, Pair, Result
from stylize.config import StyleConfig

CONFIG = StyleConfig(steps=100)


def pair(pair_id: str = "a", **changes: Any) -> Pair:
    values: dict[str, Any] = {"output": f"images/{pair_id}.png", "config": CONFIG} | changes
    inputs = InputRef("content", "c.jpg", "c.jpg"), InputRef("style", "s.jpg", "s.jpg")
    return Pair(1, pair_id, inputs=inputs, **values)


def with_settings(**settings: Any) -> Pair:
    return pair(config=dataclasses.replace(CONFIG, **settings))


def result(pair_id: str = "a", **changes: Any) -> Result:
    ok = changes.get("status", "ok") == "ok"
    values = {
        "status": "ok",
        "key": "k1" if ok else "",
        "output": f"images/{pair_id}.png",
        "output_sha256": "p1" if ok else "",
        "settings": dataclasses.replace(CONFIG, backbone="vgg16").to_json(),
        "inputs": (Input("content", "c.jpg", "1:1", "h"),),
        "algorithm": 2,
    }
    known = {"row": 1, "content": "c.jpg", "style": "s.jpg", **values, **changes}
    return Result(pair_id, **known)


@dataclass
class Known:
    """Facts given by hand; `asked` records what the plan wanted to know."""

    today: str = "k1"
    differs: Sequence[str] = ()
    file: Picture = "ok"
    carries_key: bool = False
    algorithm: int = 2
    asked: list[str] = field(default_factory=list)

    def key(self, pair: Pair, result: Result) -> str:
        self.asked.append("key")
        return self.today

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        self.asked.append("changed")
        return self.differs

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        self.asked.append("picture" if result else "picture of nobody")
        return self.file

    def adoptable(self, pair: Pair) -> Result | None:
        self.asked.append("adoptable")
        return result(pair.pair_id) if self.carries_key else None


def plan(before: Result | None, given: Pair | None = None, **options: Any) -> Plan:
    names = {f.name for f in dataclasses.fields(Known)}
    facts = Known(**{k: options.pop(k) for k in list(options) if k in names})
    results = {before.pair_id: before} if before else {}
    return pending([given or pair()], results, facts=facts, **options)


def verdict(*args: Any, **options: Any) -> str:
    """The one pair's list, and the reason where there is one."""
    found = plan(*args, **options)
    words = [f"todo: {reason}" for _, reason in found.todo]
    words += ["adopt"] * len(found.adopt) + ["done"] * len(found.done)
    words += [f"skipped: {reason}" for _, reason in found.skipped]
    assert len(words) == 1  # the books balance
    return words[0]


def test_done_is_ok_with_todays_key_and_its_picture() -> None:
    assert verdict(result()) == "done"


def test_a_done_pair_asks_for_no_more_than_key_and_picture() -> None:
    facts = Known()
    pending([pair()], {"a": result()}, facts=facts)
    assert facts.asked == ["key", "picture"]


def test_a_pair_without_a_row_is_new() -> None:
    assert verdict(None, file="missing") == "todo: new"


def test_a_missing_picture_is_made_again() -> None:
    assert verdict(result(), file="missing") == "todo: picture is missing"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 200, "steps 100 -> 200"),
        ("clamp", False, "clamp true -> false"),
        ("strength", 0.25, "strength 0.5 -> 0.25"),
        ("content_layers", (("relu3_1", 2.0),), "content_layers relu4_2:1 -> relu3_1:2"),
        ("style_blend", (0.7, 0.3), "style_blend none -> 0.7|0.3"),
        ("backbone", "vgg19", "backbone vgg16 -> vgg19"),
    ],
)
def test_the_reason_names_the_setting_that_changed(name: str, value: Any, words: str) -> None:
    today = with_settings(**{name: value})
    assert verdict(result(), today, today="k2") == f"todo: settings changed: {words}"


def test_the_reason_names_three_settings_at_most_and_never_the_preset() -> None:
    four = {"size": 64, "steps": 1, "strength": 1.0, "clamp": False}
    today = with_settings(**four)
    expected = "size 512 -> 64, steps 100 -> 1, strength 0.5 -> 1, 1 more"
    assert verdict(result(), today, today="k2") == f"todo: settings changed: {expected}"
    draft = pair(config=StyleConfig(**(vars(CONFIG) | {"preset": "draft"})))
    assert draft.config.preset == "draft"
    assert "settings" not in verdict(result(), draft, today="k2", differs=["content"])


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        (["content"], "content file changed"),
        (["content", "style2"], "content file and style2 file changed"),
        (["weights"], "weights changed"),
        ([], "an input or setting changed"),
    ],
)
def test_the_reason_names_the_input_that_changed(roles: list[str], words: str) -> None:
    assert verdict(result(), today="k2", differs=roles) == f"todo: {words}"


def test_settings_that_differ_only_in_paths_of_the_same_bytes_are_no_change() -> None:
    today = with_settings(size=16)  # the key is what counts
    assert verdict(result(), today, today="k1") == "done"


def test_another_output_is_made_anew() -> None:
    today = pair(output="images/b.png")
    words = "todo: output changed: images/a.png -> images/b.png"
    assert verdict(result(), today, file="missing") == words


def test_an_input_that_is_gone_makes_a_pair_pending() -> None:
    assert verdict(result(), today="") == "todo: an input cannot be read now"


def test_force_does_everything_again_and_adopts_nothing() -> None:
    assert verdict(result(), force=True, carries_key=True) == "todo: forced"
    assert verdict(None, force=True, carries_key=True) == "todo: forced"


# Failures

FAILED = {"error_message": "file is cut short\nmore", "error_type": "ImageReadError"}


@pytest.mark.parametrize("status", ["failed", "timeout"])
def test_failed_and_timed_out_pairs_are_tried_again(status: str) -> None:
    before = result(status=status, **FAILED)
    assert verdict(before, file="missing") == f"todo: {status} before: file is cut short"


def test_poison_is_tried_only_when_named() -> None:
    before = result(status="poison", **FAILED)
    skipped = "skipped: poison before: file is cut short (--retry-failed=poison tries it again)"
    assert verdict(before, file="missing") == skipped
    assert verdict(before, file="missing", force=True) == skipped
    again = verdict(before, file="missing", retry_failed="poison")
    assert again == "todo: poison before: file is cut short"


def test_retry_of_one_kind_leaves_the_other_failures_and_not_the_new_pairs() -> None:
    kinds = ["failed", "timeout", "poison"]
    results = {kind: result(kind, status=kind, **FAILED) for kind in kinds}
    pairs = [pair(name) for name in (*kinds, "new")]
    found = pending(pairs, results, facts=Known(file="missing"), retry_failed="timeout")
    assert [p.pair_id for p, _ in found.todo] == ["timeout", "new"]
    assert [p.pair_id for p, _ in found.skipped] == ["failed", "poison"]


@pytest.mark.parametrize("status", ["failed", "timeout", "poison"])
def test_no_retry_leaves_all_failures(status: str) -> None:
    before = result(status=status, **FAILED)
    today = with_settings(steps=1)
    for given in (pair(), today):
        words = verdict(before, given, file="missing", retry_failed="none")
        assert words.startswith("skipped: ")
        assert "--no-retry-failed" in words


def test_a_poison_pair_whose_settings_changed_is_tried_again() -> None:
    before = result(status="poison", **FAILED)
    words = verdict(before, with_settings(size=64), file="missing")
    assert words == "todo: settings changed: size 512 -> 64 (poison before: file is cut short)"


def test_a_failure_that_never_got_to_its_settings_is_still_compared() -> None:
    for settings in ("{}", "", "no json"):
        before = result(status="failed", settings=settings, error_type="OSError")
        assert verdict(before, file="missing") == "todo: failed before: OSError"


# Crashes and hands


def test_a_picture_that_was_finished_before_a_crash_is_adopted() -> None:
    changed = with_settings(steps=200)
    assert verdict(None, carries_key=True) == "adopt"
    assert verdict(result(status="failed", **FAILED), carries_key=True) == "adopt"
    # The row is of the picture before; the one that stands there is newer than the row.
    assert verdict(result(), changed, today="k2", file="changed", carries_key=True) == "adopt"


def test_a_picture_of_a_run_that_was_broken_off_is_painted_over() -> None:
    words = verdict(result(), file="rowless")
    assert words == "todo: picture has other settings, from a run that was interrupted"
    assert verdict(result(), file="rowless", force=True) == "todo: forced"
    changed = with_settings(steps=300)
    assert verdict(result(), changed, today="k3", file="rowless").startswith("todo: settings")


def test_a_missing_picture_is_never_asked_for_its_key() -> None:
    facts = Known(file="missing")
    pending([pair()], {}, facts=facts)
    assert "adoptable" not in facts.asked


@pytest.mark.parametrize("options", [{}, {"today": "k2"}, {"force": True}, {"carries_key": True}])
def test_a_picture_edited_by_hand_is_kept(options: dict[str, Any]) -> None:
    if options == {"carries_key": True}:
        assert verdict(result(), file="changed", **options).startswith("skipped: ")
        return
    words = verdict(result(), file="changed", **options)
    assert words == (
        "skipped: picture was edited by hand; it is kept (--redo-changed paints it again)"
    )


def test_redo_changed_does_edited_pictures_again() -> None:
    words = verdict(result(), file="changed", redo_changed=True)
    assert words == "todo: picture was edited by hand"
    assert verdict(result(), redo_changed=True) == "done"


def test_the_standing_picture_of_a_failed_attempt_is_not_overwritten_if_edited() -> None:
    before = result(status="failed", key="k0", output_sha256="p0", **FAILED)
    assert verdict(before, file="ok") == "todo: failed before: file is cut short"
    assert verdict(before, file="changed").startswith("skipped: picture was edited by hand")


def test_a_file_of_somebody_else_at_the_output_is_not_overwritten() -> None:
    for before in (None, result(status="failed", **FAILED), result(output="images/old.png")):
        words = verdict(before, file="changed")
        assert words.startswith("skipped: a file that this program did not make")
        assert verdict(before, file="changed", redo_changed=True).startswith("todo: ")


# Versions


def test_a_picture_by_an_older_algorithm_is_done_unless_asked_for() -> None:
    found = plan(result(algorithm=1))
    assert [p.pair_id for p in found.done] == ["a"]
    assert found.older == found.done
    assert plan(result()).older == []
    words = verdict(result(algorithm=1), redo_older=True)
    assert words == "todo: made by algorithm 1; today's is 2"
    assert verdict(result(), redo_older=True) == "done"


def test_every_pair_is_in_exactly_one_list() -> None:
    pairs = [pair(str(number)) for number in range(60)]
    kinds = ["ok", "failed", "timeout", "poison"]
    results = {str(n): result(str(n), status=kinds[n % 4], **FAILED) for n in range(40)}
    found = pending(pairs, results, facts=Known())
    assert len(found.todo) == 10 + 10 + 20
    assert (len(found.done), len(found.skipped), len(found.adopt)) == (10, 10, 0)


def test_planning_touches_no_file_and_needs_records_and_settings_alone() -> None:
    code = (
        "import sys, pipeline.plan\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in\n"
        "  ('pipeline', 'stylize', 'pyarrow', 'torch', 'ray', 'numpy', 'PIL')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ours = ["pipeline", "pipeline.plan", "pipeline.records"]
    settings = ["config", "errors", "fields", "layers", "presets"]
    ours += ["stylize", *(f"stylize.{name}" for name in settings)]
    assert done.stdout == f"{ours}\n", done.stderr


# Two manifests, one OUT


def test_an_output_that_is_the_picture_of_another_manifests_pair_is_taken() -> None:
    theirs = result("monday", content="m.jpg", output="001.png", row=7)
    mine = pair("tuesday", output="001.png")
    assert taken_outputs([mine], [theirs]) == [(mine, theirs)]
    never_painted = dataclasses.replace(theirs, output_sha256="")
    assert taken_outputs([mine], [never_painted]) == []


def test_a_row_without_an_id_may_paint_over_its_own_picture_when_its_settings_are_edited() -> None:
    before = result("0123456789ab", output="001.png")
    edited = pair("ba9876543210", output="001.png", generated_id=True)
    assert taken_outputs([edited], [before]) == []
    named = dataclasses.replace(edited, generated_id=False)
    assert taken_outputs([named], [before]) == [(named, before)]
