"""One optimizer step over the global batch.

The loss is the cross entropy summed over all target tokens of the global batch, divided by their number,
whatever micro-batches and workers it was computed on. The number is known before the first backward.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sftray.train_fn.balance import Routers, compute_load
from sftray.train_fn.batch import Batch
from sftray.train_fn.ledger import Tally
from sftray.train_fn.loader import StepPlan
from sftray.train_fn.loss import Forward, TargetHead, forward_loss

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Trainer:
    """What a step works on. `wrapped` is the model, or DDP around it."""

    model: Any
    wrapped: nn.Module
    head: TargetHead
    routers: Routers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str
    max_grad_norm: float
    seed: int
    rank: int
    world_size: int
    wants_stop: Callable[[], bool] = lambda: False  # this rank asks all to stop after the step
    has_saved: Callable[[], bool] = lambda: False  # this rank tells all that a checkpoint was committed meanwhile
    wants_look: Callable[[], bool] = lambda: False  # this rank asks all to look for a notice of preemption

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()


@dataclass(frozen=True)
class StepOutcome:
    """`loss`: per target token of the global batch, as optimised. `applied`: the optimizer took the step.

    `aux_loss`: before its weight; None where there is none. `expert_load`: the fullest and the emptiest expert of any
    layer, as multiples of an even share; None for dense models.

    `tally`: what all ranks sent through the model, as `padded_tokens`: rows × longest row over all their forwards.
    `stop_asked`: some rank wants to stop after this step. `saved`: a checkpoint was committed since the last step.
    `look_asked`: all are to look for a notice of preemption. All ranks read the same answers.

    `overflowed`: fp16 gradients were too large for the present scale, which is routine and no divergence.
    """

    loss: float
    aux_loss: float | None
    grad_norm: float
    applied: bool
    overflowed: bool
    data_wait_seconds: float
    padded_tokens: int
    tally: Tally
    expert_load: tuple[float, float] | None = None
    stop_asked: bool = False
    saved: bool = False
    look_asked: bool = False


def build_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step (dropout) are a function of (seed, step, rank): resuming restores nothing."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**64)


def run_step(
    trainer: Trainer, batches: Iterator[Batch], plan: StepPlan, step: int, learning_rate: float
) -> StepOutcome:
    """Forward and backward over this rank's micro-batches of `step`, reduce, clip, and update.

    Where the loss or a gradient is not finite the weights stay as they were; all ranks decide alike, for the
    reduced gradients are the same on all.
    """
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate
    seed_step(trainer.seed, step, trainer.rank)
    totals, assignments, waited = _accumulate(trainer, batches, plan)
    loss_sum, aux_sum, stops, saved, looks, padded, count, digest = totals.tolist()
    loss = loss_sum / max(plan.num_target_tokens, 1)
    trainer.scaler.unscale_(trainer.optimizer)
    norm = float(nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.max_grad_norm))
    finite = math.isfinite(norm) and math.isfinite(loss)
    overflowed = not finite and math.isfinite(loss) and may_overflow(trainer.scaler)
    if finite:
        trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()  # halves the scale where unscaling met an infinite gradient
    trainer.optimizer.zero_grad(set_to_none=True)
    return StepOutcome(
        loss=loss,
        aux_loss=aux_sum / _count_aux(trainer, plan) if trainer.routers.weight else None,
        grad_norm=norm,
        applied=finite,
        overflowed=overflowed,
        data_wait_seconds=waited,
        padded_tokens=int(padded),
        tally=Tally(int(count), int(digest)),
        expert_load=None if assignments is None else compute_load(assignments),
        stop_asked=stops > 0,
        saved=saved > 0,
        look_asked=looks > 0,
    )


def may_overflow(scaler: torch.amp.GradScaler) -> bool:
    """Below a scale of 1 gradients are made smaller, not larger: what still overflows is broken."""
    return scaler.is_enabled() and scaler.get_scale() >= 1.0


def _accumulate(trainer: Trainer, batches: Iterator[Batch], plan: StepPlan) -> tuple[Tensor, Tensor | None, float]:
    """Gradients of the whole step into `.grad`. Returns fp64 [8] and the experts' tokens [L, E] (None: dense), both
    summed over ranks, and seconds waited for data.

    The sums: loss, aux, ranks that want to stop, that have saved, that want to look, tokens with padding, examples,
    digests.
    """
    totals = torch.zeros(8, dtype=torch.float64, device=trainer.device)
    assignments: Tensor | None = None
    waited, padded = 0.0, 0
    forwards = plan.lay_out(trainer.rank)
    for index, rows in enumerate(forwards):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        with _reduce_if(trainer.wrapped, index == len(forwards) - 1):
            with trainer.autocast():
                forward = forward_loss(trainer.wrapped, trainer.head, batch, trainer.routers)
            torch.autograd.backward(trainer.scaler.scale(_weigh(forward, trainer, plan)))
        totals[0] += forward.loss_sum.detach()
        padded += batch["input_ids"].numel() if rows else 0
        totals[6:] += batch["tally"]
        if forward.aux_sum is not None:
            totals[1] += forward.aux_sum.detach()
        if forward.assignments is not None:
            assignments = forward.assignments if assignments is None else assignments + forward.assignments
    # As late as can be, so that it is acted upon in this step.
    totals[2], totals[3], totals[4] = trainer.wants_stop(), trainer.has_saved(), trainer.wants_look()
    totals[5] = padded
    if trainer.world_size > 1:
        dist.all_reduce(totals)
        if assignments is not None:
            dist.all_reduce(assignments)
    return totals.cpu(), assignments, waited


def _count_aux(trainer: Trainer, plan: StepPlan) -> int:
    """What the auxiliary loss of the whole step is a mean over: tokens, or examples."""
    return plan.num_tokens if trainer.routers.form == "batch" else len(plan.examples)


def _weigh(forward: Forward, trainer: Trainer, plan: StepPlan) -> Tensor:
    """This micro-batch's part of the step's loss, times the world size, because DDP averages over ranks."""
    loss = forward.loss_sum / max(plan.num_target_tokens, 1)
    if forward.aux_sum is not None:
        loss = loss + trainer.routers.weight * forward.aux_sum / _count_aux(trainer, plan)
    return loss * trainer.world_size


def _reduce_if(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients travel once a step: with the last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()
