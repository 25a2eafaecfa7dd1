"""Validation: sum over count, each example once, whatever the layout."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sftray.train_fn.batch import Batch
from sftray.train_fn.loader import lay_out
from sftray.train_fn.loss import forward_loss
from sftray.train_fn.planner import Budget, MicroBatch, share_step
from sftray.train_fn.step import Trainer

# Laid out at a time. Many workers need more than 256, or most of them would have nothing to do.
_EXAMPLES_AT_ONCE, _EXAMPLES_OF_A_RANK = 256, 8


def plan_evaluation(lengths: NDArray[np.int32], rank: int, world_size: int, budget: Budget) -> list[MicroBatch]:
    """This rank's forwards over the validation examples; over all ranks each example stands in one."""
    forwards: list[MicroBatch] = []
    at_once = max(_EXAMPLES_AT_ONCE, _EXAMPLES_OF_A_RANK * world_size)
    for start in range(0, len(lengths), at_once):
        some = lengths[start : start + at_once].tolist()
        share = share_step(some, world_size, budget)[rank]
        forwards.extend(lay_out(np.arange(start, start + len(some)), some, share, budget))
    return forwards


@torch.no_grad()
def evaluate(trainer: Trainer, batches: Iterable[Batch]) -> float:
    """Mean cross entropy in nats over all target tokens of all ranks' batches."""
    totals = torch.zeros(2, dtype=torch.float64, device=trainer.device)
    trainer.model.eval()
    try:
        for batch in batches:
            with trainer.autocast():
                forward = forward_loss(trainer.model, trainer.head, batch)
            totals[0] += forward.loss_sum
            totals[1] += batch["target_ids"].numel()
    finally:
        trainer.model.train()
    if trainer.world_size > 1:
        dist.all_reduce(totals)
    loss_sum, count = totals.tolist()
    return float(loss_sum / count)
