"""Running the worker function on the workers of a cluster."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from sftray.cluster.connection import apply_settings
from sftray.cluster.failure_callback import FailureCallback
from sftray.cluster.failures import find_user_error
from sftray.cluster.joining import JoiningConfig
from sftray.cluster.resources import Placement
from sftray.cluster.shortage import START_RETRIES, apply_patience
from sftray.train_fn.errors import ClusterError, Problem, UserError
from sftray.train_fn.places import as_path, name_storage, spell

# A collective that takes longer than this has lost a partner.
_COLLECTIVE_TIMEOUT_S = 120

_NOT_STARTED = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray has no annotations here
    """Without the actor that hands out datasets of Ray Data: a run has none, and each start of its workers would wait
    for a process more that imports for seconds."""

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's own, and not public: where it has changed, the actor is started in vain.
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "DatasetsCallback"]


def run_workers(job: dict[str, Any], placement: Placement, max_failures: int) -> dict[str, Any]:
    """Run `train_worker(job)` on the workers of `placement`, and start them again when one is lost.

    A new attempt takes the newest whole checkpoint that it finds in the store.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: what a worker said; ClusterError when workers were lost more often than allowed, BugError when
            they failed in the same way twice.
    """
    # Not above: Ray's controller, which has no use for it, imports this module.
    from sftray.train_fn.worker import train_worker

    run_dir = as_path(job["run_dir"])
    failures = FailureCallback(run_dir, max_failures, placement)
    return run_function(train_worker, job, run_dir, placement, failures)


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
    apply_patience(placement)
    trainer = _Trainer(
        function,
        train_loop_config=argument,
        torch_config=JoiningConfig(backend="nccl" if placement.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=_build_scaling(placement),
        run_config=_build_run(folder, failures),
    )
    _remove_ray_state(folder)
    try:
        returned: dict[str, Any] = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _explain(error, folder) from error
    except RayActorError as error:  # the controller itself, which Ray does not wrap
        raise ClusterError(_describe_lost_controller(error, folder)) from error
    finally:
        _remove_ray_state(folder)
    return returned


def _build_scaling(placement: Placement) -> ScalingConfig:
    return ScalingConfig(
        num_workers=placement.num_workers,
        use_gpu=placement.use_gpu,
        resources_per_worker=placement.to_resources(),
        placement_strategy=placement.strategy.upper(),
        label_selector=dict(placement.labels) or None,
    )


def _build_run(folder: Path, failures: FailureCallback) -> RunConfig:
    return RunConfig(
        name=folder.name,  # Ray registers checkpoints only below storage_path/name: the run's directory
        **name_storage(folder.parent),
        failure_config=FailureConfig(max_failures=failures.max_failures, controller_failure_limit=START_RETRIES),
        checkpoint_config=CheckpointConfig(num_to_keep=None),  # the run itself deletes what is spare
        callbacks=[failures],
    )


def _remove_ray_state(run_dir: Path) -> None:
    """Ray would silently go on from what stands here, and fails for good where it is torn."""
    for name in ("checkpoint_manager_snapshot.json", ".validate_storage_marker"):
        with contextlib.suppress(OSError):
            (run_dir / name).unlink(missing_ok=True)


def _explain(error: TrainingFailedError, run_dir: Path) -> UserError | TrainingFailedError:
    """The error to show: what the failure callback raised; Ray's own error where it is a bug."""
    if (cause := find_user_error(error)) is not None:
        return cause
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, _NOT_STARTED):
        return ClusterError(_describe_not_started(error.controller_failure))
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, OutOfMemoryError):
        return ClusterError(_describe_low_memory(run_dir))
    return error


def _describe_lost_controller(error: RayActorError, run_dir: Path) -> Problem:
    return Problem(
        "the process that directs the workers was lost",
        why=str(error).strip().splitlines()[0][:300],
        fix=f"sftray resume {spell(run_dir)}",
    )


def _describe_low_memory(run_dir: Path) -> Problem:
    """Where it happens in the short time in which Ray neither starts workers nor says goodbye to them."""
    return Problem(
        "a worker was lost while it started",
        why="Ray ended it, for its node was running low on memory",
        fix=f"fewer processes beside it, or a node with more memory; then sftray resume {spell(run_dir)}",
    )


def _describe_not_started(failure: Exception) -> Problem:
    return Problem(
        f"the workers did not start, though that was tried {START_RETRIES + 1} times",
        why=_say(failure),
        fix="see that nothing else holds its CPUs and GPUs, and that its nodes reach each other on all ports "
        "(GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use), then resume",
    )


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
