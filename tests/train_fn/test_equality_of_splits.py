"""Layout never changes meaning: one global batch, split over workers and forwards in every way, learns the same.

fp32 on the CPU, a tiny Llama, examples of 3 to 60 tokens, every fifth without target, 20 steps of AdamW over
two and a half epochs whose last batch is smaller.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from splits import (
    ASKS_TO_STOP,
    EXPERT_LAYOUTS,
    GLOBAL_BATCH_SIZE,
    LAYOUTS,
    OPTIM,
    TOTAL_STEPS,
    Trace,
    build_experts,
    flatten,
    follow,
    follow_all,
    load_trace,
    name_layout,
    open_store,
)
from tiny import PAD_ID, Layout, build_model, build_tokenizer, build_trainer, plan_run, run_steps, write_checkpoint
from torch.multiprocessing.spawn import spawn
from transformers import AutoModelForCausalLM

from sftray.train_fn.batch import compute_labels
from sftray.train_fn.checkpoint import Manifest, commit_checkpoint, find_newest
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.trainer_state import load_trainer_state

CPU = torch.device("cpu")
DROPOUT: dict[str, Any] = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return open_store(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def spawned(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the traces of all layouts of two and three workers, as real processes under DDP."""
    out = tmp_path_factory.mktemp("traces")
    spawn(follow_all, (store.folder, out), nprocs=3)  # type: ignore[no-untyped-call]  # torch has no annotation here
    yield out


@pytest.fixture(scope="module")
def reference(store: TokenStore) -> Trace:
    return follow(Layout(GLOBAL_BATCH_SIZE), store)


def assert_same_meaning(trace: Trace, reference: Trace) -> None:
    assert trace.losses == pytest.approx(reference.losses, rel=1e-6)
    assert trace.stops == [step == ASKS_TO_STOP for step in range(TOTAL_STEPS)]
    assert trace.val_loss == pytest.approx(reference.val_loss, rel=1e-6)
    assert all(sent == planned > 0 for sent, planned in trace.padded)
    largest = np.abs(reference.gradient).max()
    assert np.abs(trace.gradient - reference.gradient).max() <= 1e-6 * largest


def compute_one_batch_gradient(store: TokenStore) -> Any:
    """Of the first global batch, by transformers alone: padded `labels`, their own loss, one backward."""
    examples = [store[i] for i in plan_run(store, Layout(), TOTAL_STEPS).plan(0).examples]
    width = max(len(e.input_ids) for e in examples)
    ids = torch.full((len(examples), width), PAD_ID)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(examples):
        length = len(one.input_ids)
        ids[row, :length] = torch.from_numpy(one.input_ids.copy())
        labels[row, :length] = torch.from_numpy(compute_labels(one))
        labels[row, 0] = -100  # the first token of an example is predicted by nothing
        mask[row, :length] = 1
    model = build_model(tie_word_embeddings=True)
    torch.autograd.backward(model(input_ids=ids, attention_mask=mask, labels=labels).loss)
    return flatten(p.grad for p in model.parameters())


def test_examples_are_very_unequal_and_some_have_no_target(store: TokenStore) -> None:
    first = plan_run(store, Layout(), TOTAL_STEPS).plan(0).examples
    assert store.lengths.min() <= 5 and store.lengths.max() >= 50
    assert 0 in store.target_counts[first] and store.target_counts[first].sum() > 0


def test_the_first_gradient_is_that_of_one_big_batch(store: TokenStore, reference: Trace) -> None:
    expected = compute_one_batch_gradient(store)
    assert np.abs(reference.gradient - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("layout", LAYOUTS[1], ids=name_layout)
def test_one_worker_learns_the_same(layout: Layout, store: TokenStore, reference: Trace) -> None:
    assert_same_meaning(follow(layout, store), reference)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[2] + LAYOUTS[3], ids=name_layout)
def test_several_workers_learn_the_same(layout: Layout, spawned: Path, reference: Trace) -> None:
    traces = [load_trace(spawned, name_layout(layout), rank) for rank in range(layout.world_size)]
    for trace in traces:
        assert_same_meaning(trace, reference)
        assert np.array_equal(trace.weights, traces[0].weights), "all ranks hold the same bits"
        assert trace.losses == traces[0].losses


@pytest.fixture(scope="module")
def expert_reference(store: TokenStore) -> Trace:
    return follow(Layout(GLOBAL_BATCH_SIZE), store, model=build_experts())


