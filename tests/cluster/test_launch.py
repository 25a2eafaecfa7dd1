"""What is found inside Ray's wrappers of an error, and what is said of a lost worker. No cluster."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from sftray.cluster.launch import StopOnUserError, _explain, find_user_error
from sftray.train_fn.errors import ClusterError, ConfigError, DivergedError, Problem, UserError

MINE = ConfigError(Problem("wrong", "run.yaml:3", "because", "mend it"))


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


WRAPPED = {
    "itself": MINE,
    "as a worker sends it": UserExceptionWithTraceback(MINE, "Traceback …"),
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


@pytest.mark.parametrize("error", [None, RuntimeError("bug"), ControllerError(ValueError("bug"))])
def test_where_there_is_none_none_is_found(error: BaseException | None) -> None:
    assert find_user_error(error) is None


def test_a_circle_of_causes_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert find_user_error(one) is None


def test_a_worker_that_says_what_is_wrong_ends_the_run_at_once() -> None:
    callback = StopOnUserError()
    with pytest.raises(ConfigError) as caught:
        callback.after_exception(None, {0: ActorDiedError(), 1: UserExceptionWithTraceback(MINE, "Traceback …")})
    assert caught.value.problems == MINE.problems
    callback.after_exception(None, {0: ActorDiedError(), 1: RuntimeError("bug")})  # these are for Ray's own policy


def killed() -> Exception:
    """What is said of a worker whose process is gone."""
    error: Exception = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    return error


def lose(*failures: Exception, allowed: int = 3) -> UserError | TrainingFailedError:
    return _explain(WorkerGroupError("Worker failures", dict(enumerate(failures))), allowed)


@pytest.mark.parametrize(
    ("failures", "rank", "why"),
    [
        ([killed()], 0, "actor died"),
        ([ActorDiedError()], 0, "actor died"),
        ([WorkerHealthCheckTimeoutError("no answer for 600 s")], 0, "no answer for 600 s"),
        # The survivors' collectives fail with it, and that is nobody's mistake.
        ([RuntimeError("Connection closed by peer"), killed(), killed()], 1, "actor died"),
        ([killed(), KeyError("late")], 0, "actor died"),
    ],
)
def test_a_lost_worker_is_a_cluster_error_that_says_which(failures: list[Exception], rank: int, why: str) -> None:
    said = lose(*failures)
    assert isinstance(said, ClusterError) and said.exit_code == 5
    (problem,) = said.problems
    assert problem.what == f"workers were lost more than 3 time(s); the last was rank {rank}"
    assert why in str(problem.why) and "\n" not in str(problem.why)
    assert "sftray resume" in str(problem.fix)


def test_what_a_worker_said_goes_before_the_loss_of_another() -> None:
    diverged = DivergedError(Problem("diverged"))
    assert lose(killed(), RuntimeError("Connection closed"), diverged) is diverged


def test_workers_that_never_start_are_a_cluster_error() -> None:
    for failure in (WorkerGroupStartupTimeoutError(4), WorkerGroupStartupFailedError("a node died")):
        said = _explain(ControllerError(failure), 3)
        assert isinstance(said, ClusterError)
        assert "the workers did not start, though that was tried 4 times" in str(said)


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("bug", {0: ZeroDivisionError("bug")}),
        WorkerGroupError("bug", {0: WorkerHealthCheckFailedError("cannot be pickled", TypeError("bug"))}),
        ControllerError(ZeroDivisionError("bug")),
    ],
)
def test_a_bug_stays_what_it_is(error: TrainingFailedError) -> None:
    assert _explain(error, 3) is error
