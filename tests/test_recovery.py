"""What becomes of pairs whose worker died: every case, without Ray and without a clock."""

from pipeline.paint.recovery import DEATHS, HEALTH_SECONDS, Death, Recovery, What
from pipeline.records import InputRef, Pair, Task
from stylize.config import StyleConfig


def task(name: str) -> Task:
    inputs = InputRef("content", "c.jpg", "c.jpg"), InputRef("style", "s.jpg", "s.jpg")
    return Task(Pair(1, name, f"images/{name}.png", inputs, StyleConfig()))


def death(*names: str, of_memory: bool = False, unreachable: bool = False) -> Death:
    tasks = [task(name) for name in names]
    return Death(tasks, "node-1", "the worker died", of_memory, unreachable)


def test_a_pair_is_tried_again_and_is_poison_after_two_deaths() -> None:
    recovery = Recovery(on_cluster=False)
    decisions = [recovery.judge(death("a"), now=n).what for n in range(DEATHS)]
    assert decisions == [What.AGAIN] * (DEATHS - 1) + [What.POISON]


def test_the_first_death_for_memory_does_not_count_and_the_pair_is_alone_from_then_on() -> None:
    recovery = Recovery(on_cluster=False)
    assert recovery.judge(death("a", of_memory=True), 0).what is What.ALONE
    assert recovery.must_wait(task("a"), [task("b")])  # others are at work
    assert recovery.must_wait(task("b"), [task("a")])  # it is at work itself
    assert not recovery.must_wait(task("a"), [])
    assert not recovery.must_wait(task("b"), [task("c")])
    assert recovery.judge(death("a", of_memory=True), 0).what is What.AGAIN
    assert recovery.judge(death("a", of_memory=True), 0).what is What.POISON


def test_a_pair_that_was_painted_after_all_need_not_be_alone() -> None:
    recovery = Recovery(on_cluster=False)
    recovery.judge(death("a", of_memory=True), 0)
    recovery.painted(["a"])
    assert not recovery.must_wait(task("a"), [task("b")])


def test_a_group_is_split_before_any_death_counts() -> None:
    recovery = Recovery(on_cluster=False)
    assert recovery.judge(death("a", "b"), 0).what is What.SPLIT
    assert recovery.must_be_apart(task("a"), task("c"))
    assert recovery.must_be_apart(task("c"), task("b"))
    assert not recovery.must_be_apart(task("c"))
    assert recovery.judge(death("a"), 0).what is What.AGAIN  # its first


def test_on_a_cluster_a_death_waits_until_the_node_is_known_to_live() -> None:
    recovery = Recovery(on_cluster=True)
    assert recovery.judge(death("a"), now=100).what is What.WAIT
    assert recovery.waits
    short = HEALTH_SECONDS / 3
    assert recovery.due(100 + short, {"node-1"}, stopping=False) == []
    (decision,) = recovery.due(100.1 + short, {"node-1"}, stopping=False)
    assert decision.what is What.AGAIN
    assert not recovery.waits


def test_a_worker_out_of_reach_gets_the_whole_time_of_the_health_check() -> None:
    recovery = Recovery(on_cluster=True)
    recovery.judge(death("a", unreachable=True), now=0)
    assert recovery.due(HEALTH_SECONDS, {"node-1"}, stopping=False) == []
    (decision,) = recovery.due(HEALTH_SECONDS + 0.1, {"node-1"}, stopping=False)
    assert decision.what is What.AGAIN


def test_a_node_that_is_gone_is_no_pairs_fault() -> None:
    recovery = Recovery(on_cluster=True)
    for _ in range(2 * DEATHS):
        recovery.judge(death("a"), now=0)
        (decision,) = recovery.due(1, {"node-2"}, stopping=False)
        assert decision.what is What.RETURN


def test_nothing_is_blamed_while_the_run_stops() -> None:
    recovery = Recovery(on_cluster=True)
    recovery.judge(death("a"), now=0)
    recovery.judge(death("b", "c"), now=0)
    decisions = recovery.due(999, {"node-1"}, stopping=True)
    assert [decision.what for decision in decisions] == [What.RETURN] * 2