def assert_same_balance(trace: Trace, reference: Trace) -> None:
    assert_same_meaning(trace, reference)
    assert len(trace.aux_losses) == len(trace.loads) == TOTAL_STEPS
    assert trace.aux_losses == pytest.approx(reference.aux_losses, rel=1e-6)
    assert trace.loads == reference.loads, "every token goes to the same experts"


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS[1], ids=name_layout)
def test_one_worker_balances_experts_the_same(layout: Layout, store: TokenStore, expert_reference: Trace) -> None:
    assert_same_balance(follow(layout, store, model=build_experts()), expert_reference)


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS[2] + EXPERT_LAYOUTS[3], ids=name_layout)
def test_several_workers_balance_experts_the_same(layout: Layout, spawned: Path, expert_reference: Trace) -> None:
    traces = [load_trace(spawned, f"experts-{name_layout(layout)}", rank) for rank in range(layout.world_size)]
    for trace in traces:
        assert_same_balance(trace, expert_reference)
        assert np.array_equal(trace.weights, traces[0].weights) and trace.loads == traces[0].loads


def test_the_balance_of_the_experts_decides_what_is_learned(store: TokenStore, expert_reference: Trace) -> None:
    """Otherwise the cases of experts above would prove little."""
    without = follow(Layout(GLOBAL_BATCH_SIZE), store, model=build_experts(), aux_loss_coef=0.0)
    assert without.aux_losses == []
    assert without.losses[1:] != pytest.approx(expert_reference.losses[1:], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_leave_out_the_step_that_is_broken_on_one(world_size: int, spawned: Path) -> None:
    broken = [np.load(spawned / f"broken-{world_size}-{rank}.npz") for rank in range(world_size)]
    for each in broken:
        assert each["applied"].tolist() == [True, False, True]
        assert np.array_equal(each["weights"], broken[0]["weights"]) and np.isfinite(each["weights"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_layout_of_several_workers_gives_the_same_bits(world_size: int, spawned: Path) -> None:
    name = name_layout(LAYOUTS[world_size][-1])
    first, again = (load_trace(spawned, each, 0) for each in (name, f"{name}-again"))
    assert np.array_equal(first.weights, again.weights) and first.losses == again.losses


@pytest.mark.slow
def test_the_same_layout_of_one_worker_gives_the_same_bits(store: TokenStore) -> None:
    first, again = (follow(Layout(2, packing=True), store) for _ in range(2))
    assert np.array_equal(first.weights, again.weights) and first.losses == again.losses


@pytest.mark.slow
@pytest.mark.parametrize(("family", "keys"), [("llama", {}), ("gpt2", DROPOUT)], ids=["llama", "gpt2 with dropout"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("killed_after", [1, 11])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    family: str, keys: dict[str, Any], precision: str, killed_after: int, store: TokenStore, tmp_path: Path
) -> None:
    """Through a checkpoint on disk, in the middle of an epoch; with dropout its random numbers too."""
    run = plan_run(store, Layout(2, packing=True), TOTAL_STEPS)

    def train(model: Any, start: int, stop: int, resume: bool = False) -> tuple[Any, list[float]]:
        trainer = build_trainer(model, OPTIM, precision)
        if resume:
            checkpoint = find_newest(tmp_path / CHECKPOINTS)
            assert checkpoint is not None and checkpoint.step == start
            state = load_trainer_state(checkpoint, model, trainer.optimizer, CPU)
            trainer.scaler.load_state_dict(state["scaler"])
        torch.manual_seed(resume)  # what random numbers were drawn before a step must not matter
        return trainer, [result.outcome.loss for result in run_steps(trainer, run, store, OPTIM, start, stop)]

    whole, losses = train(build_model(family, **keys), 0, TOTAL_STEPS)
    killed, before = train(build_model(family, **keys), 0, killed_after)
    checkpoint = commit_checkpoint(
        tmp_path / CHECKPOINTS,
        Manifest(step=killed_after, attempt=1, config_hash="c", data_fingerprint="d"),
        lambda folder: write_checkpoint(folder, killed, build_tokenizer(), {"step": killed_after}),
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).train()
    resumed, after = train(model, killed_after, TOTAL_STEPS, resume=True)
    assert before + after == losses
    assert np.array_equal(flatten(resumed.model.parameters()), flatten(whole.model.parameters()))
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        states = resumed.optimizer.state[one], whole.optimizer.state[other]
        assert states[0].keys() == states[1].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_dropout_is_at_work_in_the_resumed_run(store: TokenStore) -> None:
    """Otherwise the case with dropout above would prove nothing."""
    run = plan_run(store, Layout(8), total_steps=1)
    with_dropout, without = (
        run_steps(build_trainer(build_model("gpt2", **keys)), run, store, OPTIM)[0].outcome.loss
        for keys in (DROPOUT, dict.fromkeys(DROPOUT, 0.0))
    )
    assert with_dropout != pytest.approx(without, rel=1e-4)
