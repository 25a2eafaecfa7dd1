"""What is known of a worker that failed, and of what kind that is. Knows nothing of Ray.

A worker that fails by itself writes a line into the run's events, and its traceback into a file beside them, before
it ends. One whose partner was lost only waits: it is not the cause, and the cause is still on its way.
"""

import contextlib
import errno
import socket
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sftray.train_fn.errors import DivergedError, Problem, StoreError, UserError
from sftray.train_fn.journal import EVENTS, Journal, read_lines
from sftray.train_fn.places import write_whole
from sftray.train_fn.standing import Standing

# partner: a collective failed because another rank is gone. frozen: the process stood still and ended itself.
Kind = Literal["user", "diverged", "store", "memory", "frozen", "lost", "preempted", "bug", "partner"]

# A rank that has lost its partner waits so long for the controller to see the partner's death: longer than a node
# takes to be declared dead (9 s), for without its name the workers might be started on it again.
PARTNER_WAIT_S = 15.0
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 5.0, 60.0  # below the time limit of the collectives in which the others wait

_STORE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS}
_OUT_OF_MEMORY = ("CUDA out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_PARTNER_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "remote process exited",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
    "Socket Timeout",
    "failed to recv",
    "failed to connect",
    "recvValue failed",
    "sendBytes failed",
    "Failed to recv",
)
# What is raised by torch.distributed, and by the barrier of ray.train.report.
_PARTNER_TYPES = {"RuntimeError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
_BARRIER_TYPES = {
    "CollectiveTimeoutError",
    "BroadcastCollectiveTimeoutError",
    "ActorDiedError",
    "ActorUnavailableError",
    "RayActorError",
}


@dataclass(frozen=True)
class Failure:
    """`step`: the last one that was finished. `error`: the type. `why`: what it says, in a line.

    `file`: where the traceback or the stacks are, in the run's directory.
    """

    kind: Kind
    rank: int
    attempt: int
    step: int
    node: str
    error: str = ""
    why: str = ""
    file: str | None = None


class WorkerFailed(Exception):
    """What a worker's error is sent as: it can be pickled, whatever the error was."""

    def __init__(self, failure: Failure, user_error: UserError | None = None) -> None:
        super().__init__(failure, user_error)
        self.failure, self.user_error = failure, user_error


def classify_error(error: BaseException) -> Kind:
    """Of what kind an error is that was raised on a worker."""
    text, name = str(error), type(error).__name__
    if isinstance(error, UserError):
        return (
            "diverged" if isinstance(error, DivergedError) else "store" if isinstance(error, StoreError) else "user"
        )
    if isinstance(error, OSError) and error.errno in _STORE_ERRORS:
        return "store"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or any(said in text for said in _OUT_OF_MEMORY):
        return "memory"
    if name in _BARRIER_TYPES or (name in _PARTNER_TYPES and any(said in text for said in _PARTNER_ERRORS)):
        return "partner"
    return "bug"


def compute_wait(kind: Kind, earlier: int) -> float:
    """Seconds that a failed worker waits before it says so. `earlier`: how often the store failed before."""
    if kind == "partner":
        return PARTNER_WAIT_S
    return min(_FIRST_BACKOFF_S * 2**earlier, _LAST_BACKOFF_S) if kind == "store" else 0.0


@contextlib.contextmanager
def tell_failure(journal: Journal, standing: Standing) -> Iterator[None]:
    """Write down what fails inside, and raise it as WorkerFailed.

    What the person, the data or the numbers caused gets no line: the run ends with it, and says it.
    """
    try:
        yield
    except Exception as error:  # whatever it is, it is raised again: here it gets its line
        earlier = sum(f.kind == "store" for f in read_failures(read_events(journal.folder)))
        failure = _describe(error, standing)
        if not isinstance(error, UserError) and failure.kind != "partner":
            failure = replace(failure, file=f"crash-attempt-{standing.attempt}-rank-{standing.rank}.txt")
            with contextlib.suppress(OSError):  # a full disk is no reason to hide what filled it
                write_whole(journal.folder / str(failure.file), traceback.format_exc())
        if failure.kind in ("store", "memory", "bug"):
            with contextlib.suppress(OSError):
                add_failure(journal, failure)
        threading.Event().wait(compute_wait(failure.kind, earlier))
        raise WorkerFailed(failure, _find_user_error(error)) from error


def _describe(error: BaseException, standing: Standing) -> Failure:
    said = error.problems[0].what if isinstance(error, UserError) else str(error)
    return Failure(
        kind=classify_error(error),
        rank=standing.rank,
        attempt=standing.attempt,
        step=standing.step,
        node=socket.gethostname(),
        error=type(error).__name__,
        why=" ".join(said.split())[:300],
    )


def _find_user_error(error: Exception) -> UserError | None:
    if isinstance(error, OSError) and classify_error(error) == "store":
        problem = Problem(
            f"a file of the run cannot be used: {error.strerror}",
            where=error.filename and str(error.filename),
            fix="free space or mend the store; the run resumes at its newest checkpoint",
        )
        return StoreError(problem)
    return error if isinstance(error, UserError) else None


def add_failure(journal: Journal, failure: Failure) -> None:
    """A line for the run's events. Its node is the worker's, whoever writes it."""
    facts = {key: value for key, value in asdict(failure).items() if value is not None}
    journal.add_event("worker_failed", facts.pop("attempt"), facts.pop("why"), **facts)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Events since the run was last started or resumed."""
    path = run_dir / EVENTS
    events = list(read_lines(path)) if path.exists() else []
    starts = [index for index, event in enumerate(events) if event["state"] == "starting"]
    return events[starts[-1] :] if starts else events


def read_failures(events: Iterable[Mapping[str, Any]]) -> list[Failure]:
    """Why each attempt among these events failed: the first line of each that says so."""
    found: dict[int, Failure] = {}
    for event in events:
        if event["state"] == "worker_failed":
            found.setdefault(event["attempt"], as_failure(event))
    return list(found.values())


def find_last_failure(events: Iterable[Mapping[str, Any]]) -> Failure | None:
    """Why the attempt is needed that is about to run: the failure since the last one ran."""
    since: list[Mapping[str, Any]] = []
    for event in events:
        since = [] if event["state"] == "running" else [*since, event]
    return next(iter(read_failures(since)[-1:]), None)


def as_failure(event: Mapping[str, Any]) -> Failure:
    names = ("kind", "rank", "attempt", "step", "node", "error", "why", "file")
    return Failure(**{name: event[name] for name in names if name in event})


def describe_failure(failure: Failure) -> str:
    """Who failed, why and where, in a line."""
    does = {
        "memory": "ran out of memory",
        "store": "could not use the store",
        "lost": "was lost",
        "preempted": "was preempted",
        "frozen": "was frozen",
        "partner": "lost its connection to another rank",
        "diverged": "diverged",
    }.get(failure.kind, "failed")
    shows_type = failure.kind == "bug" and failure.error
    said = f"{failure.error}: {failure.why}".rstrip(": ") if shows_type else failure.why
    return f"rank {failure.rank} {does} ({said}; node {failure.node}, after step {failure.step})"
