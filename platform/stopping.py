"""Stopping a run by a signal or from elsewhere: it saves at the end of the step it is in, and can go on from there.

Ray Train's own handler would end the workers where they stand. So the run is driven from a thread, and the main
thread takes the signals. The workers look for a file, which reaches every node that the store reaches. A store may
not answer for minutes: so whatever asks it is done in a thread, and a second signal is heard meanwhile.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from sftray.platform.exits import DRIVER
from sftray.train_fn.journal import EVENTS, STOP, Journal, read_lines
from sftray.train_fn.lease import Lease, hold_lease
from sftray.train_fn.looking import choose_pause, watch_for
from sftray.train_fn.places import write_whole
from sftray.train_fn.store import connect_store

T = TypeVar("T")

_WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_POLL_S = 0.1  # how soon a signal is acted upon: Python runs handlers between two looks
# make, timeout and others pass a signal on that their whole group got already: then it comes twice, and is one.
_SAME_S = 0.3
_LOOK_S = 0.5
_GRACE_S = 60.0
_SOMEBODY = "a stop was asked for"  # as long as a bucket that is away does not say by whom
_AT_WORK = "running"
_NOT_AT_WORK = ("starting", "worker_failed", "frozen", "not_joined")


@dataclass(frozen=True)
class Owner:
    """Drives a run or a sweep: holds its lease, and is who is asked to stop it. `is_asked`: by somebody elsewhere."""

    lease: Lease
    stop_file: Path
    is_asked: Callable[[], bool]

    def check(self) -> None:
        """For whoever waits for what can be left at once.

        Raises:
            FencedError: another owner has taken over.
            KeyboardInterrupt: a stop was asked for; its text is by whom.
        """
        self.lease.check()
        if self.is_asked():
            raise KeyboardInterrupt(_read_reason(self.stop_file))


@contextlib.contextmanager
def own(folder: Path) -> Iterator[Owner]:
    """Drive a run or a sweep for as long as this lasts. A stop that was asked of its owner before is forgotten.

    Raises:
        ConfigError: another process drives it.
    """
    stop_file = folder / STOP
    with hold_lease(connect_store(folder), folder.name) as lease:
        stop_file.unlink(missing_ok=True)
        try:
            yield Owner(lease, stop_file, watch_for([stop_file]))
        finally:
            with contextlib.suppress(OSError):  # the next owner forgets it
                stop_file.unlink(missing_ok=True)


def record_interrupt(folder: Path, interrupt: KeyboardInterrupt) -> str:
    """A line for the events of a run or a sweep; who interrupted it."""
    by, journal = str(interrupt) or "Ctrl-C", Journal(folder)  # Python's own has no text
    with contextlib.suppress(OSError):  # a bucket that is away is no reason to stay
        journal.add_event("interrupted", journal.count_attempts(), by)
    return by


def are_workers_at_work(journal: Journal) -> bool:
    """Whether there are workers that train and so could save: not before they have joined, nor after they failed.

    What a worker of an attempt that was overtaken may still say is not counted.
    """
    newest, last = 0, ""
    for event in read_lines(journal.folder / EVENTS):
        if event["state"] == _AT_WORK:
            newest, last = event["attempt"], _AT_WORK
        elif event["state"] in _NOT_AT_WORK and (event["attempt"] >= newest or event["state"] == "starting"):
            last = event["state"]
    return last == _AT_WORK


def run_stoppable(
    run: Callable[[], T],
    owner: Owner,
    is_at_work: Callable[[], bool],
    tell: Callable[[str], None],
    grace_s: float = _GRACE_S,
) -> tuple[T, str]:
    """What `run` returns, and who asked it to stop, or "".

    The first SIGINT or SIGTERM has the workers save, and waits for `run` to return; so does the owner's stop file,
    which others write. Where nobody is at work that could save, and at the second signal, it leaves at once. Outside
    of the main thread no signals are taken.

    Args:
        grace_s: so long those who were asked to save may be away, as after a failure, before it leaves.

    Raises:
        KeyboardInterrupt: it leaves at once, and what `run` started is left alone; its text is who asked.
        FencedError: another owner has taken over.
    """
    stop = _Stop(owner, is_at_work, tell, grace_s)
    ended: list[T] = []
    failed: list[BaseException] = []

    def drive() -> None:
        try:
            ended.append(run())
        except BaseException as error:  # handed to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=drive, name=DRIVER, daemon=True)
    with _take_signals(stop.on_signal), contextlib.closing(stop):
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            owner.lease.check()
            stop.look()
    for error in failed:
        raise error
    return ended[0], stop.reason or _read_reason(owner.stop_file)


class _Stop:
    """What was asked of a run, and what is done about it. `reason`: the first signal that came, else who else asked
    as far as that was seen, or "".
    """

    def __init__(
        self, owner: Owner, is_at_work: Callable[[], bool], tell: Callable[[str], None], grace_s: float
    ) -> None:
        self.reason = ""
        self._owner, self._is_at_work, self._tell, self._grace_s = owner, is_at_work, tell, grace_s
        self._signal, self._came = "", 0.0
        self._thread = threading.Thread(target=self._see_to_it, name="stop", daemon=True)
        self._is_over, self._leaves = threading.Event(), threading.Event()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only notes the first one. Raises KeyboardInterrupt at the second."""
        word = _WORDS[signal.Signals(number)]
        if word == self._signal and time.monotonic() - self._came < _SAME_S:
            return
        if self._signal:
            raise KeyboardInterrupt(word)
        self._signal, self._came, self.reason = word, time.monotonic(), word

    def look(self) -> None:
        """Have what was asked seen to. Raises KeyboardInterrupt where there is nothing to wait for."""
        if self._leaves.is_set():
            raise KeyboardInterrupt(self.reason)
        if self._thread.ident is None and (self._signal or self._owner.is_asked()):
            self._thread.start()

    def close(self) -> None:
        self._is_over.set()

    def _see_to_it(self) -> None:
        """Have the workers save; say that there is nothing to wait for where there are none, or none any more."""
        folder = self._owner.stop_file.parent
        asked, is_refused, last = "", False, time.monotonic() - self._grace_s
        while not self._is_over.is_set():
            try:
                self.reason = self._signal or self.reason or self._owner.stop_file.read_text(encoding="utf-8")
                if self._is_at_work():
                    last = time.monotonic()
                    asked = self._ask(asked)
                elif time.monotonic() - last >= self._grace_s:
                    self._leaves.set()
                    return
            except OSError:  # a bucket's, which has been asked for a while
                if not is_refused:
                    by = self.reason or _SOMEBODY
                    self._tell(f"{by}: {folder} does not answer, and is asked again until it does")
                is_refused = True
            self._is_over.wait(choose_pause(folder, _LOOK_S))

    def _ask(self, asked: str) -> str:
        """Ask the workers, unless that was done; on whose behalf they are asked now."""
        if (reason := self.reason) != asked:
            ask_to_stop(self._owner.stop_file, reason)
            again = "; once more to leave at once" if self._signal else ""
            self._tell(f"{reason}: saving at the end of this step{again}")
        return reason


def _read_reason(stop_file: Path) -> str:
    """Who asked, as far as that can be read; "" where nobody did."""
    try:
        return stop_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError:
        return _SOMEBODY


def ask_to_stop(stop_file: Path, reason: str) -> None:
    """Whole at once, for the workers may look at any time."""
    write_whole(stop_file, reason)


@contextlib.contextmanager
def _take_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _WORDS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
