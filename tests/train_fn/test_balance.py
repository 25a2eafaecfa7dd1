"""The balance of experts: transformers' own formula without padding, the seed's by example, and their load."""

from typing import Any

import pytest
import torch
from minimind_model import compute_balance_losses
from splits import build_experts
from tiny import PAD_ID, build_model, draw_examples
from torch import Tensor, nn

from sftray.train_fn.balance import (
    Routers,
    Routing,
    choose_balance,
    compute_balance,
    compute_load,
    count_assignments,
)
from sftray.train_fn.batch import Batch, Example, build_batch
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.loss import Forward, TargetHead, forward_loss

EXAMPLES = draw_examples(5, seed=3)
JETMOE = {"kv_channels": 8, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
TELLING = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "ernie4_5_moe", "granitemoe", "phimoe"]


def uneven(model: Any) -> Any:
    """Its routers send the most to the first experts, so that what is measured is far from even."""
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight", "router.layer.weight")):
            spread = torch.linspace(3.0, 0.5, len(parameter))[:, None]
            nn.init.normal_(parameter, std=1.0, generator=torch.Generator().manual_seed(1))
            parameter.data.mul_(spread)
    return model.eval()


def run_forward(model: Any, batch: Batch, asked: float | None = 1.0) -> tuple[Routers, Forward]:
    routers = Routers(model, asked)
    return routers, forward_loss(model, TargetHead(model), batch, routers)


@pytest.mark.parametrize("family", TELLING)
def test_of_a_batch_it_is_the_one_of_transformers_with_padding_left_out(family: str) -> None:
    model = uneven(build_model(family))
    batch = build_batch([[one] for one in EXAMPLES], PAD_ID)
    routers, forward = run_forward(model, batch)
    real = batch["segments"] > 0
    with torch.no_grad():
        theirs = model(
            input_ids=batch["input_ids"], attention_mask=real.long(), use_cache=False, output_router_logits=True
        ).aux_loss
    assert routers.tell and routers.form == "batch" and forward.aux_sum is not None
    assert forward.aux_sum.item() / int(real.sum()) == pytest.approx(theirs.item(), rel=1e-5)


def reference_of(model: Any, one: Example) -> float:
    """The seed's formula over one example alone, from the scores of its routers."""
    routers = Routers(model, 1.0)
    routers.listen()
    with torch.no_grad():
        model(input_ids=torch.from_numpy(one.input_ids).long()[None], use_cache=False)
    routing = routers.take()
    assert routing is not None
    real = torch.ones(1, len(one.input_ids), dtype=torch.bool)
    layers = [
        compute_balance_losses(logits.softmax(-1)[None], chosen[None], 1.0, real)
        for logits, chosen in zip(routing.logits, routing.chosen, strict=True)
    ]
    return float(torch.stack(layers).sum())


@pytest.mark.parametrize("rows", [[[e] for e in EXAMPLES], [EXAMPLES[:3], EXAMPLES[3:]], [EXAMPLES]])
def test_of_examples_it_is_the_seeds_over_each_alone(rows: list[list[Example]]) -> None:
    model = uneven(build_experts())
    routers, forward = run_forward(model, build_batch(rows, PAD_ID))
    expected = sum(reference_of(model, one) for one in EXAMPLES)
    assert expected > 1.05 * 2 * len(EXAMPLES), "an even share gives 1 for each of two layers"
    assert routers.form == "sequence" and forward.aux_sum is not None
    assert forward.aux_sum.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_rounds_no_sum(precision: torch.dtype) -> None:
    logits = [torch.randn(600, 4, generator=torch.Generator().manual_seed(0))]
    routing = Routing(logits, [logits[0].topk(2).indices])
    segments = torch.ones(1, 600, dtype=torch.long)
    for form in ("batch", "sequence"):
        plain = compute_balance(form, routing, segments)
        with torch.autocast("cpu", precision):
            assert torch.equal(compute_balance(form, routing, segments), plain)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_forward_of_padding_alone_adds_nothing_and_reaches_the_routers(alpha: float | None) -> None:
    """So it is on a worker that has no example in a step, whose gradients are reduced with those of the others."""
    model = build_experts(alpha)
    _, forward = run_forward(model, build_batch([], PAD_ID))
    assert forward.aux_sum is not None and forward.aux_sum.item() == 0.0
    assert forward.assignments is not None and forward.assignments.sum() == 0
    torch.autograd.backward(forward.loss_sum + forward.aux_sum)
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith("gate.weight")]
    assert len(gradients) == 2 and all(g is not None and not g.isnan().any() for g in gradients)


