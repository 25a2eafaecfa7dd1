"""From the order and the plan to a loader of this worker's micro-batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from sftray.train_fn.batch import Batch, Example, build_batch
from sftray.train_fn.config import OptimConfig
from sftray.train_fn.order import count_examples_before, count_steps_per_epoch, order_step
from sftray.train_fn.planner import Budget, MicroBatch, Row, arrange_share, share_step
from sftray.train_fn.schedule import compute_learning_rate
from sftray.train_fn.token_store import TokenStore

# A loader with workers asks for this many forwards before they are trained on, at most so many steps.
_KEPT_PLANS = 8


@dataclass(frozen=True)
class StepPlan:
    """One step over all workers. `lengths` are the tokens of each of its `examples`, `shares` the places in
    `examples` that each rank takes; counts are of the global batch. No other rank's share is laid out unasked.
    """

    epoch: int
    examples: NDArray[np.int64]
    lengths: list[int]
    shares: list[list[int]]
    budget: Budget
    num_tokens: int
    num_target_tokens: int

    def lay_out(self, rank: int) -> list[MicroBatch]:
        """The micro-batches of a rank, at least one, perhaps without rows. Rows hold indices into the data set."""
        return lay_out(self.examples, self.lengths, self.shares[rank], self.budget)

    @cached_property
    def micro_batches(self) -> list[list[MicroBatch]]:
        """Those of every rank."""
        return [self.lay_out(rank) for rank in range(len(self.shares))]

    @cached_property
    def padded_tokens(self) -> int:
        """Rows × longest row over all forwards of all ranks."""
        sizes = dict(zip(self.examples.tolist(), self.lengths, strict=True))
        return sum(_count_padded(rows, sizes) for forwards in self.micro_batches for rows in forwards)


@dataclass(frozen=True)
class RunPlan:
    """All steps of a run: a pure function of the step. `lengths` and `target_counts` are int32 [examples].

    With `max_examples` the run ends after exactly so many: what would be beyond is cut from the last step.
    """

    lengths: NDArray[np.int32]
    target_counts: NDArray[np.int32]
    seed: int
    global_batch_size: int
    total_steps: int
    world_size: int
    budget: Budget
    max_examples: int | None = None
    _recent: dict[int, StepPlan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(self, step: int) -> StepPlan:
        """The plan of a step. The last ones are kept: the loader asks for a step before the loop does, or after."""
        if step not in self._recent:
            if len(self._recent) >= _KEPT_PLANS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[step] = self._plan(step)
        return self._recent[step]

    def _plan(self, step: int) -> StepPlan:
        epoch, examples = order_step(self.seed, step, self.global_batch_size, len(self.lengths))
        examples = examples[: self.count_examples(step + 1) - self.count_examples(step)]
        lengths = self.lengths[examples].tolist()
        return StepPlan(
            epoch=epoch,
            examples=examples,
            lengths=lengths,
            shares=share_step(lengths, self.world_size, self.budget),
            budget=self.budget,
            num_tokens=sum(lengths),
            num_target_tokens=int(self.target_counts[examples].sum()),
        )

    def compute_rate(self, step: int, optim: OptimConfig) -> float:
        """The learning rate of a step."""
        return compute_learning_rate(step, self.total_steps, optim)

    def find_first(self) -> int:
        """The example that is trained on before all others."""
        return int(order_step(self.seed, 0, self.global_batch_size, len(self.lengths))[1][0])

    def count_examples(self, steps_done: int) -> int:
        done = count_examples_before(steps_done, len(self.lengths), self.global_batch_size)
        return done if self.max_examples is None else min(done, self.max_examples)


def lay_out(
    examples: NDArray[np.int64], lengths: Sequence[int], share: Sequence[int], budget: Budget
) -> list[MicroBatch]:
    """The forwards of one share, whose rows hold data set indices; without work it is one empty forward."""
    forwards = arrange_share(share, lengths, budget)
    return [tuple(tuple(int(examples[i]) for i in row) for row in rows) for rows in forwards] or [()]


def _count_padded(rows: MicroBatch, sizes: Mapping[int, int]) -> int:
    return len(rows) * max((sum(sizes[i] for i in row) for row in rows), default=0)


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
            for rows in self.run.plan(step).lay_out(self.rank):
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
