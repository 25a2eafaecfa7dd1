"""Follows the files of a run while it trains, and hands their rows to mirrors: the terminal, W&B.

The files are the truth. A mirror that fails is turned off, and the run never hears of it.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from sftray.train_fn.journal import EVENTS, METRICS, Journal
from sftray.train_fn.looking import choose_pause
from sftray.train_fn.tail import Tail

Row = Mapping[str, Any]

POLL_SECONDS = 0.2
# How long leaving waits for mirrors to close; a mirror that hangs longer is left behind in its daemon thread.
LEAVE_SECONDS = 20.0
_MOST_LOOKS = 8  # at both files at once, while they grow

_logger = logging.getLogger(__name__)


class Mirror(Protocol):
    """Shows a run elsewhere. All calls of one follower come from one thread, in the order of the rows' times."""

    def on_metrics(self, row: Row) -> None: ...

    def on_event(self, row: Row) -> None: ...

    def close(self, state: str) -> None:
        """The run is over, in `state`. Called once, also on a mirror that was turned off."""


class Follower:
    """Context manager: while it is open, a thread hands every new row of `run_dir` to all `mirrors`.

    `state` is what mirrors are closed with. Set it before leaving; else it is `finished`, or where an exception
    leaves the context `interrupted` or `failed`. `replay` hands on what the files hold already; without it that
    is history, mirrored when it was written, as when a run is resumed.
    """

    def __init__(self, run_dir: Path, mirrors: Sequence[Mirror], replay: bool = False) -> None:
        self.state: str | None = None
        self._mirrors = list(mirrors)
        self._active = list(mirrors)
        self._journal = Journal(run_dir)
        self._events, self._metrics = Tail(run_dir / EVENTS), Tail(run_dir / METRICS)
        self._attempt, self._pause = 0, choose_pause(run_dir, POLL_SECONDS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)
        self._replay = replay

    def __enter__(self) -> Self:
        if not self._replay:
            self._read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.state is None:
            self.state = _name_end(error)
        self._stop.set()
        self._thread.join(LEAVE_SECONDS)
        if self._thread.is_alive():
            _logger.warning("a mirror of the run has hung for %g s; it is left behind", LEAVE_SECONDS)

    def _follow(self) -> None:
        while not self._stop.wait(self._pause):
            self._deliver()
        self._deliver()
        for mirror in self._mirrors:
            self._guard(mirror, functools.partial(mirror.close, self.state or _name_end(None)))

    def _deliver(self) -> None:
        for name, row in self._read():
            for mirror in list(self._active):
                call = mirror.on_event if name == EVENTS else mirror.on_metrics
                self._guard(mirror, functools.partial(call, row))

    def _read(self) -> list[tuple[str, Row]]:
        """New rows of both files, in the order they were written in.

        They are looked at until both are quiet: else a row may be found whose predecessor in the other file was
        written between the looks.
        """
        rows: list[tuple[str, Row]] = []
        for _ in range(_MOST_LOOKS):
            events, metrics = self._events.read(), self._metrics.read()
            rows += [(EVENTS, row) for row in events] + [(METRICS, row) for row in metrics]
            self._attempt = max([self._attempt, *(row.get("attempt", 0) for row in events)])
            if not events and not metrics:
                break
        return sorted(rows, key=lambda item: item[1].get("time", 0.0))

    def _guard(self, mirror: Mirror, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a mirror is foreign code: whatever it raises is told, and ends it alone
            self._turn_off(mirror, error)

    def _turn_off(self, mirror: Mirror, error: Exception) -> None:
        why = f"{type(mirror).__name__}: {type(error).__name__}: {error}"
        _logger.warning("a mirror is off, and the run goes on: %s", why)
        _logger.debug("where it failed", exc_info=error)
        if mirror in self._active:
            self._active.remove(mirror)
        with contextlib.suppress(OSError):  # the log has it
            self._journal.add_event("mirror_off", self._attempt, why)


def _name_end(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
