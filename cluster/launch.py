"""Running the worker function on the workers of a cluster."""

from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from sftray.cluster.resources import Placement
from sftray.train_fn.errors import ClusterError, Problem, UserError
from sftray.train_fn.worker import train_worker

# A collective that takes longer than this has lost a partner.
_COLLECTIVE_TIMEOUT_S = 120
# Starting workers and forming the process group may fail by itself (a port, a slow node): so often it is tried.
_CONTROLLER_RETRIES = 3

# Where Ray keeps the error that it wraps.
_INNER = ("controller_failure", "_base_exc", "cause")
_NOT_STARTED = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


class StopOnUserError(UserCallback):  # type: ignore[misc]  # Ray has no annotations here
    """Ends the run at once where a worker says what is wrong: trying again would only say it again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for exception in worker_exceptions.values():
            if (cause := find_user_error(exception)) is not None:
                raise cause


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


def run_workers(job: dict[str, Any], placement: Placement, max_failures: int) -> dict[str, Any]:
    """Run `train_worker(job)` on the workers of `placement`, and start them again when one is lost.

    Ray keeps a state of its own in the run's directory, which is never read back: a new attempt takes the
    newest whole checkpoint it finds in the store.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: what a worker said, or ClusterError when workers were lost more often than allowed.
    """
    run_dir = Path(job["run_dir"])
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if placement.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.to_resources(),
        ),
        run_config=RunConfig(
            name=run_dir.name,  # Ray registers checkpoints only below storage_path/name: the run's directory
            storage_path=str(run_dir.parent),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=_CONTROLLER_RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # the run itself deletes what is spare
            callbacks=[StopOnUserError()],
        ),
    )
    _remove_ray_state(run_dir)
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _explain(error, max_failures) from error
    except RayActorError as error:  # the controller itself, which Ray does not wrap
        raise ClusterError(
            Problem(
                "the process that directs the workers was lost",
                why=str(error).strip().splitlines()[0][:300],
                fix=f"sftray resume {run_dir}",
            )
        ) from error
    finally:
        _remove_ray_state(run_dir)
    returned: dict[str, Any] = result.return_value
    return returned


def _remove_ray_state(run_dir: Path) -> None:
    """Ray would silently go on from what stands here, and fails for good where it is torn."""
    for name in ("checkpoint_manager_snapshot.json", ".validate_storage_marker"):
        (run_dir / name).unlink(missing_ok=True)


def _explain(error: TrainingFailedError, max_failures: int) -> UserError | TrainingFailedError:
    """The error to show: a worker's own words, or which worker was lost; Ray's error where it is a bug."""
    if (cause := find_user_error(error)) is not None:
        return cause
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, _NOT_STARTED):
        return ClusterError(_describe_not_started(error.controller_failure))
    if not isinstance(error, WorkerGroupError):
        return error
    failures = sorted(error.worker_failures.items())
    for _, failure in failures:
        if (cause := find_user_error(failure)) is not None:
            return cause
    # Where one is lost, the others fail too: their collectives have no partner.
    lost = {rank: failure for rank, failure in failures if _is_lost(failure)}
    return ClusterError(_describe_lost(lost, max_failures)) if lost else error


def _is_lost(failure: BaseException) -> bool:
    """The process or its node died or froze, which is nobody's code."""
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, RayActorError | WorkerHealthCheckTimeoutError)


def _describe_not_started(failure: Exception) -> Problem:
    return Problem(
        f"the workers did not start, though that was tried {_CONTROLLER_RETRIES + 1} times",
        why=_say(failure),
        fix="see that nothing else holds its CPUs and GPUs and that its nodes reach each other, then resume",
    )


def _describe_lost(failures: dict[int, Exception], max_failures: int) -> Problem:
    rank, failure = min(failures.items())
    return Problem(
        f"workers were lost more than {max_failures} time(s); the last was rank {rank}",
        why=_say(failure),
        fix="mend the cause (often memory: a smaller train.micro_batch_size), then sftray resume the run",
    )


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
