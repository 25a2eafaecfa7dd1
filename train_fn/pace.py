"""How long it still takes."""

from dataclasses import dataclass


@dataclass
class Pace:
    """The pace since the first step that was noted."""

    first: tuple[int, float] | None = None

    def mark(self, step: int, total_steps: int, now: float) -> float | None:
        """Note that `step` is done at `now`, in seconds on any clock; those that are left, once there is a pace."""
        if self.first is None:
            self.first = step, now
        first, began = self.first
        return (now - began) / (step - first) * (total_steps - step) if step > first else None
