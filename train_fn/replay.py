"""The loop of MiniMind's full fine-tuning script, number by number, to see what its faults cost: train.replay_seed.

The examples come in the order of the file. The mean over targets is taken per micro-batch, and the means are
averaged. The learning rate is set per micro-batch, so that of a step's last one counts. Micro-batches that are left
at the end of an epoch leak into the first step of the next, and are lost after the last. The token behind an answer's
end-of-turn token, a newline, is a target too. One worker, no packing. Rows without any target are left out, which the
seed feeds through the model and learns nothing of.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftray.train_fn.balance import compute_load
from sftray.train_fn.batch import Batch
from sftray.train_fn.config import OptimConfig, RunConfig
from sftray.train_fn.errors import ConfigError, DivergedError, Problem
from sftray.train_fn.ledger import Tally
from sftray.train_fn.loader import RunPlan, StepPlan
from sftray.train_fn.loss import forward_loss
from sftray.train_fn.planner import MicroBatch
from sftray.train_fn.schedule import compute_learning_rate
from sftray.train_fn.step import StepOutcome, Trainer, may_overflow


@dataclass(frozen=True, kw_only=True)
class ReplayedStep(StepPlan):
    """A step of the seed's, whose micro-batches are as they come."""

    forwards: list[MicroBatch]

    def lay_out(self, rank: int) -> list[MicroBatch]:
        return self.forwards


