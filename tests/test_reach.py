"""Which node lacks the inputs or the memory, and which pairs are at fault: every case, without
Ray."""

from dataclasses import replace

from pipeline.paint.attempts import new_row
from pipeline.paint.reach import PATIENCE, Reach
from pipeline.records import InputRef, Pair, Result, Task
from stylize.config import StyleConfig


def task(name: str) -> Task:
    inputs = InputRef("content", "c.jpg", "c.jpg"), InputRef("style", "s.jpg", "s.jpg")
    return Task(Pair(1, name, f"images/{name}.png", inputs, StyleConfig()))


def failed(name: str, node: str) -> Result:
    return replace(new_row(task(name)), host=node, unopened=True)


def tried(reach: Reach, name: str, node: str, now: float = 0.0, *, suspect: bool = True) -> None:
    reach.failed(task(name), failed(name, node), node, now, suspect=suspect)


def too_large(reach: Reach, name: str, node: str) -> None:
    row = replace(failed(name, node), unopened=False, too_large=True)
    reach.failed(task(name), row, node, 0, suspect=False)


def test_a_pair_goes_to_a_node_that_has_not_tried_it() -> None:
    reach = Reach()
    tried(reach, "a", "n1")
    assert [waiting.pair.pair_id for waiting in reach.tasks] == ["a"]
    assert reach.closed == {"n1"}
    assert reach.take("n1") is None
    taken = reach.take("n2")
    assert taken is not None
    assert taken.pair.pair_id == "a"
    assert reach.tasks == []


def test_a_node_is_to_blame_only_where_another_one_can_open_the_input() -> None:
    reach = Reach()
    tried(reach, "a", "n1")
    assert reach.is_suspect("n1")  # no further pairs are given to it meanwhile
    reach.take("n2")
    assert {node: row.host for node, row in reach.opened("a").items()} == {"n1": "n1"}
    assert not reach.is_suspect("n1")
    assert reach.opened("b") == {}


def test_an_input_that_no_node_can_open_is_the_pairs_failure_and_no_nodes() -> None:
    reach = Reach()
    nodes = {"n1", "n2"}
    tried(reach, "a", "n1")
    assert reach.give_up(nodes, nodes, 0) == []
    reach.take("n2")
    tried(reach, "a", "n2")
    assert [row.host for row in reach.give_up(nodes, nodes, 0)] == ["n2"]
    assert reach.tasks == []
    assert not reach.is_suspect("n1")
    assert not reach.is_suspect("n2")


def test_where_the_driver_finds_the_input_missing_too_no_node_has_to_wait() -> None:
    reach = Reach()
    tried(reach, "a", "n1", suspect=False)
    assert not reach.is_suspect("n1")
    assert reach.take("n1") is None
    assert reach.take("n2") is not None


def test_a_pair_waits_for_a_worker_at_work_but_not_for_ever_for_a_node_that_never_has_one() -> None:
    reach = Reach()
    tried(reach, "a", "n1", now=100)
    nodes = {"n1", "n2"}
    assert reach.give_up(nodes, {"n1"}, 100 + PATIENCE) == []
    assert reach.give_up(nodes, {"n2"}, 9999) == []
    assert len(reach.give_up(nodes, {"n1"}, 100.1 + PATIENCE)) == 1
    assert reach.give_up({"n1"}, {"n1"}, 999) == []


def test_a_pair_too_large_for_a_device_goes_to_a_larger_one_and_no_node_is_to_blame() -> None:
    sizes = {"small": 16, "alike": 16, "larger": 24, "largest": 80}
    reach = Reach(memory=dict(sizes))
    too_large(reach, "a", "small")
    assert reach.closed == {"small", "alike"}
    assert reach.take("alike") is None
    assert reach.take("larger") is not None
    too_large(reach, "a", "larger")
    assert reach.take("small") is None
    assert reach.take("new") is not None  # whose memory is not known yet
    too_large(reach, "a", "new")
    assert not any(map(reach.is_suspect, sizes))
    assert reach.take("largest") is not None
    assert reach.opened("a") == {}
    too_large(reach, "b", "largest")
    assert [row.pair_id for row in reach.give_up(sizes, sizes, 0)] == ["b"]
