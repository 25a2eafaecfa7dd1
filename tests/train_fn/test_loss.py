"""The loss over target positions equals the one of full logits, for every head a model may have."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import PAD_ID, VOCAB_SIZE, build_model, draw_examples, example
from torch import Tensor

from sftray.train_fn import loss as loss_module
from sftray.train_fn.balance import Routers
from sftray.train_fn.batch import Batch, Example, build_batch, compute_labels
from sftray.train_fn.loss import TargetHead, forward_loss

PLAIN = ["llama", "gpt2", "phi", "qwen2"]  # phi's head has a bias
TOUCHED: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "recurrent_gemma": {"logits_soft_cap": 2.0, "attention_window_size": 16, "lru_width": 32},
}
EXAMPLES = [*draw_examples(4, seed=1), example([5, 6, 7], [0, 0, 0])]


def sharpen(model: Any) -> Any:
    """Make logits large enough that capping and scaling matter."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30.0)
    return model


def build_case(family: str) -> Any:
    return sharpen(build_model(family, **TOUCHED.get(family, {}))).eval()


def compute_full_loss(model: Any, examples: list[Example]) -> Tensor:
    """The sum as transformers itself computes it: one example a row, padded `labels`, full logits."""
    width = max(len(e.input_ids) for e in examples)
    ids = np.full((len(examples), width), PAD_ID)
    labels = np.full_like(ids, -100)
    mask = np.zeros_like(ids)
    for row, one in enumerate(examples):
        ids[row, : len(one.input_ids)] = one.input_ids
        labels[row, : len(one.input_ids)] = compute_labels(one)
        mask[row, : len(one.input_ids)] = 1
    output = model(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels), use_cache=False
    )
    count = int((labels[:, 1:] != -100).sum())
    total: Tensor = output.loss * count
    return total


