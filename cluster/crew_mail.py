"""A folder by which a process and workers elsewhere speak to each other, and the mark that its owner still lives.

On a disk the mark is a lock, which falls with the process. In a bucket it is a sign of life, given again and again.
"""

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sftray.train_fn.looking import choose_pause
from sftray.train_fn.places import find_bucket, write_whole

_LOCK, _ALIVE = "director", "director-lives"
_BEAT_S, _EXPIRY_S = 5.0, 30.0


def pause_between_looks(folder: Path) -> float:
    """Seconds between two looks into a mailbox."""
    return choose_pause(folder, 0.05, 1.0)


def open_mailbox(folder: Path) -> Callable[[], None]:
    """Make a mailbox that is held from the moment that it is there. Returns what gives it up."""
    if find_bucket(folder) is not None:
        return _beat(folder)
    draft = folder.with_name(f".{folder.name}")
    draft.mkdir(parents=True)
    lock = (draft / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(folder)
    return lock.close


def _beat(folder: Path) -> Callable[[], None]:
    ended = threading.Event()
    write_whole(folder / _ALIVE, str(time.time()))

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            with contextlib.suppress(OSError):  # it is tried again at the next beat
                write_whole(folder / _ALIVE, str(time.time()))

    threading.Thread(target=beat, name="mailbox", daemon=True).start()
    return ended.set


@contextlib.contextmanager
def take_if_lost(folder: Path) -> Iterator[bool]:
    """Whether the owner of a mailbox is gone; on a disk of all who ask, one at a time hears so."""
    if find_bucket(folder) is not None:
        yield time.time() - _read_beat(folder) > _EXPIRY_S
        return
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _read_beat(folder: Path) -> float:
    try:
        return float((folder / _ALIVE).read_text())
    except ValueError:
        return 0.0
