"""A look at the train thread from beside it: one that stands still ends its process, and leaves the stacks.

A process that is frozen as a whole cannot do that; Ray's health check finds it. What is found here is a thread that
hangs in a process that lives: in a lock, a read that never returns, a collective whose partner does not come. And one
that works for nothing: where the network is cut, a newer attempt may have taken over while this one still trains.
"""

import contextlib
import faulthandler
import functools
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from sftray.train_fn.attempts import find_newest_attempt
from sftray.train_fn.errors import StoreError
from sftray.train_fn.journal import Journal
from sftray.train_fn.places import write_whole
from sftray.train_fn.standing import Phase, Standing
from sftray.train_fn.store import connect_store

Verdict = Literal["fine", "dump", "end"]

_WRITE_S = 10.0  # a store that hangs must not keep the process alive
_OVERSLEPT = 4.0  # times as long as asked, and a second: then the machine slept, and not the train thread
# Where a rank stands that waits for others: in a collective, in the backward pass that reduces gradients, in Ray's
# barrier, or in a step's read of a number from the GPU, behind which the reduction is queued.
_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py", "-packages/ray/", "/train_fn/step.py")
_NAMES = {
    "loading": "loading the model",
    "starting": "what comes before the first step",
    "evaluating": "a batch of the validation",
    "between": "what comes after a step",
}


@dataclass(frozen=True)
class Fuses:
    """Seconds after which what a worker does counts as frozen.

    A step: `factor` times the median of the last ones, at least `step`; before the first one is finished,
    `first_step`, for compiling may take minutes. `grace`: how much longer one may stand that seems to wait for
    another rank: that one is to end first, and be named. `look`: how often it is looked.
    """

    step: float = 30.0
    factor: float = 10.0
    first_step: float = 600.0
    evaluating: float = 600.0  # a batch
    between: float = 3600.0  # a checkpoint, tried again while the store refuses it
    loading: float = 3600.0  # a model from a slow hub
    grace: float = 30.0
    look: float = 1.0
    successor: float = 2.0  # so often it is looked for a newer attempt


def compute_fuse(fuses: Fuses, phase: Phase, durations: Sequence[float]) -> float:
    match phase:
        case "loading":
            return fuses.loading
        case "evaluating":
            return fuses.evaluating
        case "between":
            return fuses.between
        case "step" if durations:
            return max(fuses.step, fuses.factor * statistics.median(durations))
        case _:
            return fuses.first_step


def judge(waited: float, fuse: float, grace: float, waits_for_others: bool) -> Verdict:
    """`dump`: leave the stacks, and look again."""
    if waited <= fuse:
        return "fine"
    return "dump" if waits_for_others and waited <= fuse + grace else "end"


def has_overslept(slept: float, asked: float) -> bool:
    """Whether the whole process stood still meanwhile: it was stopped, or its machine slept."""
    return slept > _OVERSLEPT * asked + 1.0


@contextlib.contextmanager
def run_watchdog(standing: Standing, journal: Journal, fuses: Fuses | None) -> Iterator[None]:
    """Watch the calling thread for as long as this lasts. Without fuses nothing is watched."""
    if fuses is None:
        yield
        return
    done, watched = threading.Event(), threading.get_ident()
    arguments = (standing, journal, fuses, watched, done)
    threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True).start()
    # Beside it: the store may hang, and what hangs with it is to be found.
    fence = (standing, journal.folder, fuses.successor, done)
    threading.Thread(target=_watch_for_successor, args=fence, name="fence", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(standing: Standing, journal: Journal, fuses: Fuses, watched: int, done: threading.Event) -> None:
    looked = time.monotonic()
    dumped: float | None = None  # the beginning of that of which the stacks are written
    while not done.wait(fuses.look):
        last, looked = looked, time.monotonic()
        if has_overslept(looked - last, fuses.look):
            standing.since = looked
            continue
        began = standing.since
        waited, fuse = looked - began, compute_fuse(fuses, standing.phase, list(standing.durations))
        if waited <= fuse:
            continue
        frame = sys._current_frames().get(watched)
        said = describe_wait(standing, waited, frame)
        verdict = judge(waited, fuse, fuses.grace, standing.world_size > 1 and waits_for_others(frame))
        if verdict == "dump" and dumped != began:
            dumped = began
            _act_in_time(functools.partial(save_stacks, journal.folder, standing, said))
        if verdict == "end":
            _act_in_time(functools.partial(_leave_word, journal, standing, said))
            if standing.since == began and not done.is_set():
                os.kill(os.getpid(), signal.SIGKILL)  # nothing gentler ends a thread that hangs


def _watch_for_successor(standing: Standing, folder: Path, pause: float, done: threading.Event) -> None:
    while not done.wait(pause):
        if is_overtaken(standing, folder) and not done.is_set():
            os.kill(os.getpid(), signal.SIGKILL)  # without a word: the newer attempt has said why it is there


def is_overtaken(standing: Standing, folder: Path) -> bool:
    """Whether a newer attempt has begun; False where that cannot be known, and before this one has its number."""
    if standing.phase == "loading":
        return False
    try:
        return find_newest_attempt(connect_store(folder)) > standing.attempt
    except (StoreError, OSError):
        return False


def waits_for_others(frame: FrameType | None) -> bool:
    """Whether a thread that stands in this frame probably waits for another rank."""
    return frame is not None and any(place in frame.f_code.co_filename for place in _WAITING)


def describe_wait(standing: Standing, waited: float, frame: FrameType | None) -> str:
    name = _NAMES.get(standing.phase, f"step {standing.step + 1}")
    usual = f", usually {statistics.median(standing.durations):.1f}" if standing.durations else ""
    usual = f" s{usual} s" if standing.phase == "step" and usual else " s"
    code = frame.f_code if frame else None
    where = f", in {Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}" if code and frame else ""
    return f"{name} has taken {waited:.0f}{usual}{where}"


def name_stacks(standing: Standing) -> str:
    return f"stacks/attempt-{standing.attempt}-rank-{standing.rank}.txt"


def save_stacks(folder: Path, standing: Standing, said: str) -> None:
    """All threads of this process, each from its innermost call outwards."""
    path = folder / name_stacks(standing)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(f"rank {standing.rank}: {said}\n\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        stacks = file.read()
    path.parent.mkdir(exist_ok=True)
    write_whole(path, stacks)


def _leave_word(journal: Journal, standing: Standing, said: str) -> None:
    if is_overtaken(standing, journal.folder):
        return
    save_stacks(journal.folder, standing, said)
    facts = {"rank": standing.rank, "step": standing.step, "file": name_stacks(standing)}
    journal.add_event("frozen", standing.attempt, said, **facts)


def _act_in_time(act: Callable[[], None]) -> None:
    """Do it in a thread of its own, and wait for no longer than it may take."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(_WRITE_S)
