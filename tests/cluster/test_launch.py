"""What is shown of the error that ended Ray Train. No cluster."""

from pathlib import Path

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from sftray.cluster.launch import _explain
from sftray.train_fn.errors import ClusterError, DivergedError, Problem


def test_what_the_failure_callback_raised_is_shown_as_it_is() -> None:
    diverged = DivergedError(Problem("diverged"))
    assert _explain(ControllerError(diverged), Path("mine")) is diverged


def test_workers_that_never_start_are_a_cluster_error() -> None:
    for failure in (WorkerGroupStartupTimeoutError(4), WorkerGroupStartupFailedError("a node died")):
        said = _explain(ControllerError(failure), Path("mine"))
        assert isinstance(said, ClusterError)
        assert "the workers did not start, though that was tried 4 times" in str(said)


@pytest.mark.parametrize(
    "error", [WorkerGroupError("bug", {0: ZeroDivisionError("bug")}), ControllerError(ZeroDivisionError("bug"))]
)
def test_a_bug_of_the_controller_stays_what_it_is(error: TrainingFailedError) -> None:
    assert _explain(error, Path("mine")) is error
