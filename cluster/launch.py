"""Running the worker function on the workers of a cluster."""

from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from sftray.cluster.resources import Placement
from sftray.train_fn.errors import ClusterError, Problem, UserError
from sftray.train_fn.worker import train_worker

# A collective that takes longer than this has lost a partner.
_COLLECTIVE_TIMEOUT_S = 120
# Starting workers and forming the process group may fail by itself (a port, a slow node): so often it is tried.
_CONTROLLER_RETRIES = 3


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
        if isinstance(exception, UserError):
            return exception
        inner = getattr(exception, "controller_failure", None) or getattr(exception, "_base_exc", None)
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
    if isinstance(error, WorkerGroupError):
        for _, failure in sorted(error.worker_failures.items()):
            if (cause := find_user_error(failure)) is not None:
                return cause
            if not _is_lost(failure):
                return error
        return ClusterError(_describe_lost(error.worker_failures, max_failures))
    return error


def _is_lost(failure: BaseException) -> bool:
    """The process or its node died, which is nobody's code."""
    from ray.exceptions import RayActorError

    return isinstance(failure, RayActorError)


def _describe_lost(failures: dict[int, Exception], max_failures: int) -> Problem:
    rank, failure = min(failures.items())
    return Problem(
        f"workers were lost more than {max_failures} time(s); the last was rank {rank}",
        why=" ".join(str(failure).split())[:300] or type(failure).__name__,
        fix="mend the cause (often memory: a smaller train.micro_batch_size), then sftray resume the run",
    )
