"""The step planner: which worker takes which examples of a global batch, and in which forwards.

Pure, and the same on every worker, so that nothing has to be agreed upon over the network. A plan changes
how the work is laid out and never what is learned: any plan covers every example of the batch once.

Words: a row is one line of the input matrix and holds one example, or several when packed; a micro-batch is
a tuple of rows that go through the model in one forward, as a matrix of (rows × the longest row) tokens.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from sftray.train_fn.differencing import share_by_differencing

Row = tuple[int, ...]  # examples, by their index in the global batch
MicroBatch = tuple[Row, ...]

# The linear layers of a transformer cost about 24·h² operations per token and attention 4·h per token and
# key, so a row of 6·h keys doubles the cost of a token. 2048 stands for the h of a few hundred that is
# trained on a CPU, where a dense mask makes long packed rows dear; it only ranks layouts of equal meaning.
_ATTENTION_PARITY = 2048

# Differencing costs examples × shares a try. Above so many examples in a forward the greedy way, which is
# then as good to a percent, finds the rows: 256 short examples take 0.1 s instead of 16.
_DIFFERENCED = 32


@dataclass(frozen=True)
class Budget:
    """What one forward may hold.

    `tokens` bounds rows × the longest row. Without packing `examples` bounds the rows, of one example each.
    `max_rows` is 1 where the attention kernel takes packed examples in a single row only.
    """

    tokens: int
    examples: int
    packing: bool
    max_rows: int | None = None


def plan_step(lengths: Sequence[int], world_size: int, budget: Budget) -> list[list[MicroBatch]]:
    """Lay out one global batch.

    Args:
        lengths: tokens of each example of the global batch, each at most `budget.tokens`.
        world_size: number of workers; may be above the number of examples.

    Returns:
        For each rank its micro-batches; an empty list for a rank that gets no example.
    """
    return [arrange_share(share, lengths, budget) for share in share_step(lengths, world_size, budget)]


def share_step(lengths: Sequence[int], world_size: int, budget: Budget) -> list[list[int]]:
    """The examples of each rank, in nearly equal tokens. Arguments as for `plan_step`."""
    if any(length > budget.tokens for length in lengths):
        raise ValueError(f"an example of {max(lengths)} tokens is above the budget of {budget.tokens}")
    return share_by_differencing(range(len(lengths)), lengths, world_size)


def arrange_share(share: Sequence[int], lengths: Sequence[int], budget: Budget) -> list[MicroBatch]:
    """The micro-batches of one rank. They follow from its share alone, so no rank has to arrange another's."""
    if not budget.packing:
        return _chunk_rows(share, lengths, budget)
    return [_arrange_rows(forward, lengths, budget) for forward in _pack_bins(share, lengths, budget)]


def _longest_first(examples: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(examples, key=lambda i: (-lengths[i], i))


def _share_greedily(examples: Sequence[int], lengths: Sequence[int], num_shares: int) -> list[list[int]]:
    """Split examples into shares of nearly equal tokens: the longest first, each to the lightest share."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    heap = [(0, share) for share in range(num_shares)]
    for i in _longest_first(examples, lengths):
        tokens, lightest = heap[0]
        shares[lightest].append(i)
        heapq.heapreplace(heap, (tokens + lengths[i], lightest))
    return shares


def _pack_bins(examples: Sequence[int], lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """As few forwards as the budget allows.

    The lower bound is tried first with balanced bins, so that forwards are of like size; where a bin comes
    out too full, first-fit decreasing (at most 11/9 of the best plus one) decides.
    """
    total = sum(lengths[i] for i in examples)
    fewest = -(-total // budget.tokens)
    fitted = _fit_first(examples, lengths, budget.tokens)
    for count in range(max(fewest, 1), len(fitted) + 1):
        bins = share_by_differencing(examples, lengths, count)
        if all(sum(lengths[i] for i in forward) <= budget.tokens for forward in bins):
            return bins
    return fitted


def _fit_first(examples: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for i in _longest_first(examples, lengths):
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if place is None:
            bins.append([i])
            room.append(capacity - lengths[i])
        else:
            bins[place].append(i)
            room[place] -= lengths[i]
    return bins


def _arrange_rows(forward: Sequence[int], lengths: Sequence[int], budget: Budget) -> MicroBatch:
    """Lay the examples of one forward into rows: few long ones waste attention, many short ones padding."""
    share = share_by_differencing if len(forward) <= _DIFFERENCED else _share_greedily
    best: tuple[float, list[list[int]]] | None = None
    for num_rows in range(1, min(len(forward), budget.max_rows or len(forward)) + 1):
        rows = share(forward, lengths, num_rows)
        longest = max(sum(lengths[i] for i in row) for row in rows)
        if num_rows * longest > budget.tokens:
            continue
        cost = num_rows * longest * (1 + longest / _ATTENTION_PARITY)
        if best is None or cost < best[0]:
            best = cost, rows
    assert best is not None  # one row always fits: its length is the sum, which the bin keeps in the budget
    return tuple(tuple(row) for row in best[1])


def _chunk_rows(examples: Sequence[int], lengths: Sequence[int], budget: Budget) -> list[MicroBatch]:
    """One example a row, like lengths together, at most `budget.examples` rows."""
    ordered = _longest_first(examples, lengths)
    step = budget.examples
    return [tuple((i,) for i in ordered[k : k + step]) for k in range(0, len(ordered), step)]
