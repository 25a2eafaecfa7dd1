"""Running the worker function on the workers of a cluster."""

import gc
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from sftray.cluster.connection import apply_settings
from sftray.cluster.failure_callback import FailureCallback
from sftray.cluster.failures import find_setup_failure, find_user_error
from sftray.cluster.resources import Placement
from sftray.train_fn.errors import ClusterError, Problem, UserError
from sftray.train_fn.journal import Journal

# A collective that takes longer than this has lost a partner.
_COLLECTIVE_TIMEOUT_S = 120
# Starting workers and forming the process group may fail by itself (a port, a slow node): so often it is tried again.
_CONTROLLER_RETRIES = 3

_NOT_STARTED = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


def run_workers(job: dict[str, Any], placement: Placement, max_failures: int) -> dict[str, Any]:
    """Run `train_worker(job)` on the workers of `placement`, and start them again when one is lost.

    A new attempt takes the newest whole checkpoint that it finds in the store.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: what a worker said; ClusterError when workers were lost more often than allowed, BugError when
            they failed in the same way twice.
    """
    from sftray.train_fn.worker import (
        train_worker,
    )  # not above: Ray's controller, which has no use for it, comes here

    run_dir = Path(job["run_dir"])
    return run_function(train_worker, job, run_dir, placement, FailureCallback(run_dir, max_failures))


def run_function(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    argument: dict[str, Any],
    folder: Path,
    placement: Placement,
    failures: FailureCallback,
) -> dict[str, Any]:
    """Run `function(argument)` on the workers of `placement`, as `run_workers` does.

    Args:
        folder: where Ray keeps a state of its own, which is never read back, and below which it takes checkpoints.
        failures: decides whether workers that failed are started again.
    """
    apply_settings()
    for tries_left in reversed(range(_CONTROLLER_RETRIES + 1)):
        try:
            result = _fit(function, argument, folder, placement, failures)
            break
        except TrainingFailedError as error:
            if not (tries_left and find_setup_failure(error) is not None):
                raise _explain(error) from error
            _note_setup_failure(folder, error)
            # Ray leaves the workers and their resources to its controller, which ends when nothing refers to it any
            # more; and the error refers to it, in a circle of its own traceback.
            error.__traceback__ = None
            del error
            gc.collect()
        except RayActorError as error:  # the controller itself, which Ray does not wrap
            raise ClusterError(
                Problem(
                    "the process that directs the workers was lost",
                    why=str(error).strip().splitlines()[0][:300],
                    fix=f"sftray resume {folder}",
                )
            ) from error
    returned: dict[str, Any] = result.return_value
    return returned


def _fit(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    argument: dict[str, Any],
    folder: Path,
    placement: Placement,
    failures: FailureCallback,
) -> Result:
    trainer = TorchTrainer(
        function,
        train_loop_config=argument,
        torch_config=TorchConfig(backend="nccl" if placement.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.to_resources(),
        ),
        run_config=RunConfig(
            name=folder.name,  # Ray registers checkpoints only below storage_path/name: the run's directory
            storage_path=str(folder.parent),
            failure_config=FailureConfig(
                max_failures=failures.max_failures, controller_failure_limit=_CONTROLLER_RETRIES
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # the run itself deletes what is spare
            callbacks=[failures],
        ),
    )
    _remove_ray_state(folder)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own, which holds the controller
        _remove_ray_state(folder)


def _remove_ray_state(run_dir: Path) -> None:
    """Ray would silently go on from what stands here, and fails for good where it is torn."""
    for name in ("checkpoint_manager_snapshot.json", ".validate_storage_marker"):
        (run_dir / name).unlink(missing_ok=True)


def _note_setup_failure(run_dir: Path, error: TrainingFailedError) -> None:
    """Ray does not try again by itself where the workers cannot reach each other, which may pass."""
    journal = Journal(run_dir)
    why = f"the workers did not reach each other, which is tried again: {find_setup_failure(error)}"
    journal.add_event("not_joined", journal.count_attempts(), why)


def _explain(error: TrainingFailedError) -> UserError | TrainingFailedError:
    """The error to show: what the failure callback raised; Ray's own error where it is a bug."""
    if (cause := find_user_error(error)) is not None:
        return cause
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, _NOT_STARTED):
        return ClusterError(_describe_not_started(error.controller_failure))
    if (said := find_setup_failure(error)) is not None:
        return ClusterError(
            Problem(
                f"the workers did not reach each other, though that was tried {_CONTROLLER_RETRIES + 1} times",
                why=said,
                fix="see that the nodes reach each other on all ports (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME name "
                "the network to use), then resume",
            )
        )
    return error


def _describe_not_started(failure: Exception) -> Problem:
    return Problem(
        f"the workers did not start, though that was tried {_CONTROLLER_RETRIES + 1} times",
        why=_say(failure),
        fix="see that nothing else holds its CPUs and GPUs and that its nodes reach each other, then resume",
    )


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
