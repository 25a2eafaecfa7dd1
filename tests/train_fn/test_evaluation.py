"""Validation loss: sum over count, each example once, whatever the layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import PAD_ID, Layout, build_model, build_trainer, draw_examples, write_store

from sftray.train_fn.batch import Batch, Example, compute_labels
from sftray.train_fn.evaluation import evaluate, plan_evaluation
from sftray.train_fn.loader import FixedSampler, build_loader
from sftray.train_fn.planner import Budget
from sftray.train_fn.step import Trainer
from sftray.train_fn.token_store import TokenStore

LAYOUTS = [
    Layout(size, packing, world_size) for size in (1, 4) for packing in (False, True) for world_size in (1, 2, 7)
]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """More than are planned at once; the last plan of 7 workers leaves some without work."""
    return draw_examples(260, seed=6, without_target=(0, 7, 259))


@pytest.fixture(scope="module")
def store(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("tokens"), examples, "validation", rows=100)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return build_trainer(build_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5))


@pytest.fixture(scope="module")
def expected(trainer: Trainer, examples: list[Example]) -> tuple[float, int]:
    """Sum and count by the plain formula: one example at a time, full logits, no dropout."""
    total, count = 0.0, 0
    trainer.model.eval()
    with torch.no_grad():
        for one in examples:
            logits = trainer.model(torch.from_numpy(one.input_ids).long()[None]).logits[0]
            labels = torch.from_numpy(compute_labels(one))[1:]
            total += F.cross_entropy(logits[:-1], labels, reduction="sum").double().item()
            count += int((labels != -100).sum())
    trainer.model.train()
    return total, count


def load(store: TokenStore, layout: Layout, rank: int) -> list[Batch]:
    forwards = plan_evaluation(store.lengths, rank, layout.world_size, layout.budget)
    return list(build_loader(store, FixedSampler(forwards), PAD_ID, on_gpu=False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_example_is_evaluated_once(layout: Layout, store: TokenStore) -> None:
    seen = [
        i
        for rank in range(layout.world_size)
        for rows in plan_evaluation(store.lengths, rank, layout.world_size, layout.budget)
        for row in rows
        for i in row
    ]
    assert sorted(seen) == list(range(len(store)))


def test_of_many_workers_each_has_its_share() -> None:
    lengths = np.random.default_rng(0).integers(20, 60, 4096).astype(np.int32)
    for rank in (0, 255, 511):
        forwards = plan_evaluation(lengths, rank, 512, Budget(4 * 60, 4, packing=True))
        assert 6 <= sum(len(row) for rows in forwards for row in rows) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_the_plain_formula(
    layout: Layout, store: TokenStore, trainer: Trainer, expected: tuple[float, int]
) -> None:
    """The ranks' batches, one rank after the other in one process: their sums and counts add up."""
    batches = [batch for rank in range(layout.world_size) for batch in load(store, layout, rank)]
    assert sum(batch["target_ids"].numel() for batch in batches) == expected[1]
    assert evaluate(trainer, batches) == pytest.approx(expected[0] / expected[1], rel=1e-6)


def test_evaluation_changes_nothing(store: TokenStore, trainer: Trainer) -> None:
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    evaluate(trainer, load(store, Layout(4, True), 0))
    assert trainer.model.training
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_the_model_trains_on_after_a_failed_evaluation(trainer: Trainer, store: TokenStore) -> None:
    batch = load(store, Layout(4), 0)[0]
    with pytest.raises(IndexError):
        evaluate(trainer, [{**batch, "input_ids": batch["input_ids"] + 1000}])
    assert trainer.model.training


def test_an_empty_validation_set_has_no_forward() -> None:
    assert plan_evaluation(np.zeros(0, dtype=np.int64), 0, 1, Layout().budget) == []


def test_means_of_batches_would_be_something_else(
    store: TokenStore, trainer: Trainer, expected: tuple[float, int]
) -> None:
    """The data are unequal enough that a mean of means fails the tests above."""
    losses = [evaluate(trainer, [batch]) for batch in load(store, Layout(4), 0) if batch["target_ids"].numel()]
    assert abs(np.mean(losses) - expected[0] / expected[1]) > 1e-4


def test_precision_is_that_of_training(tmp_path: Path) -> None:
    batches = load(write_store(tmp_path, draw_examples(3), "validation"), Layout(), 0)
    exact = evaluate(build_trainer(build_model()), batches)
    rounded = evaluate(build_trainer(build_model(), precision="bf16"), batches)
    assert rounded == pytest.approx(exact, rel=1e-2) and rounded != exact
