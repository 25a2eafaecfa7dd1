"""Whether the best values lie at the edge of what was searched, so that better ones may lie beyond."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftray.platform.sweep_files import Point
from sftray.train_fn.config_words import is_legal, leaf_fields

_NEAR = 0.05  # of a range, on its own scale: nearer than this to an end is at the edge
_FEWEST = 3  # with two values, each of them is at an edge


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float
    log: bool
    whole: bool


def find_edges(point: Point, space: Mapping[str, Any]) -> list[tuple[str, float, Bounds]]:
    """Settings of `point` at an end of their range in `space` (as it was written) beyond which others are legal."""
    found = []
    for key, value in point.items():
        bounds = _find_bounds(space.get(key))
        if bounds is not None and _is_number(value) and _is_at_edge(key, float(value), bounds):
            found.append((key, float(value), bounds))
    return found


def _find_bounds(entry: Any) -> Bounds | None:
    """The range of a parameter; None where it has none to be at the edge of."""
    if not isinstance(entry, Mapping):
        return None
    for kind, log in (("log_uniform", True), ("uniform", False), ("int", bool(entry.get("log")))):
        ends = entry.get(kind)
        if isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)):
            return Bounds(float(ends[0]), float(ends[1]), log, kind == "int")
    values = entry.get("choice") or entry.get("grid")
    if isinstance(values, list) and len(set(map(repr, values))) >= _FEWEST and all(map(_is_number, values)):
        whole = all(isinstance(value, int) for value in values)
        return Bounds(float(min(values)), float(max(values)), False, whole)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_at_edge(key: str, value: float, bounds: Bounds) -> bool:
    low, high, place = bounds.low, bounds.high, value
    if bounds.log and min(low, high, place) > 0:
        low, high, place = math.log(low), math.log(high), math.log(place)
    if high <= low:
        return False
    share = (place - low) / (high - low)
    return (share <= _NEAR and _can_go(key, bounds, down=True)) or (
        share >= 1 - _NEAR and _can_go(key, bounds, down=False)
    )


def _can_go(key: str, bounds: Bounds, down: bool) -> bool:
    """Is there a legal value beyond that end? No count is below 1, and no decay below 0."""
    if key not in leaf_fields():
        return True
    step = 1.0 if bounds.whole else _NEAR * (bounds.high - bounds.low)
    beyond = bounds.low - step if down else bounds.high + step
    if bounds.log and not bounds.whole:
        beyond = bounds.low / 2 if down else bounds.high * 2
    return is_legal(key, int(beyond) if bounds.whole else beyond)
