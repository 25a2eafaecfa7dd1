"""A folder by which a process and workers elsewhere speak to each other, and the mark that its owner still lives.

On a disk the mark is a lock, which falls with the process. In a bucket it is a sign of life, given again and again.
"""

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sftray.train_fn.looking import choose_pause
from sftray.train_fn.places import find_bucket, write_whole

_LOCK, _ALIVE = "director", "director-lives"
_BEAT_S, _EXPIRY_S = 5.0, 30.0
_GAP_S = 10.0  # what two looks say of the time between them: less than it takes to judge
LOOK_EVERY_S = 5.0  # of who waits for a judgement


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


class Judge:
    """Says of mailboxes whether their owners are gone, asked of each again and again.

    On a disk a look is enough. In a bucket a sign of life must have stood still for _EXPIRY_S by the clock of who
    looks, in looks that were answered: clocks of nodes differ, and while a bucket is away nobody can give a sign.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, _Watched] = {}

    @contextlib.contextmanager
    def take_if_lost(self, folder: Path) -> Iterator[bool]:
        """Whether the owner of this mailbox is gone; on a disk of all who ask, one at a time hears so."""
        if find_bucket(folder) is not None:
            yield self._has_stood_still(folder)
            return
        with (folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True

    def _has_stood_still(self, folder: Path) -> bool:
        sign, now = (folder / _ALIVE).read_text(), self._clock()
        before = self._seen.get(folder)
        still_s = before.still_s + min(now - before.looked, _GAP_S) if before and before.sign == sign else 0.0
        self._seen[folder] = _Watched(sign, now, still_s)
        return still_s > _EXPIRY_S


@dataclass(frozen=True)
class _Watched:
    """A sign of life, when it was last looked at, and for how many seconds it had not moved then."""

    sign: str
    looked: float
    still_s: float
