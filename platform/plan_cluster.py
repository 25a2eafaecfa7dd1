"""What of a plan the cluster decides: which workers fit where, and what would wait for nodes that are to come."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sftray.cluster.connection import has_cluster, look_around
from sftray.cluster.resources import Node, Placement, choose_placement, place_workers, plan_layout
from sftray.cluster.room import count_wait_minutes
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError


@dataclass(frozen=True)
class ClusterPlan:
    """Where the workers would be, as if nothing else ran on the nodes: `layout` has their number on each.

    `shortage` says why they are refused: no cluster answers, or they do not fit and nothing is waited for.
    """

    nodes: list[Node]
    has_autoscaler: bool
    placement: Placement | None = None
    layout: tuple[int, ...] = ()
    wait_minutes: float = 0.0
    shortage: ClusterError | None = None

    @property
    def fits(self) -> bool:
        return self.placement is not None and sum(self.layout) >= count_least(self.placement)

    @property
    def side_by_side(self) -> int:
        """Trials of a sweep that would run at a time."""
        return self.placement.count_side_by_side(self.nodes) if self.placement else 0

    def to_json(self) -> dict[str, Any]:
        if self.placement is None:
            return {"nodes": []}
        layout = [
            {"node": node.name, "cpus": node.cpus, "gpus": node.gpus, "workers": count}
            for node, count in zip(self.nodes, self.layout, strict=True)
        ]
        return {
            "placement": self.placement.strategy,
            "use_gpu": self.placement.use_gpu,
            "per_worker": self.placement.to_resources(),
            "node_labels": dict(self.placement.labels),
            "nodes": layout,
            "missing_workers": max(count_least(self.placement) - sum(self.layout), 0),
            "has_autoscaler": self.has_autoscaler,
            "wait_minutes": self.wait_minutes,
            "trials_side_by_side": self.side_by_side,
        }


def count_least(placement: Placement) -> int:
    """The workers without which nothing starts."""
    return placement.num_workers if isinstance(placement.num_workers, int) else placement.num_workers[0]


def plan_cluster(scaling: ScalingConfig) -> ClusterPlan:
    """Look at the cluster that RAY_ADDRESS names, or at this machine; nothing is started."""
    try:
        nodes, has_autoscaler = look_around()
    except ClusterError as error:
        return ClusterPlan([], False, shortage=error)
    placement = choose_placement(scaling, nodes)
    layout = tuple(plan_layout(placement, nodes))
    wait_minutes = count_wait_minutes(scaling, has_autoscaler) if has_cluster() else 0.0
    shortage = None
    try:
        place_workers(scaling, nodes)
    except ClusterError as error:
        shortage = None if wait_minutes else error
    return ClusterPlan(nodes, has_autoscaler, placement, layout, wait_minutes, shortage)


def describe_cluster(plan: ClusterPlan) -> list[str]:
    """Lines for a person."""
    if plan.placement is None or plan.shortage is not None:
        return ["cluster: the workers do not fit"]
    lines = [_describe_fit(plan, plan.placement)]
    if sum(plan.layout):
        lines.append(f"  where ({plan.placement.strategy}, if nothing else runs there): {describe_layout(plan)}")
    if plan.has_autoscaler:
        lines.append("  an autoscaler adds nodes; how many there may be, Ray does not say")
    if plan.fits:
        lines.append(f"  trials of a sweep: {plan.side_by_side} side by side")
    return lines


def _describe_fit(plan: ClusterPlan, placement: Placement) -> str:
    kind = "GPU" if placement.use_gpu else "CPU"
    if plan.fits:
        return f"cluster: {placement.num_workers} worker(s) on {kind} fit"
    least = count_least(placement)
    return (
        f"cluster: {sum(plan.layout)} of {least} worker(s) on {kind} fit ({placement.describe_worker()} each); "
        f"nodes for {least - sum(plan.layout)} would be waited for, up to {plan.wait_minutes:g} min"
    )


def describe_layout(plan: ClusterPlan) -> str:
    """'2 on left, 1 on right'; nodes of one name and as many workers are told together."""
    used = Counter((count, node.name) for node, count in zip(plan.nodes, plan.layout, strict=True) if count)
    return ", ".join(
        f"{count} on {f'each of {times} nodes named ' if times > 1 else ''}{name}"
        for (count, name), times in used.items()
    )


def list_problems(plan: ClusterPlan) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in plan.shortage.problems] if plan.shortage else []
