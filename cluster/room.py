"""Waiting for room: what to do where the workers do not fit on the nodes that are there now.

A cluster with an autoscaler is asked for nodes by a placement group, which it reads as demand. The group goes when
its driver does, and is given back before the workers are started.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from sftray.cluster.resources import Placement, choose_placement, look_at_cluster, place_workers
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError

WAIT_MINUTES = 15.0  # of a cluster with an autoscaler, unless scaling.wait_minutes says it
_LOOK_S = 0.5
_STATUS = "__autoscaling_status"  # where Ray's autoscaler, and so `ray status`, keeps what it is at


def find_room(
    scaling: ScalingConfig, tell: Callable[[str], None], check: Callable[[], None]
) -> tuple[Placement, int]:
    """The placement of the workers on the connected cluster, and its number of nodes; where they do not fit, more are
    waited for, and `check` is called meanwhile.

    Raises:
        ClusterError: they do not fit, and no node came in the time that one is waited for.
    """
    wait_s = 60 * count_wait_minutes(scaling, has_autoscaler())
    try:
        return _place(scaling, wait_s)
    except ClusterError as shortage:
        if not wait_s:
            raise
        tell(f"waiting for nodes, up to {wait_s / 60:g} min: {shortage.problems[0].what}")
        return _wait_for_room(scaling, wait_s, shortage, check)


def count_wait_minutes(scaling: ScalingConfig, has_autoscaler: bool) -> float:
    """How long nodes are waited for: `scaling.wait_minutes`, else by whether the cluster has an autoscaler."""
    if scaling.wait_minutes is not None:
        return scaling.wait_minutes
    return WAIT_MINUTES if has_autoscaler else 0.0


def has_autoscaler() -> bool:
    """Whether something adds nodes to the connected cluster. What Ray does not say counts as no.

    Ray has no public word for it: this is what `ray status` reads. A cluster without an autoscaler has a status too,
    in which the type of each node is its own number. How many nodes there may be is not in it.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    with contextlib.suppress(Exception):  # not public: where it has changed, nothing is known
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        if is_autoscaler_v2(fetch_from_server=True):  # it runs only where somebody has set it up
            return True
        report = json.loads(_internal_kv_get(_STATUS) or b"{}").get("autoscaler_report") or {}
        types = report.get("node_type_mapping") or {}
        return any(not kind.startswith("node_") for kind in types.values())
    return False


def _place(scaling: ScalingConfig, wait_s: float) -> tuple[Placement, int]:
    nodes = look_at_cluster()
    return replace(place_workers(scaling, nodes), wait_s=wait_s), len(nodes)


def _wait_for_room(
    scaling: ScalingConfig, wait_s: float, shortage: ClusterError, check: Callable[[], None]
) -> tuple[Placement, int]:
    deadline, never = time.monotonic() + wait_s, threading.Event()
    with _demand(choose_placement(scaling, look_at_cluster()), scaling.min_workers):
        while time.monotonic() < deadline:
            never.wait(_LOOK_S)
            check()
            with contextlib.suppress(ClusterError):
                return _place(scaling, wait_s)
    problem = shortage.problems[0]
    raise ClusterError(replace(problem, why=f"{problem.why}; more nodes were waited for, {wait_s / 60:g} min"))


@contextlib.contextmanager
def _demand(placement: Placement, num_workers: int) -> Iterator[None]:
    """Ask the autoscaler for the room of so many workers for as long as this lasts."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(
        [placement.to_resources()] * num_workers,
        strategy=placement.strategy.upper(),
        bundle_label_selector=[dict(placement.labels)] * num_workers if placement.labels else None,
    )
    try:
        yield
    finally:
        remove_placement_group(group)
