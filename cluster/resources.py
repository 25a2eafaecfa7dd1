"""What a run needs of a cluster, what the cluster has, and whether the one fits the other."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError, Problem


@dataclass(frozen=True)
class Node:
    """What one node has to give: `resources` are those beside CPUs and GPUs, by Ray's names."""

    cpus: float
    gpus: float
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Placement:
    """How a run will be laid out: `num_workers` is [min, max] for an elastic one.

    Each worker takes `resources` beside its CPUs, and a node with all `labels`. `wait_s` is how long nodes are waited
    for that are not there yet; 0: no longer than Ray does by itself.
    """

    num_workers: int | tuple[int, int]
    use_gpu: bool
    cpus_per_worker: int
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    strategy: Literal["pack", "spread"] = "pack"
    wait_s: float = 0.0

    @property
    def is_elastic(self) -> bool:
        return not isinstance(self.num_workers, int)

    def to_resources(self) -> dict[str, float]:
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu, **self.resources}

    def count_on(self, node: Node) -> int:
        """How many such workers a node holds, as if nothing else ran there."""
        if any(node.labels.get(key) != value for key, value in self.labels.items()):
            return 0
        has = {"CPU": node.cpus, "GPU": node.gpus, **node.resources}
        return min(int(has.get(name, 0) / amount + 1e-6) for name, amount in self.to_resources().items())

    def count_fitting(self, nodes: Sequence[Node]) -> int:
        return sum(self.count_on(node) for node in nodes)

    def count_side_by_side(self, nodes: Sequence[Node]) -> int:
        """How many trials of so many workers fit, at least one."""
        most = self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
        return max(1, self.count_fitting(nodes) // most)

    def describe_worker(self) -> str:
        """What one takes: '2 CPU, 1 GPU and 1 fast, on a node with zone=a'."""
        amounts = [f"{amount:g} {name}" for name, amount in self.to_resources().items()]
        return join_words(amounts) + (f", on a node with {describe_labels(self.labels)}" if self.labels else "")


def join_words(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def describe_labels(labels: Mapping[str, str]) -> str:
    return " and ".join(f"{key}={value}" for key, value in labels.items())


def look_at_this_machine() -> list[Node]:
    """The one node of a cluster that would be started here."""
    import torch

    return [Node(cpus=len(os.sched_getaffinity(0)), gpus=torch.cuda.device_count(), name=platform.node())]


def look_at_cluster() -> list[Node]:
    """The living nodes of the connected cluster."""
    import ray

    return [
        Node(
            cpus=node["Resources"].get("CPU", 0),
            gpus=node["Resources"].get("GPU", 0),
            resources={name: amount for name, amount in node["Resources"].items() if name not in ("CPU", "GPU")},
            labels=node["Labels"],
            name=node["NodeManagerHostname"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def choose_placement(scaling: ScalingConfig, nodes: Sequence[Node]) -> Placement:
    """`use_gpu: auto` takes GPUs if the nodes have one for every worker."""
    on_gpu = Placement(
        scaling.num_workers,
        True,
        scaling.cpus_per_worker,
        scaling.resources_per_worker,
        scaling.node_labels,
        scaling.placement,
    )
    takes_gpu = on_gpu.count_fitting(nodes) >= scaling.min_workers if scaling.use_gpu == "auto" else scaling.use_gpu
    return replace(on_gpu, use_gpu=takes_gpu)


def place_workers(scaling: ScalingConfig, nodes: Sequence[Node]) -> Placement:
    """Decide on CPU or GPU, and refuse what can never fit.

    Raises:
        ClusterError: the nodes hold fewer workers than the run needs; it says the arithmetic.
    """
    placement = choose_placement(scaling, nodes)
    if placement.count_fitting(nodes) < scaling.min_workers:
        raise ClusterError(_describe_shortage(scaling.min_workers, placement, nodes))
    return placement


def plan_layout(placement: Placement, nodes: Sequence[Node]) -> list[int]:
    """How many workers each node gets where nothing else runs: packed onto as few nodes as hold them, or one here and
    one there. Of nodes that are equal, Ray takes any.

    As many as fit of the number that is wanted, which is the maximum of an elastic run.
    """
    room = [placement.count_on(node) for node in nodes]
    missing = placement.num_workers if isinstance(placement.num_workers, int) else placement.num_workers[1]
    layout = [0] * len(nodes)
    missing = min(missing, sum(room))
    while missing:
        if placement.strategy == "spread":
            chosen, taken = min((i for i in range(len(nodes)) if layout[i] < room[i]), key=lambda i: layout[i]), 1
        else:
            chosen = max((i for i in range(len(nodes)) if not layout[i]), key=lambda i: room[i])
            taken = min(room[chosen], missing)
        layout[chosen] += taken
        missing -= taken
    return layout


def _describe_shortage(needed: int, placement: Placement, nodes: Sequence[Node]) -> Problem:
    wanted, fitting = placement.to_resources(), placement.count_fitting(nodes)
    total = join_words([f"{needed * amount:g} {name}" for name, amount in wanted.items()])
    has = ", ".join(_describe_node(node, placement) for node in nodes)
    return Problem(
        f"{needed} workers of {placement.describe_worker()} each need {total}; the {len(nodes)} node(s) have {has}",
        why=f"{fitting} such workers fit; the others would wait for ever",
        fix=_mend_shortage(placement, nodes, fitting),
    )


def _mend_shortage(placement: Placement, nodes: Sequence[Node], fitting: int) -> str:
    if fitting:
        return f"scaling.num_workers={fitting}; the global batch stays what it is if train.global_batch_size is set"
    if placement.use_gpu and not any(node.gpus for node in nodes):
        return "scaling.use_gpu=auto, which takes CPUs where there are no GPUs"
    if placement.labels and replace(placement, labels={}).count_fitting(nodes):
        known = {f"{key}={node.labels[key]}" for key in placement.labels for node in nodes if key in node.labels}
        has = f" (there is {', '.join(sorted(known))})" if known else ""
        return f"a label that a node has{has}, in scaling.node_labels; ray start --labels gives a node its own"
    if any(not any(name in node.resources for node in nodes) for name in placement.resources):
        own = ", ".join(sorted({name for node in nodes for name in node.resources if _is_own(name)}))
        return f"a name of a resource that a node has ({own or 'none has any'}), in scaling.resources_per_worker"
    return "a machine or a cluster with more of it (RAY_ADDRESS)"


def _is_own(name: str) -> bool:
    """Whether a resource was named by a person, or is a kind of accelerator; and not Ray's own."""
    return not name.startswith("node:") and name not in ("memory", "object_store_memory")


def _describe_node(node: Node, placement: Placement) -> str:
    has = {"CPU": node.cpus, "GPU": node.gpus, **node.resources}
    amounts = join_words([f"{has.get(name, 0):g} {name}" for name in placement.to_resources()])
    labels = {key: node.labels[key] for key in placement.labels if key in node.labels}
    if not placement.labels:
        return amounts
    return f"{amounts} ({describe_labels(labels) if labels else 'no such label'})"
