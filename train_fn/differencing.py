"""Examples shared out in nearly equal tokens: the largest differencing method.

Partial splits are merged two at a time, those of widest spread first, the heaviest share of one with the lightest of
the other (Karmarkar and Karp, "The differencing method of set partitioning", 1982). A split holds its filled shares
alone, so that n examples cost about n·log n time and n memory, also over thousands of shares; with the empty ones
written out they would cost examples × shares of both.
"""

import heapq
from bisect import insort_left
from collections.abc import Sequence
from operator import itemgetter

# Tuples of numbers: what the garbage collector does not look at.
Share = tuple[int, tuple[int, ...]]  # its tokens, and its examples
Single = tuple[int, int, int]  # an example alone: -tokens, which are its spread; tie-break; the example
Split = tuple[int, int, list[Share]]  # -spread; tie-break; the filled shares, from light to heavy

_tokens_of = itemgetter(0)


def share_by_differencing(examples: Sequence[int], lengths: Sequence[int], num_shares: int) -> list[list[int]]:
    """Split examples into shares of nearly equal tokens, the heaviest first; some are empty if examples are few.

    Args:
        examples: indices into `lengths`.
        lengths: tokens of each example, at least 1.
    """
    if num_shares == 1 or not examples:
        return [list(examples), *([] for _ in range(num_shares - 1))]
    ordered = sorted(examples, key=lambda i: (-lengths[i], i))
    singles = [(-lengths[i], order, i) for order, i in enumerate(ordered)][::-1]
    splits: list[Split] = []  # a heap
    for _ in range(len(ordered) - 1):
        order, one = _take_widest(singles, splits)
        _, other = _take_widest(singles, splits)
        merged = _merge(one, other, num_shares)
        lightest = merged[0][0] if len(merged) == num_shares else 0
        heapq.heappush(splits, (lightest - merged[-1][0], order, merged))
    _, filled = _take_widest(singles, splits)
    return [*(list(share) for _, share in reversed(filled)), *([] for _ in range(num_shares - len(filled)))]


def _take_widest(singles: list[Single], splits: list[Split]) -> tuple[int, list[Share]]:
    """Take the split of widest spread away: its tie-break, and its shares."""
    if singles and (not splits or singles[-1][:2] < splits[0][:2]):
        negative, order, example = singles.pop()
        return order, [(-negative, (example,))]
    _, order, shares = heapq.heappop(splits)
    return order, shares


def _merge(one: list[Share], other: list[Share], num_shares: int) -> list[Share]:
    """The split of both, from light to heavy; uses them up. Shares of `other`, its heaviest first, meet the empty
    ones of `one` and then its lightest. Among equals what was touched comes first.
    """
    met = max(len(one) + len(other) - num_shares, 0)
    if len(other) == 1:  # nearly always, and the rest comes to the same
        tokens, share = other[0]
        if met:
            lightest = one.pop(0)
            tokens, share = lightest[0] + tokens, lightest[1] + share
        insort_left(one, (tokens, share), key=_tokens_of)
        return one
    pairs = zip(one[:met], reversed(other[:met]), strict=True)
    touched = [*reversed(other[met:]), *((a + b, x + y) for (a, x), (b, y) in pairs)]
    return sorted([*touched, *one[met:]], key=_tokens_of)
