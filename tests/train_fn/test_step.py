"""One optimizer step: accumulation, clipping, broken numbers, precision; and what the optimizer decays."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from outcomes import Outcome, record
from tiny import (
    PAD_ID,
    VOCAB_SIZE,
    Layout,
    build_model,
    build_trainer,
    draw_examples,
    plan_run,
    run_steps,
    write_store,
)
from torch import Tensor

from sftray.train_fn.batch import Batch
from sftray.train_fn.config import OptimConfig
from sftray.train_fn.errors import DivergedError
from sftray.train_fn.loader import PlannedSampler, RunPlan, build_loader
from sftray.train_fn.loop import MAX_SKIPPED_IN_A_ROW, train_steps
from sftray.train_fn.optimizer import build_optimizer
from sftray.train_fn.step import StepOutcome, Trainer, run_step, seed_step
from sftray.train_fn.token_store import TokenStore

OPTIM = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("tokens"), draw_examples(40, seed=5, without_target=(2,)))


def feed(trainer: Trainer, run: RunPlan, store: TokenStore) -> Iterator[Batch]:
    return iter(build_loader(store, PlannedSampler(run, trainer.rank, 0), PAD_ID, on_gpu=False))


def take_step(trainer: Trainer, store: TokenStore, layout: Layout, rate: float = 1e-2) -> StepOutcome:
    run = plan_run(store, layout, total_steps=1)
    return run_step(trainer, feed(trainer, run, store), run.plan(0), 0, rate)


def copy_state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, and the optimizer's own numbers."""
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for number, values in enumerate(trainer.optimizer.state.values()):
        state.update({f"{key}.{number}": value.clone() for key, value in values.items()})
    return state


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def poison(trainer: Trainer, value: float, where: str) -> Any:
    """Make a number of every forward or backward `value`. Returns the hook, to be removed."""
    if where == "loss":
        return trainer.head.head.register_forward_hook(lambda module, args, output: output * value)
    return next(trainer.model.parameters()).register_hook(lambda gradient: gradient * value)


def test_accumulation_over_forwards_is_one_batch(store: TokenStore) -> None:
    gradients = []
    for layout in (Layout(8), Layout(1), Layout(3), Layout(2, packing=True)):
        trainer = build_trainer(build_model(), max_grad_norm=1e9)
        kept: list[Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, kept=kept, model=trainer.model: kept.extend(
                p.grad.clone() for p in model.parameters()
            )
        )
        take_step(trainer, store, layout)
        gradients.append(torch.cat([gradient.flatten() for gradient in kept]))
    assert all((g - gradients[0]).abs().max() <= 1e-6 * gradients[0].abs().max() for g in gradients[1:])


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e9])
def test_gradients_are_clipped_by_their_common_norm(store: TokenStore, max_grad_norm: float) -> None:
    trainer = build_trainer(build_model(), max_grad_norm=max_grad_norm)
    norms: list[Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm())
    )
    outcome = take_step(trainer, store, Layout(2))
    assert outcome.grad_norm > 0.1, "what is reported is the norm before clipping"
    assert norms[0].item() == pytest.approx(min(outcome.grad_norm, max_grad_norm), rel=1e-4)


