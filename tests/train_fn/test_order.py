"""The order of examples is a permutation that depends on (seed, epoch, position) alone."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sftray.train_fn.order import count_examples_before, count_steps_per_epoch, order_positions, order_step

SEEDS = st.integers(0, 2**63 - 1)


def order_epoch(seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    return order_positions(seed, epoch, np.arange(num_examples), num_examples)


@pytest.mark.parametrize("num_examples", [*range(1, 70), 255, 256, 257, 1023, 1024, 1025])
def test_an_epoch_is_a_permutation(num_examples: int) -> None:
    for epoch in range(2):
        assert sorted(order_epoch(1, epoch, num_examples)) == list(range(num_examples))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 10**6), num_examples=st.integers(1, 5000), data=st.data())
def test_any_slice_can_be_asked_for_alone(seed: int, epoch: int, num_examples: int, data: st.DataObject) -> None:
    whole = order_epoch(seed, epoch, num_examples)
    assert np.array_equal(np.sort(whole), np.arange(num_examples))
    start = data.draw(st.integers(0, num_examples))
    stop = data.draw(st.integers(start, num_examples))
    assert np.array_equal(order_positions(seed, epoch, np.arange(start, stop), num_examples), whole[start:stop])


def test_a_seek_far_into_a_huge_data_set_is_cheap() -> None:
    """2**50 examples: anything but constant time and memory would end the process."""
    last = order_positions(1, 3, np.array([2**50 - 1]), 2**50)
    assert 0 <= last[0] < 2**50


@pytest.mark.parametrize("positions", [[-1], [5], [0, 7]])
def test_a_position_outside_is_refused(positions: list[int]) -> None:
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        order_positions(1, 0, np.array(positions), 5)


def test_seeds_and_epochs_order_differently() -> None:
    # Seeds of more than 32 bits stand here because 2**32 + 5 at epoch 0 could be taken for 5 at epoch 1.
    pairs = [(seed, epoch) for seed in (0, 1, 2, 5, 2**32, 2**32 + 5, 2**63 - 1) for epoch in range(3)]
    assert len({order_epoch(seed, epoch, 64).tobytes() for seed, epoch in pairs}) == len(pairs)


def correlate(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    return abs(float(np.corrcoef(x, y)[0, 1]))


@pytest.mark.parametrize(
    "pair",
    [
        lambda one, other: (one, np.arange(one.size)),
        lambda one, other: (one[1:], one[:-1]),
        lambda one, other: (one, other),
    ],
    ids=["position", "neighbour", "epoch"],
)
def test_order_is_unbiased(pair: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
    """A fair shuffle of 10**5 has a correlation of 0 with a standard deviation of 0.0032; 5 of them are allowed."""
    one, other = (order_epoch(7, epoch, 100_000) for epoch in range(2))
    assert correlate(*pair(one, other)) < 0.016


def test_every_example_reaches_every_position_alike() -> None:
    """2,000 epochs of 6 examples: a cell of the table holds 333 on average, with a standard deviation of 17."""
    table = np.zeros((6, 6), dtype=np.int64)
    for epoch in range(2000):
        table[np.arange(6), order_epoch(3, epoch, 6)] += 1
    assert np.abs(table - 2000 / 6).max() < 85


def test_neighbours_stay_neighbours_no_more_than_by_chance() -> None:
    order = order_epoch(1, 0, 100_000)
    assert (np.diff(order) == 1).sum() < 10  # 1 by chance


def test_the_order_is_this_one_for_ever() -> None:
    """Who resumes a run after an update must meet the examples in the order of its beginning."""
    assert order_epoch(1, 0, 10).tolist() == [8, 3, 4, 0, 9, 6, 1, 2, 5, 7]
    assert order_positions(2**40, 7, np.arange(5), 1_000_003).tolist() == [975981, 836737, 32762, 278464, 719349]


def test_steps_cut_the_epoch_and_the_last_batch_is_smaller() -> None:
    steps = [order_step(1, step, 4, 10) for step in range(6)]
    assert [(epoch, len(batch)) for epoch, batch in steps] == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
    assert np.concatenate([batch for _, batch in steps[:3]]).tolist() == order_epoch(1, 0, 10).tolist()
    assert np.concatenate([batch for _, batch in steps[3:]]).tolist() == order_epoch(1, 1, 10).tolist()


@pytest.mark.parametrize("global_batch_size", [1, 3, 10, 64])
def test_examples_before_a_step_are_those_of_the_steps_before(global_batch_size: int) -> None:
    consumed = 0
    for step in range(3 * count_steps_per_epoch(10, global_batch_size)):
        assert count_examples_before(step, 10, global_batch_size) == consumed
        consumed += len(order_step(1, step, global_batch_size, 10)[1])
    assert consumed == 30
