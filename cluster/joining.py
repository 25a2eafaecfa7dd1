"""How workers get ready together: the worker function's imports, and the process group.

Ray tries again where a worker dies before that, or where it waits for resources in vain. But it gives up at once
where the workers do not reach each other, and what dies in between keeps its resources until the job ends.
"""

import functools
import gc
import importlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from sftray.cluster.local import LOOPBACK

# The worker function, and what transformers would import later: when the model is built, and when it first answers.
_NEEDED = ("sftray.train_fn.worker", "transformers.modeling_utils", "transformers.generation.utils")


def import_worker() -> None:
    """Load what the worker function needs, which takes seconds: later Ray would give up where a worker dies of it.

    Imports make hundreds of thousands of objects that stay. Collecting garbage among them meanwhile takes a sixth of
    the time; and afterwards they need not be looked at again (`gc.freeze`).
    """
    gc.disable()
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
    keep_on_loopback()


def keep_on_loopback() -> None:
    """Have the store in which workers of one machine meet listen on the loopback alone.

    torch's listens at all addresses, and asks nobody for a token.
    """
    meeting: Any = importlib.import_module("torch.distributed.rendezvous")
    if not isinstance(meeting.TCPStore, functools.partial):  # else this process has been here before
        meeting.TCPStore = functools.partial(_build_store, meeting.TCPStore)


def _build_store(build: Callable[..., Any], *, host_name: str, port: int, is_master: bool, **more: Any) -> Any:
    if is_master and host_name == LOOPBACK:
        more["master_listen_fd"] = socket.create_server((host_name, port)).detach()
    return build(host_name=host_name, port=port, is_master=is_master, **more)


LOW_ON_MEMORY = "Ray ended it, for its node was running low on memory: a smaller train.micro_batch_size needs less"


class _Backend(_TorchBackend):  # type: ignore[misc]  # Ray has no annotations here
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Raises WorkerGroupStartupFailedError where that may pass by itself, which Ray then tries again."""
        try:
            worker_group.execute(import_worker)
            super().on_start(worker_group, backend_config)
        except Exception as error:
            worker_group._clear_state()  # it has not started, then: so Ray frees what it holds
            if may_pass(error):
                raise WorkerGroupStartupFailedError(describe_error(error)) from error
            raise

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Raises RayActorError, which Ray expects of workers that are gone, also for those that it ended for want of
        memory: its own error for these would end the run.
        """
        try:
            super().on_shutdown(worker_group, backend_config)
        except OutOfMemoryError as error:
            raise RayActorError(error_msg=LOW_ON_MEMORY) from error


@dataclass
class JoiningConfig(TorchConfig):  # type: ignore[misc]  # Ray has no annotations here
    """As TorchConfig; workers that fail while they get ready are tried again, and leave nothing behind."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def may_pass(error: Exception) -> bool:
    """A lost worker, also one that Ray ended for want of memory, or what torch.distributed says of a network or of a
    port; an import error does not pass.
    """
    return isinstance(error, RayActorError | OutOfMemoryError) or (
        isinstance(error, RayTaskError) and isinstance(error.cause, RuntimeError | OSError)
    )


def describe_error(error: Exception) -> str:
    if isinstance(error, OutOfMemoryError):
        return f"a worker was lost: {LOW_ON_MEMORY}"
    said = error.cause if isinstance(error, RayTaskError) else error
    return " ".join(str(said).split())[:300] or type(said).__name__