def test_a_step_takes_its_learning_rate_and_leaves_no_gradient(store: TokenStore) -> None:
    trainer = build_trainer(build_model())
    before = copy_state(trainer)
    outcome = take_step(trainer, store, Layout(2), rate=0.0)
    assert outcome.applied and all(torch.equal(trainer.model.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_numbers_leave_weights_and_optimizer_alone(
    store: TokenStore, value: float, where: str, precision: str
) -> None:
    trainer = build_trainer(build_model(), precision=precision)
    assert take_step(trainer, store, Layout(2)).applied
    before = copy_state(trainer)
    hook = poison(trainer, value, where)
    outcome = take_step(trainer, store, Layout(2))
    assert not outcome.applied
    assert not math.isfinite(outcome.loss if where == "loss" else outcome.grad_norm)
    assert outcome.overflowed == (precision == "fp16" and where == "gradient")
    assert_same(copy_state(trainer), before)
    hook.remove()
    assert take_step(trainer, store, Layout(2)).applied, "the next good step is taken"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_infinite_loss_of_finite_gradients_is_left_out(store: TokenStore, precision: str) -> None:
    """A target of probability 0: its loss is infinite, the gradient of its logit is -1."""
    trainer = build_trainer(build_model(), precision=precision)
    before = copy_state(trainer)
    targets = next(feed(trainer, plan_run(store, Layout(8), total_steps=1), store))["target_ids"]
    column = torch.zeros(VOCAB_SIZE).index_fill(0, targets[:1], -math.inf)
    trainer.head.head.register_forward_hook(lambda module, args, output: output + column)
    outcome = take_step(trainer, store, Layout(8))
    assert outcome.loss == math.inf and math.isfinite(outcome.grad_norm)
    assert not outcome.applied and not outcome.overflowed
    assert_same(copy_state(trainer), before)


@pytest.mark.slow
def test_an_overflow_lowers_the_scale_until_gradients_fit(store: TokenStore) -> None:
    trainer = build_trainer(build_model(), precision="fp16")
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    results = run_steps(trainer, plan_run(store, Layout(2), total_steps=40), store, OPTIM)
    outcomes = [result.outcome for result in results]
    first_good = next(i for i, outcome in enumerate(outcomes) if outcome.applied)
    assert first_good > MAX_SKIPPED_IN_A_ROW, "more skips in a row than a divergence has, and yet none"
    assert all(o.overflowed and not o.applied for o in outcomes[:first_good])
    assert trainer.scaler.get_scale() == 2.0 ** (40 - sum(outcome.overflowed for outcome in outcomes))
    saw = "nothing: the scale is lowered"
    record(Outcome("numbers", "fp16 gradients that overflow", first_good, saw, first_good))


@pytest.mark.slow
def test_gradients_that_overflow_at_any_scale_are_a_divergence(store: TokenStore) -> None:
    """From 2**16 the scale halves 17 times before it stops being the scale's fault."""
    trainer = build_trainer(build_model(), precision="fp16")
    poison(trainer, math.inf, "gradient")
    with pytest.raises(DivergedError):
        run_steps(trainer, plan_run(store, Layout(8), total_steps=40), store, OPTIM)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_so_many_broken_steps_in_a_row_end_the_run(store: TokenStore, where: str) -> None:
    trainer = build_trainer(build_model())
    run = plan_run(store, Layout(8), total_steps=20)
    steps = train_steps(trainer, run, OPTIM, feed(trainer, run, store), 0)
    hook = poison(trainer, math.nan, where)
    skipped = [next(steps) for _ in range(MAX_SKIPPED_IN_A_ROW - 1)]
    hook.remove()
    assert next(steps).outcome.applied, "a good step in between starts the count anew"
    poison(trainer, math.nan, where)
    skipped += [next(steps) for _ in range(MAX_SKIPPED_IN_A_ROW)]
    assert not any(result.outcome.applied for result in skipped)
    with pytest.raises(DivergedError, match=r"5 steps in a row, up to step 10, had no finite") as caught:
        next(steps)
    assert caught.value.exit_code == 6 and "optim.learning_rate" in str(caught.value.problems[0].fix)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_falls(store: TokenStore, precision: str) -> None:
    trainer = build_trainer(build_model(), OPTIM, precision=precision)
    results = run_steps(trainer, plan_run(store, Layout(4, packing=True), total_steps=30), store, OPTIM)
    losses = [result.outcome.loss for result in results if result.outcome.applied]
    assert len(losses) >= 28
    assert losses[0] == pytest.approx(math.log(97), rel=0.02)
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("wanted", [True, False])
def test_a_wish_to_stop_is_read_after_the_step(store: TokenStore, wanted: bool) -> None:
    trainer = build_trainer(build_model())
    trainer.wants_stop = lambda: wanted
    outcome = take_step(trainer, store, Layout(2))
    assert outcome.applied and outcome.stop_asked == wanted


def test_metrics_of_a_step_are_exact(store: TokenStore) -> None:
    run = plan_run(store, Layout(4, packing=True), total_steps=7)
    results = run_steps(build_trainer(build_model()), run, store, OPTIM)
    assert [r.metrics["step"] for r in results] == [1, 2, 3, 4, 5, 6, 7]
    assert [r.metrics["epoch"] for r in results] == [0, 0, 0, 0, 0, 1, 1]
    assert [r.metrics["examples"] for r in results] == [8, 16, 24, 32, 40, 48, 56]
    assert results[-1].metrics["progress"] == 1.0
    for result in results:
        targets = store.target_counts[result.plan.examples].sum()
        assert result.metrics["train/target_tokens"] == targets
        assert result.metrics["train/loss"] == result.outcome.loss
        assert 0 <= result.metrics["perf/padding_fraction"] < 0.2
        assert "train/aux_loss" not in result.metrics


def test_the_auxiliary_loss_is_optimised_and_reported_apart(store: TokenStore) -> None:
    outcomes, weights = [], []
    for coefficient in (0.0, 10.0):
        trainer = build_trainer(build_model("mixtral"), aux_loss_coef=coefficient)
        outcomes.append(take_step(trainer, store, Layout(2, packing=True)))
        weights.append(trainer.model.state_dict()["model.layers.0.mlp.gate.weight"])
    assert outcomes[0].aux_loss is None
    assert outcomes[1].aux_loss == pytest.approx(2.0, abs=0.2)  # top-2 of 4 experts, almost balanced
    assert outcomes[1].loss == pytest.approx(outcomes[0].loss, rel=1e-6)
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
def test_random_numbers_of_a_step_depend_on_seed_step_and_rank(seed: int) -> None:
    drawn = []
    for step, rank in ((0, 0), (0, 1), (1, 0), (2**20, 7), (0, 0)):
        seed_step(seed, step, rank)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[-1])
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral", "gpt_oss"])
def test_only_matrices_of_linear_layers_are_decayed(family: str) -> None:
    model = build_model(family)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: sorted(names[id(p)] for p in group["params"]) for group in optimizer.param_groups
    }
    assert len(optimizer.param_groups) == 2
    assert sorted(groups[0.0] + groups[0.1]) == sorted(names.values())
    kept = ("norm", "ln_", "bias", "embed", "wte", "wpe", "sinks")
    expected = [name for name in names.values() if not any(part in name for part in kept)]
    assert groups[0.1] == sorted(expected)


def test_one_group_is_enough_where_all_is_alike() -> None:
    model = build_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]


def test_tied_output_embeddings_are_not_decayed() -> None:
    model = build_model(tie_word_embeddings=True)
    decayed = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups[0]["params"]
    assert all(p is not model.get_output_embeddings().weight for p in decayed)
