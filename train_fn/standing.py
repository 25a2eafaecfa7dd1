"""Where a worker stands: what its train thread does, for those who look at it from outside of the thread."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

# between: after a step and before the next one, where checkpoints are written.
Phase = Literal["loading", "starting", "step", "evaluating", "between"]
T = TypeVar("T")

_REMEMBERED = 50  # steps


@dataclass
class Standing:
    """`step`: the last one that was finished. `since`: when the phase, or its present part, began (monotonic).

    `durations`: seconds of the last steps of this attempt.
    """

    rank: int
    world_size: int
    attempt: int
    step: int = 0
    phase: Phase = "loading"
    since: float = field(default_factory=time.monotonic)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def begin(self, phase: Phase) -> None:
        self.since = time.monotonic()  # first: whoever looks in between sees the old phase, newly begun
        self.phase = phase

    def finish_step(self, step: int) -> None:
        self.durations.append(time.monotonic() - self.since)
        self.step = step
        self.begin("between")

    def watch_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a validation, each of which is a part of its own."""
        before = self.phase
        for batch in batches:
            self.begin("evaluating")
            yield batch
        self.begin(before)
