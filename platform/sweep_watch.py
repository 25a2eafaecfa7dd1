"""Watching a sweep's directory from a thread: what its trials are doing, as their files say it."""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sftray.platform.certainty import name_settings, write_setting
from sftray.platform.progress import describe_event, format_loss
from sftray.platform.sweep_files import Point, TrialRecord
from sftray.train_fn.journal import EVENTS, METRICS
from sftray.train_fn.looking import choose_pause
from sftray.train_fn.tail import Row, Tail

ENDS = ("finished", "pruned", "failed", "stopped", "interrupted")
_LOOK_S = 0.5
_LEAVE_S = 30.0  # how long leaving waits; who hangs longer is left behind in a daemon thread
_PACE_ROWS = 20  # the remaining time follows from so many logged rows

_logger = logging.getLogger(__name__)


class Watch:
    """Context manager: looks again and again in a thread, and a last time when it is left. It never raises."""

    def __init__(self, sweep_dir: Path) -> None:
        self._stop, self._pause = threading.Event(), choose_pause(sweep_dir, _LOOK_S)
        self._thread = threading.Thread(target=self._follow, name=type(self).__name__, daemon=True)
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_LEAVE_S)

    def _follow(self) -> None:
        self.guard(self.begin)
        while not self._stop.wait(self._pause):
            self.guard(self.look)
        self.guard(self.look)
        self.guard(self.close)

    def guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a look at the sweep is no part of it: whatever fails here is told, no more
            said = f"{type(error).__name__}: {error}"
            if said not in self._said:
                self._said.add(said)
                _logger.warning("a look at the sweep failed: %s", said)

    def begin(self) -> None:
        """Before the first look."""

    def look(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """After the last look."""


@dataclass
class Watched:
    """A trial as its files say it is. Losses are validation losses, `best` that of what it has saved."""

    record: TrialRecord
    events: Tail
    metrics: Tail
    point: Point
    state: str = "waiting"
    progress: float = 0.0
    loss: float | None = None
    best: float | None = None
    speed: float | None = None  # target tokens per second
    marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_PACE_ROWS))  # time, progress

    def look(self) -> list[str]:
        """Take in what is new; it is returned in words."""
        events, metrics = self.events.read(), self.metrics.read()
        # At the same time it is the row that was first: what ends a trial comes after its last step.
        new = [(float(row.get("time", 0.0)), row) for row in (*metrics, *events)]
        lines = [self._note(row) for _, row in sorted(new, key=lambda item: item[0])]
        return [line for line in lines if line is not None]

    @property
    def remaining(self) -> float | None:
        """Seconds that it has yet to run, at the pace of its last rows."""
        if self.state in ENDS or len(self.marks) < 2:
            return None
        (begun, first), (now, last) = self.marks[0], self.marks[-1]
        return (now - begun) / (last - first) * (1.0 - last) if last > first else None

    def _note(self, row: Row) -> str | None:
        return self._note_event(dict(row)) if "state" in row else self._note_metrics(row)

    def _note_metrics(self, row: Row) -> str | None:
        self.progress = float(row.get("progress", self.progress))
        self.marks.append((float(row.get("time", 0.0)), self.progress))
        if (speed := row.get("perf/target_tokens_per_second")) is not None:
            self.speed = float(speed)
        if "milestone" not in row or "val/loss" not in row:
            return None
        self.loss = float(row["val/loss"])
        if math.isfinite(self.loss):
            self.best = self.loss if self.best is None else min(self.loss, self.best)
        return f"progress {float(row['milestone']):.0%}  val {format_loss(self.loss)}"

    def _note_event(self, row: dict[str, Any]) -> str | None:
        state = row["state"]
        if state in ("starting", "running", *ENDS):
            self.state = state
            self.marks.clear()
        if state == "exploited":
            return self._follow(row)
        if state == "running" and row.get("attempt") == 1 and not row.get("step"):
            return f"started  {write_setting(self.point)}"
        return None if state in ("starting", "checkpoint") else describe_event(row)

    def _follow(self, row: dict[str, Any]) -> str | None:
        """It goes on from another one's checkpoint: what it had saved itself is gone."""
        before, after = self.point, {**self.point, **row.get("after", {})}
        self.point, self.best = after, None
        told = describe_event(row)
        return told if before == after else f"{told}; now {name_settings([after, before])[0]}"


def watch_trial(sweep_dir: Path, record: TrialRecord) -> Watched:
    run_dir = sweep_dir / record.name
    return Watched(record, Tail(run_dir / EVENTS), Tail(run_dir / METRICS), record.point)
