"""The ledger: evidence that every step trained on its own examples, each once.

Workers count what they really send through the model: the number of examples, and the sum of a 32-bit digest of
each. Both are sums, so they do not depend on who got which example. Rank 0 chains them, step by step, in a hash
that stands in `metrics.jsonl`. The order of examples is a pure function, so anybody can compute what the chain must
be from the config and the number of examples, without data or weights.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sftray.train_fn.order import mix, order_positions

START = "0" * 32  # the chain before the first step
_CHUNK = 1 << 20  # examples that are recomputed at a time


@dataclass(frozen=True)
class Tally:
    """What a step trained on. `digest` is below 2**53, for it travels in a float of 64 bits: 2,097,152 examples."""

    count: int
    digest: int


def digest_examples(examples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 32-bit digest of each index; where one is missing, repeated or another, a sum of them differs."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        return mix(examples.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)


def tally_examples(examples: Sequence[int]) -> Tally:
    return Tally(len(examples), int(digest_examples(np.asarray(examples, dtype=np.int64)).sum()))


def extend_chain(chain: str, step: int, tally: Tally) -> str:
    """The chain after step number `step` (the first is 1): 32 hex digits of SHA-256."""
    return hashlib.sha256(f"{chain} {step} {tally.count} {tally.digest}".encode()).hexdigest()[:32]


def compute_chain(
    seed: int, global_batch_size: int, num_examples: int, max_examples: int | None = None
) -> Iterator[tuple[int, str]]:
    """(step, chain) of every step as it must be, without end unless `max_examples` ends it. O(1) memory."""
    chain, step = START, 0
    for first, examples in _order_from_start(seed, num_examples, global_batch_size):
        digests = digest_examples(examples)
        starts = np.arange(0, len(examples), global_batch_size)
        sums = np.add.reduceat(digests, starts)
        for start, total in zip(starts.tolist(), sums.tolist(), strict=True):
            count = min(global_batch_size, len(examples) - start)
            if max_examples is not None and first + start + count >= max_examples:
                count = max_examples - first - start
                total = int(digests[start : start + count].sum())
            if count <= 0:
                return
            step += 1
            chain = extend_chain(chain, step, Tally(count, int(total)))
            yield step, chain


def _order_from_start(
    seed: int, num_examples: int, global_batch_size: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The examples in their order in parts of whole global batches, each with the number of those before it."""
    part = max(_CHUNK // global_batch_size, 1) * global_batch_size
    epoch = 0
    while True:
        for first in range(0, num_examples, part):
            positions = np.arange(first, min(first + part, num_examples), dtype=np.int64)
            yield epoch * num_examples + first, order_positions(seed, epoch, positions, num_examples)
        epoch += 1


def find_break(
    rows: Sequence[tuple[int, str]],
    seed: int,
    global_batch_size: int,
    num_examples: int,
    max_examples: int | None = None,
) -> int | None:
    """The first step, of those that `rows` (step, chain) hold, whose chain is not what it must be; None if all are.

    The chains are of all steps up to theirs, so what went wrong is in that step or after the row before it.
    """
    wanted = dict(rows)
    last = max(wanted, default=0)
    for step, chain in compute_chain(seed, global_batch_size, num_examples, max_examples):
        if step > last:
            return None
        if wanted.pop(step, chain) != chain:
            return step
    return min(wanted, default=None)
