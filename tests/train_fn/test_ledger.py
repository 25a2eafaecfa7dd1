"""The ledger tells which examples were trained on, whatever the layout, and finds what is missing or repeated."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Layout, build_model, build_trainer, draw_examples, plan_run, run_steps, write_store

from sftray.train_fn.config import OptimConfig
from sftray.train_fn.ledger import START, Tally, compute_chain, extend_chain, find_break, tally_examples
from sftray.train_fn.order import order_step


def chain_of(steps: list[list[int]]) -> list[str]:
    chains, chain = [], START
    for step, examples in enumerate(steps, 1):
        chain = extend_chain(chain, step, tally_examples(examples))
        chains.append(chain)
    return chains


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    num_examples=st.integers(1, 200),
    batch=st.integers(1, 70),
    steps=st.integers(1, 40),
)
def test_the_chain_follows_from_the_order_alone(seed: int, num_examples: int, batch: int, steps: int) -> None:
    taken = [order_step(seed, step, batch, num_examples)[1].tolist() for step in range(steps)]
    found = list(islice(compute_chain(seed, batch, num_examples), steps))
    assert found == list(zip(range(1, steps + 1), chain_of(taken), strict=True))


@pytest.mark.parametrize(("max_examples", "steps"), [(3, 1), (8, 1), (9, 2), (20, 3), (23, 4), (28, 4), (41, 7)])
def test_a_budget_of_examples_cuts_the_last_step(max_examples: int, steps: int) -> None:
    """20 examples in batches of 8, 8, 4."""
    taken: list[list[int]] = []
    left = max_examples
    for step in range(steps):
        examples = order_step(1, step, 8, 20)[1].tolist()[:left]
        left -= len(examples)
        taken.append(examples)
    assert left == 0
    assert [chain for _, chain in compute_chain(1, 8, 20, max_examples)] == chain_of(taken)


@pytest.mark.parametrize(
    "change",
    [
        lambda steps: steps[1].pop(),
        lambda steps: steps[1].append(steps[1][0]),
        lambda steps: steps[1].__setitem__(0, steps[1][1]),
        lambda steps: steps[1].__setitem__(0, steps[2][0]),
        lambda steps: steps.__setitem__(1, steps[0]),
    ],
    ids=["missing", "repeated", "twice the same", "of another step", "a step again"],
)
def test_what_was_not_as_ordered_is_found(change: object) -> None:
    steps = [order_step(7, step, 8, 64)[1].tolist() for step in range(6)]
    assert find_break(list(enumerate(chain_of(steps), 1)), 7, 8, 64) is None
    change(steps)  # type: ignore[operator]
    chains = chain_of(steps)
    assert find_break(list(enumerate(chains, 1)), 7, 8, 64) == 2
    assert find_break([(1, chains[0]), (5, chains[4])], 7, 8, 64) == 5, "what is logged next tells too"


def test_who_gets_which_example_is_free() -> None:
    assert tally_examples([3, 1, 2]) == tally_examples([1, 2, 3])
    one, other = tally_examples([1, 2]), tally_examples([3])
    assert Tally(one.count + other.count, one.digest + other.digest) == tally_examples([1, 2, 3])
    assert tally_examples([]) == Tally(0, 0)


def test_rows_beyond_the_end_of_the_run_are_wrong() -> None:
    chains = dict(compute_chain(1, 8, 20, 20))
    assert find_break([*chains.items(), (4, "0" * 32)], 1, 8, 20, 20) == 4


@pytest.mark.parametrize("packing", [True, False])
def test_what_is_trained_on_is_what_is_chained(packing: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From the batches that went through the model, and not from the plan."""
    store = write_store(tmp_path_factory.mktemp("tokens"), draw_examples(20))
    optim = OptimConfig(learning_rate=1e-3)
    run = plan_run(store, Layout(2, packing=packing), total_steps=5)
    results = run_steps(build_trainer(build_model(), optim), run, store, optim)
    wanted = dict(islice(compute_chain(run.seed, run.global_batch_size, len(store)), 5))
    assert {result.step: result.chain for result in results} == wanted
    assert [result.outcome.tally.count for result in results] == [len(result.plan.examples) for result in results]


def test_a_hundred_thousand_steps_take_a_moment() -> None:
    step, chain = next(islice(compute_chain(1, 4, 10**6), 99_999, None))
    assert step == 100_000
    assert len(chain) == 32
