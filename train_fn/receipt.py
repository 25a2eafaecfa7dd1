"""The data receipt: the fate of every row, in numbers that add up.

rows = kept + dropped_overlong + without_target; cut rows are among the kept. Rows that are bad are no rows, and end
the preparation.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sftray.train_fn.errors import Problem

_PLACES_SHOWN = 5
_PROBLEMS_KEPT = 20


_COUNTS = (
    "rows", "kept", "cut", "dropped_overlong", "without_target", "tokens", "target_tokens",
    "target_tokens_lost", "typed_markers",
)  # fmt: skip


@dataclass
class SplitReceipt:
    """Counts of one split; `places` holds the first few rows of each fate."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, fate: str, place: str) -> None:
        self.counts[fate] += 1
        shown = self.places.setdefault(fate, [])
        if len(shown) < _PLACES_SHOWN:
            shown.append(place)

    def merge(self, other: "SplitReceipt") -> None:
        self.counts.update(other.counts)
        for fate, places in other.places.items():
            shown = self.places.setdefault(fate, [])
            shown.extend(places[: _PLACES_SHOWN - len(shown)])

    def to_json(self) -> dict[str, Any]:
        return {**{name: self.counts[name] for name in _COUNTS}, "places": self.places}


@dataclass
class ChunkReceipt:
    """What one process says of one chunk: its rows by split, its bad rows, its cost. `order` sorts chunks."""

    order: tuple[str, int] = ("", 0)
    splits: dict[str, SplitReceipt] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    cross_check: Counter[str] = field(default_factory=Counter)
    process_id: int = 0
    peak_memory_bytes: int = 0

    def add_problem(self, problem: Problem) -> None:
        self.num_problems += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(problem)

    def merge(self, other: "ChunkReceipt") -> None:
        for name, split in other.splits.items():
            self.splits.setdefault(name, SplitReceipt()).merge(split)
        self.problems.extend(other.problems[: _PROBLEMS_KEPT - len(self.problems)])
        self.num_problems += other.num_problems
        self.cross_check.update(other.cross_check)
        self.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)

    def to_json(self) -> dict[str, Any]:
        splits = {name: split.to_json() for name, split in self.splits.items()}
        return {"splits": splits, "cross_check": dict(self.cross_check)}
