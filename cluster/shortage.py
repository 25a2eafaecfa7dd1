"""What is left of a cluster that has lost a node: whether the workers of a run still fit, and what to say if not."""

import os
from collections.abc import Sequence

from sftray.cluster.resources import Node, Placement

# Starting workers and forming the process group may fail by itself (a port, a slow node, a node too few): so often it
# is tried again, and each time their resources are waited for.
START_RETRIES = 3
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = 60.0  # Ray's own


def apply_patience(placement: Placement) -> None:
    """Have Ray wait for the nodes of workers of a fixed number as long as the run waits for nodes, over all tries.

    It takes this from the environment of the process that starts the run. An elastic one is started where there is
    room now.
    """
    if isinstance(placement.num_workers, int):
        each = max(_START_TIMEOUT_S, placement.wait_s / (START_RETRIES + 1))
        os.environ.setdefault(_START_TIMEOUT, f"{each:g}")


def describe_shortage(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """Why workers of a fixed number cannot start on the nodes that live, and how long that is waited for; None where
    they fit, and of an elastic run, which goes on with fewer."""
    if not isinstance(placement.num_workers, int):
        return None
    fitting = placement.count_fitting(nodes)
    if fitting >= placement.num_workers:
        return None
    minutes = (START_RETRIES + 1) * float(os.environ.get(_START_TIMEOUT, _START_TIMEOUT_S)) / 60
    return (
        f"the nodes that are left hold {fitting} of {placement.num_workers} workers "
        f"({placement.describe_worker()} each); another node is waited for, up to {minutes:.0f} min"
    )
