"""Which node lacks the inputs, and which pairs are at fault: every case, without Ray."""

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


def tried(reach: Reach, name: str, node: str, now: float = 0.0, *, driver_can: bool = True) -> None:
    reach.could_not_open(task(name), failed(name, node), node, now, driver_can=driver_can)


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
    assert reach.give_up(nodes, 0) == []
    reach.take("n2")
    tried(reach, "a", "n2")
    assert [row.host for row in reach.give_up(nodes, 0)] == ["n2"]
    assert reach.tasks == []
    assert not reach.is_suspect("n1")
    assert not reach.is_suspect("n2")


def test_where_the_driver_finds_the_input_missing_too_no_node_has_to_wait() -> None:
    reach = Reach()
    tried(reach, "a", "n1", driver_can=False)
    assert not reach.is_suspect("n1")
    assert reach.take("n1") is None
    assert reach.take("n2") is not None


def test_a_pair_does_not_wait_for_ever_for_a_node_that_never_has_a_worker() -> None:
    reach = Reach()
    tried(reach, "a", "n1", now=100)
    assert reach.give_up({"n1", "n2"}, 100 + PATIENCE) == []
    assert len(reach.give_up({"n1", "n2"}, 100.1 + PATIENCE)) == 1
    assert reach.give_up({"n1"}, 999) == []
