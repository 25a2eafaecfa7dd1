"""Where a sweep looks at its trials, and where the worse ones end: shares of progress, never steps."""

from collections.abc import Sequence


def plan_evaluations(count: int) -> list[float]:
    """`count` values of progress, the last of them 1."""
    return [index / count for index in range(1, count + 1)]


def plan_rungs(reduction_factor: float, evaluations: Sequence[float], most: int = 2) -> list[float]:
    """The evaluations at which trials may end, ascending: those next to 1/f, 1/f², …, at most `most`.

    Successive halving (Jamieson and Talwalkar, 2016, arXiv 1502.07943) spaces them by the factor by which it thins
    out the trials.
    """
    rungs = {min(evaluations, key=lambda e: abs(e - reduction_factor**-power)) for power in range(1, most + 1)}
    return sorted(rung for rung in rungs if rung < 1)