def test_the_gradient_evens_the_load() -> None:
    """The first two experts are crowded by a direction that all tokens share."""
    model = build_experts()
    model.get_input_embeddings().weight.data.add_(0.02)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data[:2].add_(0.02)
    batch = build_batch([[one] for one in EXAMPLES], PAD_ID)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n.endswith("gate.weight")], lr=0.005)
    routers, head, loads = Routers(model), TargetHead(model), []
    for _ in range(30):
        forward = forward_loss(model, head, batch, routers)
        assert forward.aux_sum is not None and forward.assignments is not None
        loads.append(compute_load(forward.assignments))
        torch.autograd.backward(forward.aux_sum / len(EXAMPLES))
        optimizer.step()
        optimizer.zero_grad()
    assert loads[0][0] > 1.8 and loads[0][1] < 0.2
    assert loads[-1][0] < 1.5 and loads[-1][1] > 0.5


def test_gradient_checkpointing_counts_no_token_twice() -> None:
    batch = build_batch([EXAMPLES[:2], EXAMPLES[2:]], PAD_ID)
    found: list[tuple[Tensor, Tensor]] = []
    for checkpointing in (False, True):
        model = build_experts()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        routers, forward = run_forward(model, batch)
        assert forward.aux_sum is not None and forward.assignments is not None
        torch.autograd.backward(forward.aux_sum)
        assert routers.take() is None, "what the backward computed again was not kept"
        found.append((forward.assignments, model.model.layers[0].mlp.gate.weight.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], rtol=1e-6)


def test_assignments_leave_padding_out() -> None:
    batch = build_batch([[one] for one in EXAMPLES], PAD_ID)
    _, forward = run_forward(build_model("mixtral"), batch)
    assert forward.assignments is not None and forward.assignments.shape == (2, 4)
    assert forward.assignments.sum(1).tolist() == [2 * sum(len(one.input_ids) for one in EXAMPLES)] * 2


def test_assignments_and_load_by_hand() -> None:
    chosen = [torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2]]), torch.tensor([[3, 0], [3, 1], [3, 2], [0, 1]])]
    routing = Routing([torch.zeros(4, 4)] * 2, chosen)
    counts = count_assignments(routing, torch.tensor([[1, 1], [2, 0]]))
    assert counts.tolist() == [[3, 1, 1, 1], [1, 1, 1, 3]]
    assert compute_load(counts) == (2.0, pytest.approx(4 / 6))


@pytest.mark.parametrize(
    ("alpha", "asked", "expected"),
    [
        (None, None, ("batch", 0.001)),
        (0.1, None, ("sequence", 0.1)),
        (0.1, 0.02, ("sequence", 0.02)),
        (0.1, 0.0, ("sequence", 0.0)),
        (None, 0.5, ("batch", 0.5)),
    ],
)
def test_the_config_of_a_model_names_the_form_and_the_weight(
    alpha: float | None, asked: float | None, expected: tuple[str, float]
) -> None:
    assert choose_balance(build_experts(alpha).config, asked) == expected


def test_a_weight_without_routers_is_refused() -> None:
    with pytest.raises(ConfigError, match="seq_aux_alpha is set, and no router of LlamaForCausalLM tells"):
        Routers(build_model("llama", seq_aux_alpha=0.1))


@pytest.mark.parametrize("family", ["llama", "doge"])
def test_where_nothing_tells_there_is_no_load_and_no_loss_and_none_can_be_asked_for(family: str) -> None:
    model, batch = build_model(family), build_batch([EXAMPLES], PAD_ID)
    routers, forward = run_forward(model, batch, None)
    assert routers.weight == 0.0 and forward.aux_sum is None and forward.assignments is None
    assert Routers(model, 0.0).weight == 0.0
    with pytest.raises(ConfigError, match=r"model\.aux_loss_coef is 0\.5, and \w+ForCausalLM has no auxiliary loss"):
        Routers(model, 0.5)


def test_a_model_that_calls_its_weight_otherwise_has_its_own_loss() -> None:
    model, batch = build_model("jetmoe", **JETMOE), build_batch([EXAMPLES], PAD_ID)
    routers, forward = run_forward(model, batch, None)
    assert routers.weight == model.config.aux_loss_coef == 0.01 and not routers.tell
    with torch.no_grad():
        theirs = model(input_ids=batch["input_ids"], use_cache=False, output_router_logits=True).aux_loss
    assert forward.aux_sum is not None and theirs > 0
    assert forward.aux_sum.item() == pytest.approx(theirs.item() * int((batch["segments"] > 0).sum()), rel=1e-3)
