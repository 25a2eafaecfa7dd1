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

Share = tuple[int, list[int]]  # its tokens, and its examples

_tokens_of = itemgetter(0)
# A share is inserted in about as much time as it takes to sort so many that are nearly in order.
_INSERTED = 16


def share_by_differencing(examples: Sequence[int], lengths: Sequence[int], num_shares: int) -> list[list[int]]:
    """Split examples into shares of nearly equal tokens, the heaviest first; some are empty if examples are few.

    Args:
        examples: indices into `lengths`.
        lengths: tokens of each example, at least 1.
    """
    if num_shares == 1 or not examples:
        return [list(examples), *([] for _ in range(num_shares - 1))]
    ordered = sorted(examples, key=lambda i: (-lengths[i], i))
    # Each entry: (-spread, tie-break, its filled shares from light to heavy).
    heap = [(-lengths[i], order, [(lengths[i], [i])]) for order, i in enumerate(ordered)]
    while len(heap) > 1:
        _, order, one = heapq.heappop(heap)
        _, _, other = heapq.heappop(heap)
        merged = _merge(one, other, num_shares)
        lightest = merged[0][0] if len(merged) == num_shares else 0
        heapq.heappush(heap, (lightest - merged[-1][0], order, merged))
    filled = [share for _, share in reversed(heap[0][2])]
    return [*filled, *([] for _ in range(num_shares - len(filled)))]


def _merge(one: list[Share], other: list[Share], num_shares: int) -> list[Share]:
    """The split of both, from light to heavy; uses them up. Shares of `other`, its heaviest first, meet the empty
    ones of `one` and then its lightest. Among equals what was touched comes first.
    """
    met = max(len(one) + len(other) - num_shares, 0)
    pairs = zip(one[:met], reversed(other[:met]), strict=True)
    touched = [*reversed(other[met:]), *((a + b, x + y) for (a, x), (b, y) in pairs)]
    touched.sort(key=_tokens_of)
    del one[:met]
    if len(touched) * _INSERTED >= len(one):
        return sorted(touched + one, key=_tokens_of)
    for share in reversed(touched):
        insort_left(one, share, key=_tokens_of)
    return one
