"""Making Ray Train see at once that a node is gone, before it starts workers again.

By itself its elastic policy plans with a list of nodes that is renewed every 20 s, and so tries for a minute to start
workers on one that is dead. All of this only saves time: without it that is found out later.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = "10"  # an elastic group is started where there is room now; Ray's own is 60
_KNOCK_S = 1.0  # a node that takes no connection within this is not there
_NOTICE_S = 60.0  # by itself Ray knows after this at the latest that a node is cut off; that one is gone: after 10
_LOOK_S = 0.25


def settle_nodes() -> None:
    """Return once every node that the cluster holds for alive answers, at the latest after a while."""
    deadline, never = time.monotonic() + _NOTICE_S, threading.Event()
    while time.monotonic() < deadline and not all(_answers(node) for node in ray.nodes() if node["Alive"]):
        never.wait(_LOOK_S)


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_KNOCK_S).close()
    except OSError:
        return False
    return True


def renew_plan() -> None:
    """Have the plan for the next workers of an elastic run made from the nodes that are left."""
    os.environ.setdefault(_START_TIMEOUT, _START_TIMEOUT_S)
    with contextlib.suppress(Exception):  # Ray's own, and not public: where it has changed the plan comes later
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("sftray", recompute=True), timeout=5)