@dataclass(frozen=True, kw_only=True)
class ReplayPlan(RunPlan):
    """The seed's steps. A micro-batch is numbered over all epochs."""

    micro_batch_size: int
    epochs: int
    max_seq_len: int

    @property
    def accumulation(self) -> int:
        return self.global_batch_size // self.micro_batch_size

    @property
    def per_epoch(self) -> int:
        """Micro-batches of an epoch, the smaller last one included."""
        return -(-len(self.lengths) // self.micro_batch_size)

    def find_micro_batches(self, step: int) -> range:
        """Those whose gradients are in the step, what leaked from the epoch before among them."""
        return range(self._find_end(step - 1), self._find_end(step))

    def compute_rate(self, step: int, optim: OptimConfig) -> float:
        return self.compute_rate_of(self.find_micro_batches(step)[-1], optim)

    def compute_rate_of(self, number: int, optim: OptimConfig) -> float:
        """Of a micro-batch."""
        return compute_learning_rate(number, self.per_epoch * self.epochs, optim)

    def find_first(self) -> int:
        return 0

    def _find_end(self, step: int) -> int:
        if step < 0:
            return 0
        epoch, in_epoch = divmod(step, self.per_epoch // self.accumulation)
        return epoch * self.per_epoch + (in_epoch + 1) * self.accumulation

    def _plan(self, step: int) -> StepPlan:
        parts = [self._find_examples(number) for number in self.find_micro_batches(step)]
        examples = np.concatenate(parts)
        lengths = self.lengths[examples].tolist()
        return ReplayedStep(
            epoch=step // (self.per_epoch // self.accumulation),
            examples=examples,
            lengths=lengths,
            shares=[list(range(len(examples)))],
            budget=self.budget,
            num_tokens=sum(lengths),
            num_target_tokens=int(self.target_counts[examples].sum()),
            forwards=[tuple((int(i),) for i in part) for part in parts],
        )

    def _find_examples(self, number: int) -> Any:
        first = number % self.per_epoch * self.micro_batch_size
        return np.arange(first, min(first + self.micro_batch_size, len(self.lengths)), dtype=np.int64)

    def count_examples(self, steps_done: int) -> int:
        epoch, in_epoch = divmod(self._find_end(steps_done - 1), self.per_epoch)
        return epoch * len(self.lengths) + min(in_epoch * self.micro_batch_size, len(self.lengths))


def plan_replay(run: RunPlan, config: RunConfig) -> ReplayPlan:
    """The seed's plan of a run.

    Raises:
        ConfigError: an epoch has fewer micro-batches than a step, so that the seed would never take one.
    """
    known: dict[str, Any] = {field.name: getattr(run, field.name) for field in fields(run) if field.init}
    train, max_seq_len = config.train, config.data.max_seq_len
    plan = ReplayPlan(**known, micro_batch_size=train.micro_batch_size, epochs=train.epochs, max_seq_len=max_seq_len)
    steps = plan.per_epoch // plan.accumulation
    if not steps:
        raise ConfigError(
            Problem(
                f"train.replay_seed: an epoch is {plan.per_epoch} micro-batches, and a step {plan.accumulation}",
                why="the seed's loop counts within an epoch, so it would never take a step",
                fix="train.gradient_accumulation_steps=1",
            )
        )
    return replace(plan, total_steps=steps * train.epochs)


def refuse_half(on_gpu: bool, precision: str) -> None:
    """Raise ConfigError for fp16 without a GPU, where the seed computes in fp32."""
    if not on_gpu and precision != "fp32":
        raise ConfigError(
            Problem(
                f"train.replay_seed on a CPU goes with fp32, not {precision}",
                why="the seed uses half precision, fp16 with a scaler whatever it is told, on a GPU alone",
                fix="train.precision=fp32",
            )
        )


def replay_step(
    trainer: Trainer, run: RunPlan, optim: OptimConfig, batches: Iterator[Batch], index: int
) -> tuple[StepPlan, StepOutcome, float]:
    """A step of the seed's. `loss` and `aux_loss` are those of its last micro-batch, which is what the seed logs.

    Raises:
        DivergedError: without a scaler, a loss or gradient is not finite: the seed's weights would be no numbers.
    """
    assert isinstance(run, ReplayPlan)
    tally, waited, padded, assignments = torch.zeros(2, dtype=torch.float64), 0.0, 0, None
    loss, aux, rate = torch.zeros(()), None, 0.0
    for number in run.find_micro_batches(index):
        rate = run.compute_rate_of(number, optim)
        for group in trainer.optimizer.param_groups:
            group.update(lr=rate, weight_decay=optim.weight_decay)  # torch's AdamW decays all alike
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        padded += batch["input_ids"].numel()
        loss, aux, counts = run_micro_batch(trainer, run, batch)
        tally += batch["tally"].cpu()
        if counts is not None:
            assignments = counts if assignments is None else assignments + counts
    trainer.scaler.unscale_(trainer.optimizer)
    norm = float(nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.max_grad_norm))
    finite = math.isfinite(norm) and math.isfinite(float(loss))
    if not finite and not trainer.scaler.is_enabled():
        raise DivergedError(_describe_end(index + 1, float(loss), norm))
    overflowed = not finite and math.isfinite(float(loss)) and may_overflow(trainer.scaler)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    outcome = StepOutcome(
        loss=float(loss),
        aux_loss=None if aux is None else float(aux),
        grad_norm=norm,
        applied=finite,
        overflowed=overflowed,
        data_wait_seconds=waited,
        padded_tokens=padded,
        tally=Tally(*map(int, tally.tolist())),
        expert_load=None if assignments is None else compute_load(assignments),
        stop_asked=trainer.wants_stop(),
        saved=trainer.has_saved(),
        look_asked=trainer.wants_look(),
    )
    return run.plan(index), outcome, rate


def run_micro_batch(trainer: Trainer, run: ReplayPlan, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Forward and backward: the mean over its own targets, the mean over its own rows, and the experts' tokens."""
    batch = _learn_newlines(batch)
    num_targets = batch["target_ids"].numel()
    routers = trainer.routers
    if routers.form == "sequence":
        trainer.model.get_input_embeddings().padding_idx = None  # of the seed's padding the embedding learns
        batch = _pad_as_seed(batch, run.max_seq_len, trainer.model.generation_config.pad_token_id)
    with trainer.autocast():
        forward = forward_loss(trainer.wrapped, trainer.head, batch, routers)
    loss = whole = forward.loss_sum / num_targets
    aux = None
    if forward.aux_sum is not None:
        segments = batch["segments"]
        aux = forward.aux_sum / (len(segments) if routers.form == "sequence" else (segments > 0).sum())
        whole = loss + routers.weight * aux
    torch.autograd.backward(trainer.scaler.scale(whole / run.accumulation))
    return loss.detach(), None if aux is None else aux.detach(), forward.assignments


def _describe_end(step: int, loss: float, norm: float) -> Problem:
    return Problem(
        f"diverged: step {step} had no finite loss and gradient (loss {loss}, gradient norm {norm})",
        why="the seed's loop takes such a step, after which no weight is a number any more",
        fix="optim.learning_rate: a tenth of what it is, or train.replay_seed=false",
    )


def _learn_newlines(batch: Batch) -> Batch:
    """The token behind the last target of each answer is a target too, where the row goes on."""
    predicts_RT, ids_RT = batch["predicts"], batch["input_ids"]
    last_RT = torch.zeros_like(predicts_RT)  # holds the last target
    last_RT[:, 1:-1] = predicts_RT[:, :-2] & ~predicts_RT[:, 1:-1] & (batch["segments"][:, 2:] > 0)
    both_RT = predicts_RT | last_RT
    return {**batch, "predicts": both_RT, "target_ids": ids_RT.roll(-1, dims=1)[both_RT]}


def _pad_as_seed(batch: Batch, max_seq_len: int, pad_id: int) -> Batch:
    """Rows padded to the longest length there may be, less the last token: the seed's experts get padding too."""
    width = max_seq_len - 1

    def pad(rows: Tensor, value: int) -> Tensor:
        return F.pad(rows, (0, max(width - rows.shape[1], 0)), value=value)[:, :width]

    ids = pad(batch["input_ids"], pad_id)
    # Padding within a batch has positions of its own, which the seed knows nothing of.
    positions = torch.arange(width, device=ids.device).expand_as(ids)
    segments = torch.arange(1, len(ids) + 1, device=ids.device)[:, None].expand_as(ids)
    predicts = pad(batch["predicts"], 0)
    return {**batch, "input_ids": ids, "position_ids": positions, "predicts": predicts, "segments": segments}
