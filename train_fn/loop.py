"""The loop: a generator of step results that knows nothing of Ray, files or the terminal."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sftray.train_fn.batch import Batch
from sftray.train_fn.config import OptimConfig
from sftray.train_fn.errors import DivergedError, Problem
from sftray.train_fn.ledger import START, extend_chain
from sftray.train_fn.loader import RunPlan, StepPlan
from sftray.train_fn.step import StepOutcome, Trainer, run_step

# So many global batches in a row without a finite loss and gradient end the run.
MAX_SKIPPED_IN_A_ROW = 5


@dataclass(frozen=True)
class StepResult:
    """A finished step. `step` counts finished steps, so it is 1 after the first; skipped ones keep their number.

    `chain` is the ledger up to it.
    """

    step: int
    plan: StepPlan
    outcome: StepOutcome
    metrics: dict[str, float]
    chain: str


TakeStep = Callable[[Trainer, RunPlan, OptimConfig, Iterator[Batch], int], tuple[StepPlan, StepOutcome, float]]


def take_step(
    trainer: Trainer, run: RunPlan, optim: OptimConfig, batches: Iterator[Batch], index: int
) -> tuple[StepPlan, StepOutcome, float]:
    """Step `index` (0-based): what it was made of, what came of it, and its learning rate."""
    plan = run.plan(index)
    learning_rate = run.compute_rate(index, optim)
    return plan, run_step(trainer, batches, plan, index, learning_rate), learning_rate


def train_steps(
    trainer: Trainer,
    run: RunPlan,
    optim: OptimConfig,
    batches: Iterator[Batch],
    start_step: int,
    chain: str = START,
    take: TakeStep = take_step,
) -> Iterator[StepResult]:
    """Train from `start_step`, whose ledger is `chain`, to the end. `take` is how a step is taken.

    Raises:
        DivergedError: MAX_SKIPPED_IN_A_ROW steps in a row had a loss or gradient that is not finite.
    """
    skipped_in_a_row = 0
    for index in range(start_step, run.total_steps):
        started = time.perf_counter()
        plan, outcome, learning_rate = take(trainer, run, optim, batches, index)
        seconds = time.perf_counter() - started
        chain = extend_chain(chain, index + 1, outcome.tally)
        metrics = _collect(run, index + 1, plan, outcome, learning_rate, seconds)
        yield StepResult(index + 1, plan, outcome, metrics, chain)
        skipped_in_a_row = 0 if outcome.applied or outcome.overflowed else skipped_in_a_row + 1
        if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise _describe_divergence(index + 1, outcome)


def _collect(
    run: RunPlan, step: int, plan: StepPlan, outcome: StepOutcome, learning_rate: float, seconds: float
) -> dict[str, float]:
    examples = run.count_examples(step)
    metrics = {
        "step": step,
        "epoch": plan.epoch,
        "progress": examples / run.count_examples(run.total_steps),
        "examples": examples,
        "train/loss": outcome.loss,
        "train/grad_norm": outcome.grad_norm,
        "train/target_tokens": plan.num_target_tokens,
        "optim/learning_rate": learning_rate,
        "perf/step_seconds": seconds,
        "perf/target_tokens_per_second": plan.num_target_tokens / seconds,
        "perf/tokens_per_second": plan.num_tokens / seconds,
        "perf/data_wait_seconds": outcome.data_wait_seconds,
        "perf/padding_fraction": 1 - plan.num_tokens / outcome.padded_tokens,
    }
    if outcome.aux_loss is not None:
        metrics["train/aux_loss"] = outcome.aux_loss
    if outcome.expert_load is not None:
        metrics["moe/expert_load_max"], metrics["moe/expert_load_min"] = outcome.expert_load
    return metrics


def _describe_divergence(step: int, outcome: StepOutcome) -> DivergedError:
    return DivergedError(
        Problem(
            f"diverged: {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step {step}, had no finite loss and gradient "
            f"(loss {outcome.loss}, gradient norm {outcome.grad_norm})",
            why="the learning rate is too high for this model, or the data or the weights hold broken numbers",
            fix="optim.learning_rate: a tenth of what it is, and see events.jsonl for the examples of these steps",
        )
    )
