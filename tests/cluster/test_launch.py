"""What is found inside Ray's wrappers of an error, and what is said of a lost worker. No cluster."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from sftray.cluster.launch import StopOnUserError, _explain, find_user_error
from sftray.train_fn.errors import ClusterError, ConfigError, DivergedError, Problem

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
    "a cause within": ControllerError(caused_by(RuntimeError("outer"), UserExceptionWithTraceback(MINE, "…"))),  # type: ignore[arg-type]  # it is one
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_the_error_for_a_person_is_found_inside_rays(wrapped: BaseException) -> None:
    found = find_user_error(wrapped)
    assert isinstance(found, ConfigError) and found.problems == MINE.problems
    sent = find_user_error(pickle.loads(pickle.dumps(wrapped)))  # from the controller's process to the driver's
    assert "a cause" in str(wrapped) or sent is None or sent.problems == MINE.problems


def test_the_error_of_a_task_is_found_as_ray_raises_it() -> None:
    task_error = RayTaskError("train_worker", "Traceback …", MINE).as_instanceof_cause()
    assert find_user_error(task_error) is not None


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


def test_a_lost_worker_is_a_cluster_error_that_says_which_and_how_to_go_on() -> None:
    said = _explain(WorkerGroupError("lost", {2: ActorDiedError(), 1: ActorDiedError()}), 3)
    assert isinstance(said, ClusterError) and said.exit_code == 5
    (problem,) = said.problems
    assert problem.what == "workers were lost more than 3 time(s); the last was rank 1"
    assert "actor died" in str(problem.why) and "\n" not in str(problem.why)
    assert "sftray resume" in str(problem.fix)


def test_what_a_worker_said_goes_before_the_loss_of_another() -> None:
    diverged = DivergedError(Problem("diverged"))
    said = _explain(WorkerGroupError("x", {0: ActorDiedError(), 1: UserExceptionWithTraceback(diverged, "…")}), 3)
    assert isinstance(said, DivergedError)


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("bug", {0: UserExceptionWithTraceback(ZeroDivisionError("bug"), "Traceback …")}),
        ControllerError(ZeroDivisionError("bug")),
        WorkerGroupError("both", {0: ActorDiedError(), 1: UserExceptionWithTraceback(KeyError("bug"), "…")}),
    ],
)
def test_a_bug_stays_what_it_is(error: TrainingFailedError) -> None:
    assert _explain(error, 3) is error


def test_a_worker_that_no_longer_answers_is_lost() -> None:
    said = _explain(WorkerGroupError("frozen", {0: WorkerHealthCheckTimeoutError("no answer for 60 s")}), 0)
    assert isinstance(said, ClusterError)
