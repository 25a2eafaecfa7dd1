"""What is left of a cluster that has lost a node: whether the workers of a run still fit, and what to say if not."""

import os
from collections.abc import Sequence

from sftray.cluster.resources import Node, Placement

# Starting workers and forming the process group may fail by itself (a port, a slow node, a node too few): so often it
# is tried again, and each time their resources are waited for.
START_RETRIES = 3
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = 60.0  # Ray's own


def describe_shortage(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """Why workers of a fixed number cannot start on the nodes that live, and how long that is waited for; None where
    they fit, and of an elastic run, which goes on with fewer."""
    if not isinstance(placement.num_workers, int):
        return None
    fitting = sum(node.count_workers(placement.cpus_per_worker, placement.use_gpu) for node in nodes)
    if fitting >= placement.num_workers:
        return None
    each = f"{placement.cpus_per_worker} CPU" + (" and 1 GPU" if placement.use_gpu else "")
    minutes = (START_RETRIES + 1) * float(os.environ.get(_START_TIMEOUT, _START_TIMEOUT_S)) / 60
    return (
        f"the nodes that are left hold {fitting} of {placement.num_workers} workers ({each} each); "
        f"another node is waited for, up to {minutes:.0f} min"
    )
