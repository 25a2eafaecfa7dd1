"""Packed examples do not see each other, and a model on which they would is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import PAD_ID, VOCAB_SIZE, build_model, draw_examples

from sftray.train_fn.batch import Example, build_batch, compute_labels
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.loss import TargetHead, forward_loss
from sftray.train_fn.model import measure_packing_leak, refuse_leak

ISOLATING = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("qwen2", "sdpa"),
    ("qwen2", "eager"),
    ("gemma2", "eager"),  # every other layer has a sliding window, of 8 tokens here
    ("gpt2", "sdpa"),
    ("gpt2", "eager"),
    ("gpt_neox", "sdpa"),
    ("mixtral", "sdpa"),
]
LEAKING = [
    "opt",  # counts positions over the whole row
    "mamba",  # carries a state along the row
    "bloom",  # ALiBi
]


def build(family: str, attention: str | None = None) -> Any:
    keys = {"sliding_window": 8} if family == "gemma2" else {}
    return build_model(family, attention=attention, **keys)


def compute_logits(model: torch.nn.Module, rows: list[list[Example]]) -> torch.Tensor:
    batch = build_batch(rows, PAD_ID)
    with torch.no_grad():
        output = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=None,
            use_cache=False,
        )
    logits: torch.Tensor = output.logits
    return logits


def change(one: Example) -> Example:
    return Example((one.input_ids + 1) % VOCAB_SIZE, one.loss_mask)


@pytest.mark.parametrize(("family", "attention"), ISOLATING)
def test_neighbours_of_a_changed_example_keep_their_logits(family: str, attention: str) -> None:
    model = build(family, attention).eval()
    first, second, third, fourth = draw_examples(4, seed=2)
    before = compute_logits(model, [[first, second, third], [fourth]])
    after = compute_logits(model, [[first, change(second), third], [fourth]])
    start = len(first.input_ids)
    stop = start + len(second.input_ids)
    moved = (before - after).abs().amax(dim=(0, 2))
    assert moved[start:stop].min() > 1e-4, "the changed example itself must move"
    assert moved[:start].max() <= 1e-6 and moved[stop:].max() <= 1e-6


@pytest.mark.parametrize(("family", "attention"), ISOLATING)
def test_logits_of_a_packed_example_are_those_it_has_alone(family: str, attention: str) -> None:
    model = build(family, attention).eval()
    examples = draw_examples(5, seed=3)
    packed = compute_logits(model, [examples[:3], examples[3:]])
    starts = {0: (0, 0), 1: (0, len(examples[0].input_ids)), 4: (1, len(examples[3].input_ids))}
    for number, (row, start) in starts.items():
        alone = compute_logits(model, [[examples[number]]])[0]
        assert (packed[row, start : start + len(alone)] - alone).abs().max() <= 1e-6


@pytest.mark.parametrize(("family", "attention"), ISOLATING)
def test_an_isolating_model_is_measured_and_accepted(family: str, attention: str) -> None:
    model = build(family, attention)
    assert measure_packing_leak(model) <= 1e-6
    refuse_leak(model)
    assert model.training


@pytest.mark.parametrize("family", LEAKING)
def test_a_leaking_model_is_refused(family: str) -> None:
    model = build(family).eval()
    with pytest.raises(ConfigError, match=rf"packed examples of {type(model).__name__} see each other") as caught:
        refuse_leak(model)
    assert caught.value.problems[0].fix == "train.packing=false"
    assert not model.training


@pytest.mark.parametrize("family", LEAKING)
def test_a_refused_model_trains_with_the_fix_it_is_told(family: str) -> None:
    model = build(family).eval()
    examples = draw_examples(4, seed=4)
    loss = forward_loss(model, TargetHead(model), build_batch([[e] for e in examples], PAD_ID)).loss_sum
    alone = 0.0
    for one in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(one.input_ids).long()[None]).logits[0]
        labels = torch.from_numpy(compute_labels(one))
        alone += F.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
    assert loss.item() == pytest.approx(alone, rel=1e-6)


def test_the_measure_finds_a_leak() -> None:
    """The same model, told nothing of where examples start, moves by far more than the tolerance."""
    model = build_model("llama").eval()
    ids = torch.randint(3, VOCAB_SIZE, (2, 24))
    ids[1, 12:] = ids[0, 12:]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    assert (logits[0, 12:] - logits[1, 12:]).abs().max() > 1e-3
