"""Stopping a run by a signal: it saves at the end of the step it is in, and can go on from there.

Ray Train's own handler would end the workers where they stand. So the run is driven from a thread, and the main
thread takes the signals. The workers look for a file, which reaches every node that the store reaches.
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

from sftray.train_fn.journal import EVENTS, Journal, read_lines
from sftray.train_fn.places import write_whole

T = TypeVar("T")

_WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_POLL_S = 0.1  # how soon a signal is acted upon: Python runs handlers between two looks
# make, timeout and others pass a signal on that their whole group got already: then it comes twice, and is one.
_SAME_S = 0.3
_AT_WORK = "running"
_NOT_AT_WORK = ("starting", "worker_failed", "frozen", "not_joined")


@dataclass
class StopRequest:
    """`reason`: the signal, or whoever else asked for the stop; None as long as nobody has. `asked`: when a signal
    did, on the monotonic clock.
    """

    reason: str | None = None
    asked: float = 0.0

    def is_asked_again(self, word: str) -> bool:
        return word == self.reason and time.monotonic() - self.asked < _SAME_S

    def take_file(self, stop_file: Path) -> None:
        """The reason in it, where no signal gave one; the file is gone then."""
        if self.reason is None and stop_file.exists():
            self.reason = stop_file.read_text(encoding="utf-8")
        stop_file.unlink(missing_ok=True)


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
    stop_file: Path,
    is_at_work: Callable[[], bool],
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> tuple[T, StopRequest]:
    """What `run` returns, and who asked it to stop.

    The first SIGINT or SIGTERM writes `stop_file` and waits for `run` to return; where nobody is at work that could
    save, and at the second signal, it leaves at once. Outside of the main thread no signals are taken. Others may
    write `stop_file`, too: what stands in it is the reason.

    Args:
        check: called again and again meanwhile; what it raises ends the matter at once.

    Raises:
        KeyboardInterrupt: it leaves at once, and what `run` started is left alone; its text is the signal.
    """
    stop_file.unlink(missing_ok=True)
    request = StopRequest()
    ended: list[T] = []
    failed: list[BaseException] = []

    def drive() -> None:
        try:
            ended.append(run())
        except BaseException as error:  # handed to the thread that waits
            failed.append(error)

    def ask(number: int, frame: FrameType | None) -> None:
        word = _WORDS[signal.Signals(number)]
        if request.is_asked_again(word):
            return
        if request.reason is not None or not is_at_work():
            raise KeyboardInterrupt(word)
        request.reason, request.asked = word, time.monotonic()
        ask_to_stop(stop_file, request.reason)
        tell(f"{request.reason}: saving at the end of this step; once more to leave at once")

    thread = threading.Thread(target=drive, name="run-driver", daemon=True)
    with _take_signals(ask):
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            check()
    request.take_file(stop_file)
    for error in failed:
        raise error
    return ended[0], request


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
