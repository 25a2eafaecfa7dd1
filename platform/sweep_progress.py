"""A sweep in the terminal while it runs: a live table of its trials, or plain lines where there is no terminal."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from sftray.platform.certainty import write_number
from sftray.platform.progress import format_clock, format_loss
from sftray.platform.sweep_files import read_ledger
from sftray.platform.sweep_table import shorten_keys
from sftray.platform.sweep_watch import ENDS, Watch, Watched, watch_trial
from sftray.platform.tables import STATE_STYLES
from sftray.platform.terminal import plain

_MOST_ROWS = 20  # those that run, then the best
_AROUND = 4  # lines of the terminal that are not trials: the head, the headers, what is left out, the prompt
_BAR = 10  # characters


@dataclass(frozen=True)
class _Column:
    """`width`: characters that the terminal must have for it to be shown."""

    header: str
    width: int
    show: Callable[[Watched], RenderableType]
    justify: Literal["left", "right"] = "right"


def _show_loss(loss: float | None) -> RenderableType:
    return plain("–" if loss is None else format_loss(loss))


def _show_remaining(trial: Watched) -> RenderableType:
    return plain("" if trial.remaining is None else format_clock(trial.remaining))


_BEFORE = (_Column("trial", 0, lambda trial: plain(trial.record.name, "bold"), "left"),)
_AFTER = (
    _Column("state", 0, lambda trial: plain(trial.state, STATE_STYLES.get(trial.state, "")), "left"),
    _Column("", 110, lambda trial: ProgressBar(1.0, trial.progress, width=_BAR), "left"),
    _Column("done", 0, lambda trial: plain(f"{trial.progress:.0%}")),
    _Column("val/loss", 0, lambda trial: _show_loss(trial.loss)),
    _Column("best", 100, lambda trial: _show_loss(trial.best)),
    _Column("tokens/s", 130, lambda trial: plain("–" if trial.speed is None else f"{trial.speed:,.0f}")),
    _Column("eta", 90, _show_remaining),
)


class SweepProgress(Watch):
    """A live table on a terminal, with failures as lines above it; elsewhere one line for each thing that happens.

    What is there when it begins is history: counted, and not told again.
    """

    def __init__(self, console: Console, sweep_dir: Path, total: int) -> None:
        super().__init__(sweep_dir)
        self._console, self._sweep_dir, self._total = console, sweep_dir, total
        self._started = time.monotonic()
        self._trials: dict[str, Watched] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.guard(self._find_new)
        for trial in self._trials.values():
            self.guard(trial.look)

    def begin(self) -> None:
        if self._trials:
            self._console.print(plain(f"before: {describe_states(list(self._trials.values()))}"), soft_wrap=True)

    def look(self) -> None:
        self._find_new()
        for trial in self._trials.values():
            self.guard(functools.partial(self._tell, trial))
        if self._live is not None:
            self._live.start()
            self._live.update(self._build(), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _find_new(self) -> None:
        for record in read_ledger(self._sweep_dir):
            if record.name not in self._trials:
                self._trials[record.name] = watch_trial(self._sweep_dir, record)

    def _tell(self, trial: Watched) -> None:
        for line in trial.look():
            if self._live is None or line.startswith("failed"):
                self._console.print(plain(f"{trial.record.name}  {line}"), soft_wrap=True)

    def _build(self) -> Group:
        trials = sorted(self._trials.values(), key=_order)
        best = min((trial.best for trial in trials if trial.best is not None), default=None)
        head = f"{describe_states(trials)} of {self._total}; {format_clock(time.monotonic() - self._started)}"
        head = head if best is None else f"{head}; best {format_loss(best)}"
        shown = trials[: max(1, min(_MOST_ROWS, self._console.height - _AROUND))]
        left = len(trials) - len(shown)
        parts: list[RenderableType] = [plain(head, "bold"), build_live_table(shown, self._console.width)]
        return Group(*parts, *([plain(f"… and {left} more", "dim")] if left else []))


def _order(trial: Watched) -> tuple[bool, float, int]:
    return trial.state in ENDS, math.inf if trial.best is None else trial.best, trial.record.number


def describe_states(trials: list[Watched]) -> str:
    """`8 trials (2 running, 3 finished, 2 pruned, 1 failed)`"""
    states = [trial.state for trial in trials]
    counts = [f"{states.count(s)} {s}" for s in ("waiting", "starting", "running", *ENDS) if s in states]
    return f"{len(trials)} trials" + (f" ({', '.join(counts)})" if counts else "")


def build_live_table(trials: list[Watched], width: int) -> Table:
    keys = shorten_keys(list(dict.fromkeys(key for trial in trials for key in trial.point)))
    settings = [_build_setting(key, name) for key, name in keys.items()]
    columns = [column for column in (*_BEFORE, *settings, *_AFTER) if column.width <= width]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        is_setting = column in settings
        table.add_column(
            plain(column.header),
            justify=column.justify,
            no_wrap=not is_setting,
            overflow="fold" if is_setting else "ellipsis",
        )
    for trial in trials:
        table.add_row(*(column.show(trial) for column in columns))
    return table


def _build_setting(key: str, name: str) -> _Column:
    return _Column(name, 0, lambda trial: plain(write_number(trial.point[key]) if key in trial.point else "–"))
