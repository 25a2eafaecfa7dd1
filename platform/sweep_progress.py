"""A sweep while it runs: its trials on the terminal, and each in W&B under the sweep's name.

Both read the sweep's directory in a thread, and nothing that goes wrong in them reaches the trials.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from sftray.platform.certainty import write_setting
from sftray.platform.mirror import Follower
from sftray.platform.progress import describe_event, format_loss
from sftray.platform.run_files import BrokenRunError, load_flat_config
from sftray.platform.sweep_files import TrialRecord, read_ledger
from sftray.platform.tables import STATE_STYLES
from sftray.platform.terminal import format_seconds, plain
from sftray.platform.tracking import build_wandb_mirror
from sftray.train_fn.config import TrackingConfig
from sftray.train_fn.journal import EVENTS, METRICS
from sftray.train_fn.tail import Tail

_LOOK_S = 0.5
_LEAVE_S = 30.0
_MOST_ROWS = 20  # of the live table: those that run, then the best
ENDS = ("finished", "pruned", "failed", "stopped", "interrupted")

_logger = logging.getLogger(__name__)


@dataclass
class Watched:
    """A trial as its files say it is."""

    record: TrialRecord
    events: Tail
    metrics: Tail
    state: str = "waiting"
    progress: float = 0.0
    loss: float | None = None
    best: float | None = None
    lines: list[str] = field(default_factory=list)  # what is new

    def look(self) -> None:
        for row in self.events.read():
            self._note_event(dict(row))
        for row in self.metrics.read():
            self.progress = float(row.get("progress", self.progress))
            if "milestone" in row:
                self.loss = float(row["val/loss"])
                self.best = min(self.loss, self.best) if self.best is not None else self.loss
                self.lines.append(f"{row['milestone']:.0%}  val {format_loss(self.loss)}")

    def _note_event(self, row: dict[str, Any]) -> None:
        state = row["state"]
        if state in ("starting", "running", *ENDS):
            self.state = state
        if state == "running" and row["attempt"] == 1:
            self.lines.append(f"started  {write_setting(self.record.point)}")
        elif state not in ("starting", "checkpoint") and (line := describe_event(row)) is not None:
            self.lines.append(line)


class Looking:
    """Context manager: looks again and again in a thread, and a last time when it is left."""

    def __init__(self, sweep_dir: Path) -> None:
        self._sweep_dir = sweep_dir
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=type(self).__name__, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_LEAVE_S)

    def _follow(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._guard(self._look)
        self._guard(self._look)
        self._guard(self._close)

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a look at the sweep is no part of it: whatever fails here is told, no more
            _logger.warning("a look at the sweep failed: %s: %s", type(error).__name__, error)

    def _look(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        pass


class SweepProgress(Looking):
    """A live table on a terminal; elsewhere one line for each thing that happens."""

    def __init__(self, console: Console, sweep_dir: Path, total: int) -> None:
        super().__init__(sweep_dir)
        self._console, self._total = console, total
        self._started = time.monotonic()
        self._trials: dict[str, Watched] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def _look(self) -> None:
        for record in read_ledger(self._sweep_dir):
            if record.name not in self._trials:
                run_dir = self._sweep_dir / record.name
                self._trials[record.name] = Watched(record, Tail(run_dir / EVENTS), Tail(run_dir / METRICS))
        for name, trial in self._trials.items():
            trial.look()
            for line in trial.lines:
                if self._live is None or "failed" in line:
                    self._console.print(plain(f"{name}  {line}"), soft_wrap=True)
            trial.lines.clear()
        if self._live is not None:
            self._live.start()
            self._live.update(self._build(), refresh=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _build(self) -> Group:
        states = [trial.state for trial in self._trials.values()]
        counts = [f"{states.count(s)} {s}" for s in ("running", "finished", "pruned", "failed") if s in states]
        best = min((t.best for t in self._trials.values() if t.best is not None), default=None)
        head = f"{len(states)} of {self._total} trials: {', '.join(counts) or 'starting'}"
        head += f"; {format_seconds(time.monotonic() - self._started)}"
        return Group(
            plain(head if best is None else f"{head}; best {format_loss(best)}", "bold"), self._build_table()
        )

    def _build_table(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for header in ("trial", "settings", "state", "done", "val/loss", "best"):
            table.add_column(header, justify="right" if header in ("done", "val/loss", "best") else "left")
        runs_first = sorted(
            self._trials.values(),
            key=lambda t: (t.state in ENDS, float("inf") if t.best is None else t.best, t.record.number),
        )
        for trial in runs_first[:_MOST_ROWS]:
            losses = ("–" if loss is None else format_loss(loss) for loss in (trial.loss, trial.best))
            texts = (trial.record.name, write_setting(trial.record.point))
            state = plain(trial.state, STATE_STYLES.get(trial.state, ""))
            table.add_row(*map(plain, texts), state, plain(f"{trial.progress:.0%}"), *map(plain, losses))
        return table


class SweepMirrors(Looking):
    """Each trial a run of W&B, grouped under the sweep; what became of their rows is told once, at the end."""

    def __init__(self, sweep_dir: Path, tracking: TrackingConfig, console: Console) -> None:
        super().__init__(sweep_dir)
        self._tracking, self._console = tracking, console
        # What happened before is history, mirrored when it was written.
        self._events = {record.name: Tail(sweep_dir / record.name / EVENTS) for record in read_ledger(sweep_dir)}
        self._known = set(self._events)
        for tail in self._events.values():
            tail.read()
        self._open: dict[str, Follower] = {}
        self._told: list[str] = []

    def _look(self) -> None:
        if self._tracking.wandb == "disabled":
            return
        for record in read_ledger(self._sweep_dir):
            name = record.name
            if name not in self._events:
                self._events[name] = Tail(self._sweep_dir / name / EVENTS)
            for row in self._events[name].read():
                if row["state"] == "starting" and name not in self._open:
                    self._begin(name)
                elif row["state"] in ENDS:
                    self._end(name, row["state"])

    def _begin(self, name: str) -> None:
        run_dir = self._sweep_dir / name
        with contextlib.suppress(BrokenRunError):
            config = load_flat_config(run_dir)
            sweep = self._sweep_dir.name
            mirror = build_wandb_mirror(
                self._tracking, run_dir, f"{sweep}/{name}", config, group=sweep, tell=self._told.append
            )
            if mirror is not None:
                self._open[name] = Follower(run_dir, [mirror], replay=name not in self._known).__enter__()

    def _end(self, name: str, state: str) -> None:
        follower = self._open.pop(name, None)
        if follower is not None:
            follower.state = "finished" if state == "pruned" else state
            follower.__exit__(None, None, None)

    def _close(self) -> None:
        for name in list(self._open):
            self._end(name, "interrupted")
        lost = [line for line in self._told if "dropped" in line or "off" in line]
        if self._told:
            kept = f"W&B: {len(self._told)} trials mirrored under the group {self._sweep_dir.name}"
            self._console.print(plain(f"{kept}; {lost[0]}" if lost else kept), soft_wrap=True)
