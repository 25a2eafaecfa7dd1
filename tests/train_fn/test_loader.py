"""The plan of a run's steps: a budget in examples is kept to the example, whatever the global batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import Layout, build_model, build_trainer, draw_examples, plan_run, run_steps, write_store

from sftray.train_fn.config import OptimConfig
from sftray.train_fn.loader import RunPlan, count_total_steps
from sftray.train_fn.order import order_positions
from sftray.train_fn.planner import Budget

BATCHES = (1, 3, 8, 64)


def plan(num_examples: int, batch: int, epochs: int, max_examples: int | None, seed: int = 1) -> RunPlan:
    lengths = np.arange(2, 2 + num_examples, dtype=np.int64)
    return RunPlan(
        lengths=lengths,
        target_counts=lengths - 1,
        seed=seed,
        global_batch_size=batch,
        total_steps=count_total_steps(num_examples, batch, epochs, None, max_examples),
        world_size=2,
        budget=Budget(tokens=2 + num_examples, examples=4, packing=False),
        max_examples=max_examples,
    )


def order_run(num_examples: int, epochs: int, seed: int) -> NDArray[np.int64]:
    positions = np.arange(num_examples, dtype=np.int64)
    return np.concatenate([order_positions(seed, epoch, positions, num_examples) for epoch in range(epochs)])


@settings(max_examples=60, deadline=None)
@given(
    num_examples=st.integers(1, 30),
    epochs=st.integers(1, 4),
    max_examples=st.integers(1, 130),
    seed=st.integers(0, 2**40),
)
def test_every_global_batch_trains_on_the_same_examples_in_the_same_order(
    num_examples: int, epochs: int, max_examples: int, seed: int
) -> None:
    expected = order_run(num_examples, epochs, seed)[:max_examples]
    for batch in BATCHES:
        run = plan(num_examples, batch, epochs, max_examples, seed)
        steps = [run.plan(step) for step in range(run.total_steps)]
        assert all(step.examples.size for step in steps)
        assert np.concatenate([step.examples for step in steps]).tolist() == expected.tolist()
        counts = np.cumsum([0, *(step.examples.size for step in steps)])
        assert [run.count_examples(step) for step in range(run.total_steps + 1)] == counts.tolist()


def test_a_plan_is_the_same_whatever_was_asked_before() -> None:
    used = plan(30, 3, 5, None)
    for step in [*range(20), 3, 0, 19, 3, *range(49, 30, -1), 3]:
        one, fresh = used.plan(step), plan(30, 3, 5, None).plan(step)
        assert one.examples.tolist() == fresh.examples.tolist()
        assert one.micro_batches == fresh.micro_batches and one.padded_tokens == fresh.padded_tokens


@settings(max_examples=60, deadline=None)
@given(batch=st.sampled_from(BATCHES), max_examples=st.integers(1, 60))
def test_all_steps_but_the_last_are_those_of_an_uncut_run(batch: int, max_examples: int) -> None:
    cut, whole = plan(20, batch, 3, max_examples), plan(20, batch, 3, None)
    for step in range(cut.total_steps - 1):
        one, other = cut.plan(step), whole.plan(step)
        assert one.micro_batches == other.micro_batches and one.num_target_tokens == other.num_target_tokens
    last, uncut = (run.plan(cut.total_steps - 1) for run in (cut, whole))
    assert last.examples.tolist() == uncut.examples[: last.examples.size].tolist()
    laid_out = [i for forwards in last.micro_batches for rows in forwards for row in rows for i in row]
    assert sorted(laid_out) == sorted(last.examples.tolist())
    assert last.num_target_tokens == cut.target_counts[last.examples].sum()


@pytest.mark.parametrize(
    ("max_steps", "max_examples", "steps"),
    [
        *((None, None, 6), (4, None, 4), (9, None, 6), (2, 20, 2), (3, 12, 2)),
        *((None, 1, 1), (None, 8, 1), (None, 9, 2), (None, 20, 3), (None, 21, 4)),
        *((None, 40, 6), (None, 41, 6), (None, 1000, 6)),
    ],
)
def test_the_smallest_limit_ends_a_run(max_steps: int | None, max_examples: int | None, steps: int) -> None:
    """Two epochs of 20 examples are three steps each, of 8, 8 and 4."""
    assert count_total_steps(20, 8, 2, max_steps, max_examples) == steps


def test_a_cut_run_trains_as_an_uncut_one_up_to_its_last_step(tmp_path: Path) -> None:
    store = write_store(tmp_path, draw_examples(20))
    optim = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0)
    whole = plan_run(store, Layout(4), total_steps=3)
    cut = replace(whole, total_steps=2, max_examples=13)
    uncut_steps = run_steps(build_trainer(build_model()), whole, store, optim)
    first, last = run_steps(build_trainer(build_model()), cut, store, optim)
    assert first.outcome.loss == uncut_steps[0].outcome.loss
    assert last.metrics["examples"] == 13 and last.metrics["progress"] == 1.0
    five_alone = replace(cut, max_examples=None).plan(1).examples[:5]
    assert last.metrics["train/target_tokens"] == store.target_counts[five_alone].sum()
    assert last.outcome.loss != uncut_steps[1].outcome.loss and last.outcome.applied
