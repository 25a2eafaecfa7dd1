"""From the order and the plan to a loader of this worker's micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from sftray.train_fn.batch import Batch, Example, build_batch
from sftray.train_fn.order import count_examples_before, count_steps_per_epoch, order_step
from sftray.train_fn.planner import Budget, MicroBatch, Row, plan_step
from sftray.train_fn.token_store import TokenStore


@dataclass(frozen=True)
class StepPlan:
    """One step over all workers. Rows hold indices into the data set. Counts are of the global batch."""

    epoch: int
    examples: NDArray[np.int64]
    micro_batches: list[list[MicroBatch]]  # of each rank, at least one, perhaps without rows
    num_tokens: int
    num_target_tokens: int
    padded_tokens: int  # rows × longest row over all forwards


@dataclass(frozen=True)
class RunPlan:
    """All steps of a run: a pure function of the step. `lengths` and `target_counts` are int64 [examples].

    With `max_examples` the run ends after exactly so many: what would be beyond is cut from the last step.
    """

    lengths: NDArray[np.int64]
    target_counts: NDArray[np.int64]
    seed: int
    global_batch_size: int
    total_steps: int
    world_size: int
    budget: Budget
    max_examples: int | None = None

    def plan(self, step: int) -> StepPlan:
        epoch, examples = order_step(self.seed, step, self.global_batch_size, len(self.lengths))
        examples = examples[: self.count_examples(step + 1) - self.count_examples(step)]
        lengths = self.lengths[examples]
        layout = lay_out(examples, lengths, self.world_size, self.budget)
        return describe_step(epoch, examples, layout, self.lengths, self.target_counts)

    def count_examples(self, steps_done: int) -> int:
        done = count_examples_before(steps_done, len(self.lengths), self.global_batch_size)
        return done if self.max_examples is None else min(done, self.max_examples)


def describe_step(
    epoch: int,
    examples: NDArray[np.int64],
    layout: list[list[MicroBatch]],
    lengths: NDArray[np.int64],
    target_counts: NDArray[np.int64],
) -> StepPlan:
    """A step of these examples, laid out so, with its counts; `lengths` and `target_counts` are of all examples."""
    return StepPlan(
        epoch=epoch,
        examples=examples,
        micro_batches=layout,
        num_tokens=int(lengths[examples].sum()),
        num_target_tokens=int(target_counts[examples].sum()),
        padded_tokens=_count_padded(layout, lengths),
    )


def lay_out(
    examples: NDArray[np.int64], lengths: NDArray[np.int64], world_size: int, budget: Budget
) -> list[list[MicroBatch]]:
    """A plan for these examples whose rows hold data set indices; a rank without work gets an empty forward."""
    ids = examples.tolist()
    return [
        [tuple(tuple(ids[i] for i in row) for row in rows) for rows in forwards] or [()]
        for forwards in plan_step(lengths.tolist(), world_size, budget)
    ]


def _count_padded(layout: list[list[MicroBatch]], lengths: NDArray[np.int64]) -> int:
    def count(rows: MicroBatch) -> int:
        return len(rows) * max((int(lengths[list(row)].sum()) for row in rows), default=0)

    return sum(count(rows) for forwards in layout for rows in forwards)


def count_total_steps(
    num_examples: int,
    global_batch_size: int,
    epochs: int,
    max_steps: int | None = None,
    max_examples: int | None = None,
) -> int:
    """Steps of a run: those of its epochs, or fewer where `max_steps` or `max_examples` end it before."""
    per_epoch = count_steps_per_epoch(num_examples, global_batch_size)
    limits = [per_epoch * epochs]
    if max_steps is not None:
        limits.append(max_steps)
    if max_examples is not None:
        whole_epochs, rest = divmod(max_examples, num_examples)
        limits.append(whole_epochs * per_epoch + count_steps_per_epoch(rest, global_batch_size))
    return min(limits)


class RowDataset(Dataset[list[Example]]):
    """The token store seen as rows: item (3, 7) is the row that holds examples 3 and 7."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __getitem__(self, row: Row) -> list[Example]:
        return [self.store[i] for i in row]


class PlannedSampler(Sampler[list[Row]]):
    """The rows of each forward of one rank, step after step from `start_step`."""

    def __init__(self, run: RunPlan, rank: int, start_step: int) -> None:
        self.run, self.rank, self.start_step = run, rank, start_step

    def __iter__(self) -> Iterator[list[Row]]:
        for step in range(self.start_step, self.run.total_steps):
            for rows in self.run.plan(step).micro_batches[self.rank]:
                yield list(rows)


class FixedSampler(Sampler[list[Row]]):
    """Forwards that are known beforehand."""

    def __init__(self, forwards: Sequence[MicroBatch]) -> None:
        self.forwards = forwards

    def __iter__(self) -> Iterator[list[Row]]:
        return (list(rows) for rows in self.forwards)

    def __len__(self) -> int:
        return len(self.forwards)


def build_loader(store: TokenStore, sampler: Sampler[list[Row]], pad_id: int, on_gpu: bool) -> DataLoader[Any]:
    """A loader of micro-batches. On a CPU reading a mapped file in the process itself is the fastest."""
    return DataLoader(
        RowDataset(store),
        batch_sampler=sampler,
        collate_fn=partial(_collate, pad_id=pad_id),
        num_workers=2 if on_gpu else 0,
        pin_memory=on_gpu,
        persistent_workers=False,
    )


def _collate(rows: list[list[Example]], pad_id: int) -> Batch:
    return build_batch(rows, pad_id)
