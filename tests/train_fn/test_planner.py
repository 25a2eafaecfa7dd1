"""A plan lays out a global batch: every example once, inside the budget, in few and even forwards."""

import heapq
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Layout, draw_examples, plan_run, write_store

from sftray.train_fn.batch import count_target_tokens
from sftray.train_fn.differencing import share_by_differencing
from sftray.train_fn.planner import Budget, MicroBatch, plan_step

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
WORLD_SIZES = st.integers(1, 9)
BUDGETS = st.builds(
    Budget,
    tokens=st.integers(60, 400),
    examples=st.integers(1, 6),
    packing=st.booleans(),
    max_rows=st.sampled_from([None, 1, 2]),
)
planned = settings(max_examples=100, deadline=None)


def list_examples(forwards: list[MicroBatch]) -> list[int]:
    return [i for rows in forwards for row in rows for i in row]


def pack_first_fit(lengths: list[int], capacity: int) -> int:
    """The number of bins of first-fit decreasing."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((b for b, left in enumerate(room) if left >= length), None)
        if place is None:
            room.append(capacity - length)
        else:
            room[place] -= length
    return len(room)


@planned
@given(lengths=LENGTHS, world_size=WORLD_SIZES, budget=BUDGETS)
def test_every_example_stands_in_one_row_of_one_rank(lengths: list[int], world_size: int, budget: Budget) -> None:
    plan = plan_step(lengths, world_size, budget)
    assert len(plan) == world_size
    assert sorted(i for forwards in plan for i in list_examples(forwards)) == list(range(len(lengths)))


def assert_in_budget(rows: MicroBatch, lengths: list[int], budget: Budget) -> None:
    assert rows and all(rows)
    if budget.packing:
        assert len(rows) * max(sum(lengths[i] for i in row) for row in rows) <= budget.tokens
        assert len(rows) <= (budget.max_rows or len(rows))
    else:
        assert len(rows) <= budget.examples and all(len(row) == 1 for row in rows)


@planned
@given(lengths=LENGTHS, world_size=WORLD_SIZES, budget=BUDGETS)
def test_every_forward_keeps_the_budget(lengths: list[int], world_size: int, budget: Budget) -> None:
    for forwards in plan_step(lengths, world_size, budget):
        for rows in forwards:
            assert_in_budget(rows, lengths, budget)


@pytest.mark.parametrize("tokens", [61, 240, 1000, 4000])
@pytest.mark.parametrize("max_rows", [None, 1, 2])
def test_forwards_of_many_examples_keep_the_budget(tokens: int, max_rows: int | None) -> None:
    lengths = [len(e.input_ids) for e in draw_examples(256)]
    budget = Budget(tokens, 1, packing=True, max_rows=max_rows)
    forwards = plan_step(lengths, 1, budget)[0]
    for rows in forwards:
        assert_in_budget(rows, lengths, budget)
    most = max(len(rows) for rows in forwards)
    assert most == max_rows or (max_rows is None and most > 2) or tokens == 61


@planned
@given(lengths=LENGTHS, world_size=WORLD_SIZES, tokens=st.integers(60, 400))
def test_packing_needs_no_more_forwards_than_first_fit_decreasing(
    lengths: list[int], world_size: int, tokens: int
) -> None:
    for forwards in plan_step(lengths, world_size, Budget(tokens, 1, packing=True)):
        share = [lengths[i] for i in list_examples(forwards)]
        assert math.ceil(sum(share) / tokens) <= len(forwards) <= pack_first_fit(share, tokens)


@pytest.mark.parametrize(
    ("lengths", "tokens", "forwards"),
    [
        pytest.param([10] * 12, 40, 3, id="equal lengths that divide the budget"),
        pytest.param([7, 6, 5, 4, 3, 3], 14, 2, id="two full bins"),
        pytest.param([1] * 60, 60, 1, id="one full bin"),
        pytest.param([60, 1, 1, 1], 60, 2, id="a long one alone"),
        pytest.param([31, 31, 31], 60, 3, id="no two fit together"),
        pytest.param([12, 11, 9, 5, 4, 4, 3], 24, 2, id="two bins that only differencing fills"),
        pytest.param([10, 6, 10, 5, 5, 12, 11], 30, 2, id="two bins that only first fit fills"),
    ],
)
def test_packing_reaches_the_fewest_forwards(lengths: list[int], tokens: int, forwards: int) -> None:
    assert len(plan_step(lengths, 1, Budget(tokens, 1, packing=True))[0]) == forwards


@planned
@given(lengths=LENGTHS, world_size=WORLD_SIZES, budget=BUDGETS)
def test_ranks_differ_by_one_example_of_tokens_at_most(lengths: list[int], world_size: int, budget: Budget) -> None:
    loads = [sum(lengths[i] for i in list_examples(forwards)) for forwards in plan_step(lengths, world_size, budget)]
    assert max(loads) - min(loads) <= max(lengths)


def share_with_empty_ones(lengths: list[int], num_shares: int) -> list[list[int]]:
    """The largest differencing method as it is written down: every split has all its shares, the empty ones too."""
    ordered = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    heap = [
        (-lengths[i], order, [*((0, list[int]()) for _ in range(num_shares - 1)), (lengths[i], [i])])
        for order, i in enumerate(ordered)
    ]
    while len(heap) > 1:
        (_, order, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        pairs = zip(one, reversed(other), strict=True)
        merged = sorted(((a + b, x + y) for (a, x), (b, y) in pairs), key=lambda share: share[0])
        heapq.heappush(heap, (merged[0][0] - merged[-1][0], order, merged))
    return [share for _, share in reversed(heap[0][2])]


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.one_of(
        st.lists(st.integers(1, top), min_size=1, max_size=most) for top, most in ((2, 60), (9, 40), (2000, 40))
    ),
    num_shares=st.integers(2, 20),
)
def test_empty_shares_need_not_be_written_out(lengths: list[int], num_shares: int) -> None:
    shares = share_by_differencing(range(len(lengths)), lengths, num_shares)
    assert shares == share_with_empty_ones(lengths, num_shares)


def test_the_memory_of_sharing_out_does_not_grow_with_workers_times_examples() -> None:
    lengths = np.random.default_rng(0).integers(1, 1024, 4096).tolist()
    tracemalloc.start()
    share_by_differencing(range(len(lengths)), lengths, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "with all empty shares written out it is above 100 MB"


def test_many_examples_are_shared_out_almost_evenly() -> None:
    lengths = [len(e.input_ids) for e in draw_examples(256)]
    plan = plan_step(lengths, 4, Budget(240, 4, packing=True))
    loads = [sum(lengths[i] for i in list_examples(forwards)) for forwards in plan]
    assert max(loads) - min(loads) <= 2


@pytest.mark.parametrize("tokens", [240, 2**16], ids=["many forwards", "one forward of 512 examples"])
def test_packed_forwards_are_mostly_full(tokens: int) -> None:
    lengths = [len(e.input_ids) for e in draw_examples(512)]
    forwards = plan_step(lengths, 1, Budget(tokens, 4, packing=True))[0]
    padded = sum(len(rows) * max(sum(lengths[i] for i in row) for row in rows) for rows in forwards)
    assert sum(lengths) / padded > 0.97


def test_without_packing_like_lengths_stand_together() -> None:
    assert plan_step([3, 9, 4, 8], 1, Budget(18, 2, packing=False)) == [[((1,), (3,)), ((2,), (0,))]]


@planned
@given(lengths=LENGTHS, world_size=WORLD_SIZES, budget=BUDGETS)
def test_the_same_question_has_the_same_answer(lengths: list[int], world_size: int, budget: Budget) -> None:
    assert plan_step(lengths, world_size, budget) == plan_step(np.array(lengths).tolist(), world_size, budget)


@pytest.mark.parametrize("packing", [True, False])
def test_a_rank_without_an_example_has_no_forward(packing: bool) -> None:
    plan = plan_step([5, 4], 4, Budget(10, 2, packing))
    assert sorted(len(forwards) for forwards in plan) == [0, 0, 1, 1]


@pytest.mark.parametrize("packing", [True, False])
def test_an_example_above_the_budget_is_refused(packing: bool) -> None:
    with pytest.raises(ValueError, match="61 tokens is above the budget of 60"):
        plan_step([3, 61], 1, Budget(60, 1, packing))


@pytest.mark.parametrize(
    "layout", [Layout(2, True, 1), Layout(1, True, 3), Layout(4, False, 5), Layout(1, False, 11)]
)
def test_steps_of_a_run_are_the_same_under_every_layout(tmp_path: Path, layout: Layout) -> None:
    examples = draw_examples(21, without_target=(3, 4))
    store = write_store(tmp_path, examples)
    run, reference = (plan_run(store, each, total_steps=6) for each in (layout, Layout()))
    for step in range(6):
        plan, expected = run.plan(step), reference.plan(step)
        assert plan.examples.tolist() == expected.examples.tolist()
        rows = [row for forwards in plan.micro_batches for forward in forwards for row in forward]
        assert sorted(i for row in rows for i in row) == sorted(plan.examples.tolist())
        assert plan.num_target_tokens == sum(count_target_tokens(examples[i].loss_mask) for i in plan.examples)
        assert plan.num_tokens == sum(len(examples[i].input_ids) for i in plan.examples) <= plan.padded_tokens
        assert all(forwards for forwards in plan.micro_batches), "every rank takes part in the reduction"
