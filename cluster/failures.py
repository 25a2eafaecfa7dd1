"""What follows from a failure: another attempt, or the end, and in which words. Decides; acts nowhere."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from sftray.cluster.joining import LOW_ON_MEMORY
from sftray.train_fn.errors import BugError, ClusterError, Problem, UserError
from sftray.train_fn.failure import Failure, Kind, WorkerFailed, classify_error, describe_failure
from sftray.train_fn.places import spell

# Of several failures of one attempt the first of these is the cause: what a worker says of itself goes before the
# loss of a process, and that before what it does to the others.
_RANKING: tuple[Kind, ...] = (
    "user", "diverged", "store", "memory", "preempted", "frozen", "lost", "bug", "partner",
)  # fmt: skip
_FINAL: tuple[Kind, ...] = ("user", "diverged")
# Where Ray keeps the error that it wraps, and we the one for a person.
_INNER = ("user_error", "controller_failure", "_base_exc", "cause")


@dataclass(frozen=True)
class Decision:
    """`why`: the cause and the reason of the decision, in a line."""

    action: Literal["retry", "stop"]
    cause: Failure
    why: str


def find_user_error(exception: BaseException | None) -> UserError | None:
    """The error for a person inside what Ray wraps around it."""
    seen = 0
    while exception is not None and seen < 10:
        # The last is of an error in a task, which is made to look like its cause and lacks its arguments.
        inner = next(filter(None, (getattr(exception, name, None) for name in _INNER)), None)
        if inner is None and isinstance(exception, UserError):
            return exception
        exception = inner or exception.__cause__
        seen += 1
    return None


def read_failure(rank: int, error: BaseException, attempt: int, step: int, node: str) -> Failure:
    """What a worker said of its failure, or what Ray says of a worker that cannot say anything any more.

    Args:
        attempt, step, node: what is known of the worker otherwise.
    """
    if isinstance(error, WorkerFailed):
        return error.failure
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    kind, why = _look_at(error)
    return Failure(kind, rank, attempt, step, node, type(error).__name__, why)


def _look_at(error: BaseException) -> tuple[Kind, str]:
    text = " ".join(str(error).split())
    if isinstance(error, WorkerHealthCheckTimeoutError):
        seconds = re.search(r"hanging for ([\d.]+)", text)
        return "lost", f"it did not answer for {float(seconds[1]):.0f} s" if seconds else "it did not answer"
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        # Its neighbours may be to blame, and then it passes: other than memory that a worker asks for in vain.
        return "lost", LOW_ON_MEMORY
    if not isinstance(error, RayActorError):
        return classify_error(error), text[:300]
    if error.preempted:
        return "preempted", "its node was taken back"
    if isinstance(error, ActorUnavailableError):
        return "lost", "it cannot be reached: its process or its node is gone, or the network between is cut"
    if "node has died" in text or "node was terminated" in text:
        return "lost", "its node died"
    if "worker process has died" in text or "connection error code" in text:
        return "lost", "its process died: it was killed or it crashed"
    return "lost", text[:200]


def decide(failures: Sequence[Failure], history: Sequence[Failure], max_failures: int) -> Decision:
    """Whether the workers are to be started again.

    Args:
        failures: of this attempt, one for each rank that failed; at least one.
        history: why each earlier attempt since the start of the run failed, oldest first.
        max_failures: how often they may be started again.
    """
    cause = min(failures, key=lambda f: (_RANKING.index(f.kind), f.rank))
    said = describe_failure(cause)
    counted = [f for f in history if f.kind != "preempted"]
    if cause.kind in _FINAL:
        return Decision("stop", cause, said)
    if cause.kind == "preempted":
        return Decision("retry", cause, said)
    if cause.kind == "memory" and any(f.kind == "memory" for f in counted):
        return Decision("stop", cause, f"{said}; so it did before")
    if cause.kind == "bug" and counted and is_same(cause, counted[-1]):
        return Decision("stop", cause, f"{said}; attempt {counted[-1].attempt} ended in the same way")
    if len(counted) >= max_failures:
        return Decision("stop", cause, f"{said}; workers failed more than {max_failures} time(s)")
    return Decision("retry", cause, said)


def is_same(one: Failure, other: Failure) -> bool:
    """The same error after the same step, whatever addresses and numbers its text has."""
    return _sign(one) == _sign(other)


def _sign(failure: Failure) -> tuple[str, str, int, str]:
    return failure.kind, failure.error, failure.step, re.sub(r"0x[0-9a-fA-F]+|\d+", "#", failure.why)


def build_error(
    decision: Decision,
    errors: Mapping[int, BaseException],
    history: Sequence[Failure],
    max_failures: int,
    run_dir: Path,
) -> UserError:
    """The error that ends the run: the worker's own words where it has any for a person."""
    cause = decision.cause
    if (own := find_user_error(errors.get(cause.rank))) is not None:
        return own
    resume = f"sftray resume {spell(run_dir)}"
    if cause.kind == "memory":
        return ClusterError(
            Problem(
                f"rank {cause.rank} ran out of memory after step {cause.step} (node {cause.node}{_again(history)})",
                where=str(run_dir / cause.file) if cause.file else None,
                why=cause.why,
                fix=f"train.micro_batch_size: smaller, which changes nothing of what is learned; then {resume}",
            )
        )
    if cause.kind == "bug":
        return BugError(_describe_bug(cause, history, max_failures, run_dir))
    return ClusterError(
        Problem(
            f"workers were lost more than {max_failures} time(s); the last was rank {cause.rank}, after step "
            f"{cause.step}, on node {cause.node}",
            where=str(run_dir / cause.file) if cause.file else None,
            why=cause.why,
            fix=f"mend the cause (often memory: a smaller train.micro_batch_size), then {resume}",
        )
    )


def _again(history: Sequence[Failure]) -> str:
    before = [f.attempt for f in history if f.kind == "memory"]
    return f"; attempt {before[-1]} too" if before else ""


def _describe_bug(cause: Failure, history: Sequence[Failure], max_failures: int, run_dir: Path) -> Problem:
    what = f"rank {cause.rank} failed after step {cause.step} on node {cause.node}: {cause.error}: {cause.why}"
    before = next((f for f in reversed(history) if f.kind != "preempted"), None)
    if before is not None and is_same(cause, before):
        why = f"attempts {before.attempt} and {cause.attempt} ended alike: a mistake in sftray or in the model"
    else:
        why = f"a mistake in sftray or in the model; workers may be started again {max_failures} time(s)"
    file = str(run_dir / cause.file) if cause.file else None
    return Problem(what, where=file, why=why, fix="report it with that file, after a look for anything private in it")
