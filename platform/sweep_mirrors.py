"""The trials of a sweep in W&B: each a run of its own, all under the sweep's name."""

import functools
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from sftray.platform.mirror import Follower
from sftray.platform.sweep_files import read_ledger
from sftray.platform.sweep_watch import ENDS, Watch
from sftray.platform.terminal import plain
from sftray.platform.tracking import WandbMirror, build_wandb_mirror
from sftray.train_fn.config import TrackingConfig
from sftray.train_fn.config_file import load_config
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, EVENTS
from sftray.train_fn.places import find_bucket
from sftray.train_fn.tail import Tail

MOST_OPEN = 16  # each is a process or two
_CLOSE_S = 20.0  # what all of them together get at the end


@dataclass
class _Mirrored:
    """A trial that is to be mirrored. `end` is how its trial ended; `replay`: from its first row on."""

    name: str
    replay: bool
    end: str | None = None
    mirror: WandbMirror | None = None
    open: ExitStack = field(default_factory=ExitStack)
    closing: threading.Thread | None = None


class SweepMirrors(Watch):
    """Opens a mirror for every trial that starts and closes it when the trial ends; `MOST_OPEN` at a time, the
    others wait and are mirrored later from their files. What became of all rows is told once, at the end."""

    def __init__(self, sweep_dir: Path, tracking: TrackingConfig, console: Console) -> None:
        super().__init__(sweep_dir)
        self._sweep_dir, self._tracking, self._console = sweep_dir, tracking, console
        self._events: dict[str, Tail] = {}
        self._under_way: list[_Mirrored] = []
        self._closed: list[WandbMirror] = []
        self._told: list[str] = []
        self.guard(self._skip_history)
        self._mirrored_before = set(self._events)

    def look(self) -> None:
        if self._tracking.wandb == "disabled":
            return
        for record in read_ledger(self._sweep_dir):
            tail = self._events.setdefault(record.name, Tail(self._sweep_dir / record.name / EVENTS))
            for row in tail.read():
                self._note(record.name, str(row.get("state")))
        self._advance()

    def close(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        for each in self._under_way:
            each.end = each.end or "interrupted"
        while self._under_way and time.monotonic() < deadline:
            self._advance()
            for each in self._under_way:
                if each.closing is not None:
                    each.closing.join(0.1)
        if self._closed or self._under_way:
            self._console.print(plain(self._describe()), soft_wrap=True)

    def _skip_history(self) -> None:
        """What happened before was mirrored when it was written."""
        for record in read_ledger(self._sweep_dir):
            self._events[record.name] = Tail(self._sweep_dir / record.name / EVENTS)
            self._events[record.name].read()

    def _note(self, name: str, state: str) -> None:
        current = next((each for each in self._under_way if each.name == name and each.end is None), None)
        if state == "starting" and current is None:
            self._under_way.append(_Mirrored(name, replay=name not in self._mirrored_before))
            self._mirrored_before.add(name)
        elif state in ENDS and current is not None:
            current.end = state

    def _advance(self) -> None:
        """Take away those that are closed, begin to close those that ended, open others where there is room."""
        for each in [each for each in self._under_way if each.closing is not None and not each.closing.is_alive()]:
            self._under_way.remove(each)
            if each.mirror is not None:
                self._closed.append(each.mirror)
        names = {each.name for each in self._under_way if each.mirror is not None}
        for each in self._under_way:
            if each.mirror is None and len(names) < MOST_OPEN and each.name not in names:
                names.add(each.name)
                self.guard(functools.partial(self._open, each))
            if each.end is not None and each.closing is None and (each.mirror is not None or each.name in names):
                each.closing = threading.Thread(target=each.open.close, name=f"close {each.name}", daemon=True)
                each.closing.start()

    def _open(self, each: _Mirrored) -> None:
        run_dir, sweep = self._sweep_dir / each.name, self._sweep_dir.name
        try:
            config = load_config(run_dir / CONFIG).config.model_dump(mode="json")
        except ConfigError:
            config = {}  # W&B then has the numbers alone
        each.mirror = build_wandb_mirror(
            self._tracking, run_dir, f"{sweep}/{each.name}", config, group=sweep, tell=self._told.append
        )
        if each.mirror is not None:
            follower = each.open.enter_context(Follower(run_dir, [each.mirror], each.replay))
            each.open.callback(lambda: _name_state(follower, each.end))  # runs before the follower is left

    def _describe(self) -> str:
        counts = [mirror.rows for mirror in self._closed]
        mirrored, given = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        told = f"W&B: {mirrored:,} row(s) of {len(counts)} trial(s) mirrored under the group {self._sweep_dir.name}"
        if given > mirrored or self._under_way:
            reasons = [line for line in self._told if "dropped" in line]
            told += f", {given - mirrored:,} dropped" + (f"; one of them: {reasons[0]}" if reasons else "")
        if self._under_way:
            told += f"; {len(self._under_way)} trial(s) not mirrored to their end"
        if self._tracking.wandb == "offline" and mirrored:
            fetch = "fetch and " if find_bucket(self._sweep_dir) else ""
            told += f"; to upload them: {fetch}wandb sync {self._sweep_dir / 'trial-*/wandb/offline-run-*'}"
        return told


def _name_state(follower: Follower, end: str | None) -> None:
    follower.state = "finished" if end in ("finished", "pruned") else end
