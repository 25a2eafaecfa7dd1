"""A run or sweep that goes on in a store that is at hand: what it does, what it said, and how it is told to stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sftray.platform.mirror import Follower
from sftray.platform.progress import build_lines, describe_numbers
from sftray.platform.results import find_run
from sftray.platform.run_files import read_events, read_rows
from sftray.platform.stopping import ask_to_stop
from sftray.platform.sweep_files import find_sweep
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.journal import METRICS, STOP
from sftray.train_fn.lease import look_at_lease
from sftray.train_fn.looking import choose_pause
from sftray.train_fn.places import spell
from sftray.train_fn.store import connect_store

_LOOK_S = 0.25


@dataclass(frozen=True)
class Status:
    """`state` and `why` are those of the last event; `is_driven`: a process takes care of it. `latest`: the last
    value of each metric. `total_steps`: None before the first attempt, and of a sweep.
    """

    folder: Path
    state: str
    why: str
    is_driven: bool
    latest: dict[str, Any]
    total_steps: int | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "folder": str(self.folder)}


def find_watched(name_or_path: str, store: str) -> Path:
    """The directory of a run or a sweep. Raises ConfigError where there is none."""
    return find_sweep(name_or_path, store) or find_run(name_or_path, store)


def read_status(folder: Path) -> Status:
    events = [row for row in read_events(folder).rows if row["state"] != "checkpoint"]
    latest: dict[str, Any] = {}
    for row in read_rows(folder / METRICS).rows:
        latest |= row
    last = events[-1] if events else {"state": "waiting"}
    total_steps = next((row["total_steps"] for row in reversed(events) if "total_steps" in row), None)
    return Status(folder, last["state"], last.get("why") or "", is_driven(folder), latest, total_steps)


def is_driven(folder: Path) -> bool:
    return look_at_lease(connect_store(folder)) in ("alive", "wait")


def describe_status(status: Status) -> list[str]:
    """One line: the run, its state, how far it is, its numbers; another where nobody drives what has not ended."""
    latest = status.latest
    far = f"step {latest['step']}/{status.total_steps} ({latest['progress']:.0%})" if "progress" in latest else ""
    parts = [f"{status.folder.name}: {status.state}", status.why, far, *describe_numbers(latest)]
    lines = ["  ".join(part for part in parts if part)]
    if not status.is_driven and status.state not in ("finished", "failed", "pruned", "stopped"):
        lines.append(f"nothing drives it any more; to go on: sftray resume {spell(status.folder)}")
    return lines


def follow_log(folder: Path, console: Console, until_end: bool) -> None:
    """Print what the run has said so far, and, `until_end`, what it says until nobody drives it any more."""
    lines = build_lines(console, read_status(folder).total_steps or 0)
    with Follower(folder, [lines], replay=True):
        if until_end:
            wait_until_left(folder)


def stop_run(folder: Path, tell: Callable[[str], None]) -> Status:
    """Ask a run or sweep to save and stop, and wait until it has.

    Raises:
        ConfigError: nobody drives it.
    """
    if not is_driven(folder):
        raise ConfigError(
            Problem(
                f"{folder.name} is not running",
                why="no process holds its lease",
                fix="sftray status RUN says how it ended",
            )
        )
    ask_to_stop(folder / STOP, "sftray stop")
    tell(f"{folder.name} is asked to save and stop")
    wait_until_left(folder)
    return read_status(folder)


def wait_until_left(folder: Path) -> None:
    never = threading.Event()
    while is_driven(folder):
        never.wait(choose_pause(folder, _LOOK_S))
