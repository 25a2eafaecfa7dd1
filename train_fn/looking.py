"""Looking for a file again and again, at no cost to the steps of the training."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sftray.train_fn.places import find_bucket

_EVERY_S = 2.0  # a bucket is asked


def choose_pause(folder: Path, near_s: float, far_s: float = _EVERY_S) -> float:
    """Seconds between two looks: a bucket answers more slowly, and counts every question."""
    return near_s if find_bucket(folder) is None else far_s


def watch_for(paths: Iterable[Path]) -> Callable[[], bool]:
    """Whether one of these is there. A bucket is asked in a thread, and its answer known at a later call."""
    everywhere = list(paths)
    near = [path for path in everywhere if find_bucket(path) is None]
    far = [path for path in everywhere if find_bucket(path) is not None]
    last, found, busy = -_EVERY_S, threading.Event(), threading.Event()

    def look() -> None:
        try:
            if any(path.exists() for path in far):
                found.set()
        except OSError:
            return  # a store that does not answer says nothing; the next look may be answered
        finally:
            busy.clear()

    def is_there() -> bool:
        nonlocal last
        if far and not busy.is_set() and time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            busy.set()
            threading.Thread(target=look, name="look", daemon=True).start()
        return found.is_set() or any(path.exists() for path in near)

    return is_there
