"""What follows from a failure, decided by tables. No cluster."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError

from sftray.cluster.failures import build_error, decide, find_user_error, is_same, read_failure
from sftray.train_fn.errors import BugError, ClusterError, ConfigError, Problem, StoreError
from sftray.train_fn.failure import Failure, Kind, WorkerFailed

MINE = ConfigError(Problem("wrong", "run.yaml:3", "because", "mend it"))
RUN = Path("/runs/mine")


def fail(kind: Kind, rank: int = 0, attempt: int = 1, **more: Any) -> Failure:
    given: dict[str, Any] = {"step": 7, "node": "here", "error": "KeyError", "why": "'x'", **more}
    return Failure(kind, rank, attempt, **given)


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


WRAPPED = {
    "itself": MINE,
    "as a worker raises it": WorkerFailed(fail("user"), MINE),
    "as a worker sends it": UserExceptionWithTraceback(WorkerFailed(fail("user"), MINE), "Traceback …"),
    "as the controller sends it": ControllerError(MINE),
    "both": ControllerError(UserExceptionWithTraceback(MINE, "Traceback …")),
    "a cause": caused_by(RuntimeError("outer"), MINE),
    "a cause of a cause": caused_by(RuntimeError("outer"), caused_by(ValueError("inner"), MINE)),
    "a cause within": caused_by(RuntimeError("outer"), UserExceptionWithTraceback(MINE, "…")),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_the_error_for_a_person_is_found_inside_rays(wrapped: BaseException) -> None:
    found = find_user_error(wrapped)
    assert isinstance(found, ConfigError) and found.problems == MINE.problems
    if wrapped.__cause__ is None:  # a cause is not sent along
        sent = find_user_error(pickle.loads(pickle.dumps(wrapped)))  # from the controller's process to the driver's
        assert sent is not None and sent.problems == MINE.problems


def test_the_error_of_a_task_is_found_as_it_was() -> None:
    looks_alike = RayTaskError("train_worker", "Traceback …", MINE).as_instanceof_cause()
    assert isinstance(looks_alike, ConfigError)
    found = find_user_error(looks_alike)
    assert type(found) is ConfigError and found.problems == MINE.problems


@pytest.mark.parametrize(
    "error", [None, RuntimeError("bug"), ControllerError(ValueError("bug")), WorkerFailed(fail("bug"))]
)
def test_where_there_is_none_none_is_found(error: BaseException | None) -> None:
    assert find_user_error(error) is None


def test_a_circle_of_causes_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert find_user_error(one) is None


DIED = "The actor died unexpectedly before finishing this task.\n\tpid: 7\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"  # noqa: E501


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (WorkerFailed(fail("store", 1)), "store", "'x'"),
        (RayActorError(error_msg=DIED), "lost", "its process died: it was killed or it crashed"),
        (RayActorError(error_msg="The actor died because its node has died. Node Id: …"), "lost", "its node died"),
        (RayActorError(error_msg="gone", preempted=True), "preempted", "its node was taken back"),
        (ActorDiedError(), "lost", "The actor died unexpectedly before finishing this task."),
        (WorkerHealthCheckFailedError("A worker …", RayActorError(error_msg=DIED)), "lost", "its process died"),
        (
            WorkerHealthCheckTimeoutError("A worker health check has been hanging for 40.21 seconds. Marking"),
            "lost",
            "it did not answer for 40 s",
        ),
        (ActorUnavailableError("no answer", None), "lost", "it cannot be reached: its process or its node is gone"),
        (RayOutOfMemoryError("killed"), "lost", "Ray ended it, for its node was running low on memory: a smaller"),
        (WorkerHealthCheckFailedError("A worker …", RayOutOfMemoryError("killed")), "lost", "Ray ended it"),
        (
            RayActorError(error_msg="1 worker was killed due to the node running low on memory."),
            "lost",
            "Ray ended",
        ),
        (ZeroDivisionError("division\n by zero"), "bug", "division by zero"),
        (WorkerHealthCheckFailedError("cannot be pickled", TypeError("cannot pickle")), "bug", "cannot pickle"),
    ],
)
def test_what_ray_says_of_a_worker(error: BaseException, kind: str, why: str) -> None:
    failure = read_failure(1, error, attempt=2, step=7, node="here")
    assert (failure.kind, failure.rank) == (kind, 1)
    assert failure.why.startswith(why)


LOST, PARTNER, BUG = fail("lost", 1), fail("partner", 0), fail("bug", 1)
MEMORY, STORE, BACK = fail("memory"), fail("store"), fail("preempted")


def at(attempt: int, failure: Failure, **changes: Any) -> Failure:
    return replace(failure, attempt=attempt, **changes)


@pytest.mark.parametrize(
    ("failures", "history", "max_failures", "action", "cause", "words"),
    [
        # One failure, none before.
        ([fail("user")], [], 3, "stop", ("user", 0), "failed"),
        ([fail("diverged")], [], 3, "stop", ("diverged", 0), "diverged"),
        ([STORE], [], 3, "retry", ("store", 0), "could not use the store ('x'; node here, after step 7)"),
        ([LOST], [], 3, "retry", ("lost", 1), "rank 1 was lost"),
        ([fail("frozen")], [], 3, "retry", ("frozen", 0), "was frozen"),
        ([MEMORY], [], 3, "retry", ("memory", 0), "ran out of memory"),
        ([BUG], [], 3, "retry", ("bug", 1), "rank 1 failed (KeyError: 'x'; node here, after step 7)"),
        ([PARTNER], [], 3, "retry", ("partner", 0), "lost its connection"),
        # None may be tried again.
        ([LOST], [], 0, "stop", ("lost", 1), "more than 0 time(s)"),
        ([STORE], [], 0, "stop", ("store", 0), "more than 0 time(s)"),
        ([BACK], [], 0, "retry", ("preempted", 0), "was preempted"),
        # Up to max_failures; what was taken back does not count.
        ([at(4, LOST)], [at(1, LOST), at(2, STORE)], 3, "retry", ("lost", 1), "lost"),
        ([at(4, LOST)], [at(1, LOST), at(2, STORE), at(3, LOST)], 3, "stop", ("lost", 1), "more than 3 time(s)"),
        ([at(4, LOST)], [at(1, LOST), at(2, BACK), at(3, LOST)], 3, "retry", ("lost", 1), "lost"),
        # The same error after the same step, twice in a row.
        ([at(2, BUG)], [at(1, BUG)], 9, "stop", ("bug", 1), "attempt 1 ended in the same way"),
        ([at(3, BUG)], [at(1, BUG), at(2, BACK)], 9, "stop", ("bug", 1), "attempt 1 ended in the same way"),
        ([at(2, BUG, step=8)], [at(1, BUG)], 9, "retry", ("bug", 1), "failed"),
        ([at(2, BUG, error="IndexError")], [at(1, BUG)], 9, "retry", ("bug", 1), "failed"),
        ([at(3, BUG)], [at(1, BUG), at(2, LOST)], 9, "retry", ("bug", 1), "failed"),
        ([at(2, BUG, step=8)], [at(1, BUG)], 1, "stop", ("bug", 1), "more than 1 time(s)"),
        # Out of memory, again.
        ([at(2, MEMORY)], [at(1, MEMORY)], 9, "stop", ("memory", 0), "so it did before"),
        ([at(3, MEMORY)], [at(1, MEMORY), at(2, LOST)], 9, "stop", ("memory", 0), "so it did before"),
        # Which of several is the cause.
        ([PARTNER, LOST], [], 3, "retry", ("lost", 1), "lost"),
        ([PARTNER, BUG], [], 3, "retry", ("bug", 1), "KeyError"),
        ([fail("bug", 0), LOST], [], 3, "retry", ("lost", 1), "lost"),
        ([LOST, fail("frozen", 2)], [], 3, "retry", ("frozen", 2), "frozen"),
        ([LOST, fail("memory", 2)], [], 3, "retry", ("memory", 2), "memory"),
        ([LOST, PARTNER, fail("diverged", 2)], [], 3, "stop", ("diverged", 2), "diverged"),
        ([fail("bug", 3), fail("bug", 2)], [], 3, "retry", ("bug", 2), "rank 2"),
    ],
)
def test_the_cause_decides(
    failures: list[Failure],
    history: list[Failure],
    max_failures: int,
    action: str,
    cause: tuple[str, int],
    words: str,
) -> None:
    decision = decide(failures, history, max_failures)
    assert (decision.action, decision.cause.kind, decision.cause.rank) == (action, *cause)
    assert words in decision.why


def test_addresses_and_numbers_do_not_make_another_error() -> None:
    one, two = fail("bug", why="<T at 0x7f12> took 1.5 s"), fail("bug", why="<T at 0x7e99> took 12.25 s")
    assert is_same(one, two)
    assert not is_same(one, fail("bug", why="<U at 0x7f12> took 1.5 s"))


def end(cause: Failure, history: list[Failure], error: Exception, max_failures: int = 3) -> Any:
    decision = decide([cause], history, max_failures)
    assert decision.action == "stop"
    return build_error(decision, {cause.rank: error}, history, max_failures, RUN)


def test_a_worker_that_was_lost_too_often_is_a_cluster_error_that_says_which() -> None:
    cause = at(2, LOST, why="its node died")
    error = end(cause, [at(1, LOST)], ActorDiedError(), max_failures=1)
    assert type(error) is ClusterError
    (problem,) = error.problems
    assert problem.what == "workers were lost more than 1 time(s); the last was rank 1, after step 7, on node here"
    assert problem.why == "its node died" and "sftray resume /runs/mine" in problem.fix


def test_a_worker_out_of_memory_is_told_what_to_change() -> None:
    cause = at(2, MEMORY, file="crash-attempt-2-rank-0.txt")
    error = end(cause, [at(1, MEMORY)], WorkerFailed(cause))
    assert type(error) is ClusterError
    assert "rank 0 ran out of memory after step 7 (node here; attempt 1 too)" in str(error)
    assert "fix  train.micro_batch_size: smaller" in str(error)
    assert error.problems[0].where == "/runs/mine/crash-attempt-2-rank-0.txt"


def test_a_bug_says_both_attempts_and_where_the_traceback_is() -> None:
    cause = at(2, BUG, file="crash-attempt-2-rank-1.txt")
    error = end(cause, [at(1, BUG)], WorkerFailed(cause))
    assert type(error) is BugError and error.exit_code == 70
    (problem,) = error.problems
    assert problem.what == "rank 1 failed after step 7 on node here: KeyError: 'x'"
    assert problem.where == "/runs/mine/crash-attempt-2-rank-1.txt"
    assert problem.why.startswith("attempts 1 and 2 ended alike")


def test_a_worker_that_has_words_for_a_person_has_the_last_one() -> None:
    full = StoreError(Problem("the disk is full"))
    assert end(STORE, [], WorkerFailed(STORE, full), max_failures=0) is full
    assert end(fail("user"), [], WorkerFailed(fail("user"), MINE)) is MINE