def collect_gradients(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(loss)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same_loss(model: Any, batch: Batch, head: TargetHead, examples: list[Example]) -> None:
    mine = forward_loss(model, head, batch).loss_sum
    gradient = collect_gradients(model, mine)
    full = compute_full_loss(model, examples)
    assert mine.item() == pytest.approx(full.item(), rel=1e-6)
    expected = collect_gradients(model, full)
    assert (gradient - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("family", [*PLAIN, *TOUCHED])
def test_loss_and_gradients_are_those_of_full_logits(family: str) -> None:
    model = build_case(family)
    batch = build_batch([[e] for e in EXAMPLES], PAD_ID)
    assert_same_loss(model, batch, TargetHead(model), EXAMPLES)


@pytest.mark.parametrize("family", PLAIN)
def test_chunked_loss_and_gradients_are_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ABOVE_LOGITS", 0)
    model = build_case(family)
    head = TargetHead(model)
    assert head.plain
    assert_same_loss(model, build_batch([[e] for e in EXAMPLES], PAD_ID), head, EXAMPLES)


@pytest.mark.parametrize("family", TOUCHED)
def test_a_head_whose_logits_are_changed_is_never_chunked(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunked kernel takes hidden states to the loss and would leave the capping or scaling out."""
    monkeypatch.setattr(loss_module, "CHUNK_ABOVE_LOGITS", 0)
    model = build_case(family)
    assert_same_loss(model, build_batch([[e] for e in EXAMPLES], PAD_ID), TargetHead(model), EXAMPLES)


def test_capping_and_scaling_matter_here() -> None:
    """Without them the losses of these models are far from what they are: the tests above can fail."""
    for family, keys in TOUCHED.items():
        model = build_case(family)
        with torch.no_grad():
            output = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
            hidden = model.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).last_hidden_state
            untouched = model.get_output_embeddings()(hidden)
        assert (output - untouched).abs().max() > 0.1, (family, keys)


def test_the_check_of_the_head_leaves_the_model_as_it_was() -> None:
    model = build_model("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    TargetHead(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("chunk_above", [0, 2**29])
@pytest.mark.parametrize("rows", [[], [[example([5, 6, 7], [0, 0, 0])]]], ids=["no rows", "no target"])
def test_without_a_target_the_loss_is_zero_and_reaches_every_parameter(
    rows: list[list[Example]], chunk_above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ABOVE_LOGITS", chunk_above)
    model = build_model("llama")
    forward = forward_loss(model, TargetHead(model), build_batch(rows, PAD_ID))
    torch.autograd.backward(forward.loss_sum)
    assert forward.loss_sum.item() == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_only_logits_of_targets_are_computed() -> None:
    model = build_model("llama")
    head = TargetHead(model)
    shapes: list[tuple[int, ...]] = []
    head.head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    batch = build_batch([[e] for e in EXAMPLES], PAD_ID)
    forward_loss(model, head, batch)
    assert shapes == [(batch["target_ids"].numel(), VOCAB_SIZE)]


@pytest.mark.parametrize("chunk_above", [0, 2**29])
def test_logits_under_autocast_are_summed_in_fp32(chunk_above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ABOVE_LOGITS", chunk_above)
    model = build_case("llama")
    batch = build_batch([[e] for e in EXAMPLES], PAD_ID)
    with torch.autocast("cpu", torch.bfloat16):
        loss = forward_loss(model, TargetHead(model), batch).loss_sum
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(compute_full_loss(model, EXAMPLES).item(), rel=0.02)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_auxiliary_loss_is_reported_apart(family: str) -> None:
    model = build_case(family)
    head, routers = TargetHead(model), Routers(model)
    batch = build_batch([[e] for e in EXAMPLES], PAD_ID)
    apart = forward_loss(model, head, batch, routers)
    assert apart.loss_sum.item() == pytest.approx(compute_full_loss(model, EXAMPLES).item(), rel=1e-6)
    assert apart.aux_sum is not None
    real = batch["segments"] > 0
    with torch.no_grad():
        ids, mask = batch["input_ids"], real.long()
        output = model(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True)
    assert apart.aux_sum.item() / int(real.sum()) == pytest.approx(output.aux_loss.item(), rel=1e-6)
    assert forward_loss(model, head, batch).aux_sum is None


def test_generation_and_full_logits_work_with_the_hook_in_place() -> None:
    model = build_model("llama").eval()
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False), model(ids).logits
    head = TargetHead(model)
    forward_loss(model, head, build_batch([[e] for e in EXAMPLES], PAD_ID))
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected[0])
    assert torch.equal(model(ids).logits, expected[1])


def test_a_failed_forward_leaves_the_hook_off() -> None:
    model = build_model("llama").eval()
    head = TargetHead(model)
    batch = build_batch([[EXAMPLES[0]]], PAD_ID)
    with pytest.raises(IndexError):
        forward_loss(model, head, {**batch, "input_ids": batch["input_ids"] + VOCAB_SIZE})
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, VOCAB_SIZE)


def test_a_model_without_an_output_embedding_is_refused() -> None:
    with pytest.raises(TypeError, match="LlamaModel has no output embedding"):
        TargetHead(build_model("llama").model)


def test_the_sum_is_the_plain_formula() -> None:
    """Cross entropy of the target ids under the logits of the position before, summed; nothing else."""
    model = build_model("llama").eval()
    logits = model(torch.tensor([[5, 6, 7, 8, 9, 5, 4, 9]])).logits[0]
    one = example([5, 6, 7, 8, 9, 5, 4, 9], [0, 0, 1, 1, 1, 0, 1, 1])
    expected = F.cross_entropy(logits[[1, 2, 3, 5, 6]], torch.tensor([7, 8, 9, 4, 9]), reduction="sum")
    assert forward_loss(model, TargetHead(model), build_batch([[one]], PAD_ID)).loss_sum.item() == pytest.approx(
        expected.item(), rel=1e-6
    )
