"""How many workers with how many threads, which pairs go together, and who is asked when."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from pipeline.paint.caller import ClusterError
from pipeline.paint.fleet import WORKER_MEMORY, Fleet, Headcount, Wanted, order, size_fleet
from pipeline.paint.polls import A_SECOND, Polls
from pipeline.records import InputRef, Pair, Task
from stylize.config import StyleConfig

PLENTY = 10**12  # bytes


@pytest.mark.parametrize(
    ("cpus", "wanted", "fleet"),
    [
        (8, Wanted(rows=100, side=64), Fleet(8, 1, 0)),
        (8, Wanted(rows=3, side=64), Fleet(4, 2, 0)),  # 4 x 2: no core idle while three work
        (8, Wanted(rows=1, side=64), Fleet(1, 8, 0)),
        (8, Wanted(rows=100, side=64, threads=4), Fleet(2, 4, 0)),
        (8, Wanted(rows=100, side=64, workers=2), Fleet(2, 4, 0)),
        (2, Wanted(rows=100, side=64, workers=4), Fleet(4, 0.5, 0)),
        (0, Wanted(rows=100, side=64), Fleet(1, 1, 0)),
    ],
    ids=str,
)
def test_cores_become_workers_as_far_as_pairs_suffice_and_then_threads(
    cpus: int, wanted: Wanted, fleet: Fleet
) -> None:
    assert size_fleet([{"CPU": cpus}], wanted, memory=PLENTY) == fleet


def test_no_more_workers_than_the_memory_holds_and_their_cores_are_threads() -> None:
    need = WORKER_MEMORY[0] + WORKER_MEMORY[1] * 2048**2  # beyond that, tiles
    memory = round(3.5 * need / 0.75)  # three workers in three quarters of it
    fleet = size_fleet([{"CPU": 30}], Wanted(rows=1000, side=4096), memory=memory)
    assert (fleet.workers, fleet.cpus) == (3, 10)
    least = size_fleet([{"CPU": 30}], Wanted(rows=1000, side=4096), memory=1)
    assert least.workers == 1
    there = Wanted(rows=1000, side=4096, address="auto")
    assert size_fleet([{"CPU": 30}], there, memory=memory).workers == 30  # not this machine's


def nodes(*given: tuple[int, int]) -> list[dict[str, float]]:
    """Cores and GPUs of each."""
    return [{"CPU": cpus, "GPU": gpus} for cpus, gpus in given]


def test_every_gpu_has_two_workers_if_there_are_cores_and_pairs_for_them() -> None:
    eight = nodes((32, 8))
    assert size_fleet(eight, Wanted(), 1000) == Fleet(16, 1, 0.5)
    assert size_fleet(eight, Wanted()) == Fleet(16, 1, 0.5)
    # Sixteen at 512 px are one batch, four at 1024 px; by what is left to do.
    assert size_fleet(eight, Wanted(rows=9999), 100) == Fleet(8, 1, 1)
    assert size_fleet(eight, Wanted(side=1024), 100) == Fleet(16, 1, 0.5)
    assert size_fleet(eight, Wanted(workers=8), 1000) == Fleet(8, 1, 1)
    assert size_fleet(nodes((4, 8)), Wanted(), 1000) == Fleet(8, 0.5, 1)
    # Ray puts a worker on one GPU: of nine with 8/9 of one each, one would find no place.
    assert size_fleet(nodes((32, 2)), Wanted(workers=3)) == Fleet(3, 1, 0.5)
    with pytest.raises(ClusterError, match="--device cuda: Ray sees no GPU"):
        size_fleet(nodes((4, 0)), Wanted(device="cuda"))


def test_each_worker_finds_its_place_on_one_node() -> None:
    there = Wanted(rows=1, side=64, address="auto")
    assert size_fleet(nodes((1, 0), (1, 0)), there) == Fleet(2, 1, 0)
    assert size_fleet(nodes((8, 0), (2, 0)), there) == Fleet(1, 8, 0)
    # Three pairs on two nodes: 3 x 5 threads of the sum would leave room for one a node.
    assert size_fleet(nodes((8, 0), (8, 0)), replace(there, rows=3)) == Fleet(4, 4, 0)
    # The head's cores do not help the GPUs of another node.
    assert size_fleet(nodes((16, 0), (4, 4)), there) == Fleet(4, 1, 1)
    assert size_fleet(nodes((16, 0), (8, 4)), there) == Fleet(8, 1, 0.5)


def test_pairs_of_one_objective_are_together_where_they_are_optimised_together() -> None:
    rows = [(f"c{n}.jpg", weight) for n in range(40) for weight in (50.0, 70.0)]
    pairs = [
        Pair(at, f"g{at}", "", (InputRef("content", c, c),), StyleConfig(style_weight=weight))
        for at, (c, weight) in enumerate(rows, 1)
    ]
    tasks = [Task(pair) for pair in pairs]
    as_written = [task.pair.config.style_weight for task in order(tasks)]
    assert as_written == [50.0, 70.0] * 40
    grouped = [task.pair.config.style_weight for task in order(tasks, by_objective=True)]
    assert sorted(grouped) in (grouped, grouped[::-1])  # which is first does not matter


def test_a_cluster_without_a_gpu_may_yet_get_one_and_a_machine_may_not() -> None:
    there = Wanted(device="cuda", address="auto")
    assert size_fleet(nodes((4, 0)), there, 100) == Fleet(1, 1, 1)  # one request, for autoscalers
    assert size_fleet(nodes((4, 0)), replace(there, device="auto", rows=9)).gpus == 0
    with pytest.raises(ClusterError, match="--device cuda: Ray sees no GPU"):
        size_fleet(nodes((4, 0)), replace(there, address=""))


def test_nodes_that_join_raise_the_number_of_workers_and_those_left_out_lower_it() -> None:
    has = {"a": {"CPU": 2.0}, "b": {"CPU": 4.0}}
    headcount = Headcount(Fleet(2, 1, 0), grows=True)
    assert headcount.see({"a": has["a"]})
    assert not headcount.see({"a": has["a"]})
    assert headcount.most == 3  # one request more than there is room for
    assert headcount.see(has)
    assert headcount.most == 7
    headcount.leave_out({"a": has["a"]})
    assert headcount.most == 3
    headcount.leave_out({})
    assert headcount.workers == 1


def test_a_thousand_workers_are_asked_no_more_often_than_twenty_and_each_gets_its_turn() -> None:
    for workers in (0, 1, 4, 20, 1000):
        polls, asked, looks = Polls(0.5), Counter[int](), 0
        for tick in range(1200):  # a minute
            turn = polls.turn(tick / 20, workers)
            looks += turn is not None
            asked.update(turn or ())
        assert looks == 120
        assert sum(asked.values()) <= 60 * A_SECOND
        assert set(asked) == set(range(workers))
        if workers and workers <= A_SECOND / 2:
            assert set(asked.values()) == {120}  # a few are asked at each look
    assert Polls(math.inf).turn(9.0, 5) is None  # nobody looks
