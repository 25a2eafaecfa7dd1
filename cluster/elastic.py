"""Making Ray Train's elastic policy see at once that a node is gone.

By itself it plans with a list of nodes that is renewed every 20 s, and so tries for a minute to start workers on one
that is dead. All of this only saves time: without it the policy finds out later.
"""

import contextlib
import os
import threading
from collections.abc import Mapping

import ray
from ray.exceptions import ActorUnavailableError

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = "10"  # an elastic group is started where there is room now; Ray's own is 60
_NOTICE_S = 20.0  # a dead node is known as such after this at the latest
_LOOK_S = 0.25


def settle_nodes(exceptions: Mapping[int, BaseException]) -> None:
    """Return once it is known which nodes are left, and have the plan for the next workers made from these.

    Args:
        exceptions: how the workers failed. One that cannot be reached may be on a node that is gone.
    """
    os.environ.setdefault(_START_TIMEOUT, _START_TIMEOUT_S)
    if any(_is_unreachable(error) for error in exceptions.values()):
        before, never = count_nodes(), threading.Event()
        for _ in range(int(_NOTICE_S / _LOOK_S)):
            if count_nodes() < before:
                break
            never.wait(_LOOK_S)
    with contextlib.suppress(Exception):  # Ray's own, and not public: where it has changed the plan comes later
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("sftray", recompute=True), timeout=5)


def count_nodes() -> int:
    """Nodes that the cluster holds for alive."""
    return sum(1 for node in ray.nodes() if node["Alive"])


def _is_unreachable(error: BaseException | None) -> bool:
    """Ray wraps the error of a worker that does not answer its health check."""
    return isinstance(error, ActorUnavailableError) or isinstance(
        getattr(error, "health_check_failure", None), ActorUnavailableError
    )
