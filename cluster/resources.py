"""What a run needs of a cluster, what the cluster has, and whether the one fits the other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError, Problem


@dataclass(frozen=True)
class Node:
    """What one node has to give."""

    cpus: float
    gpus: float

    def count_workers(self, cpus_per_worker: int, use_gpu: bool) -> int:
        by_cpu = int(self.cpus // cpus_per_worker)
        return min(by_cpu, int(self.gpus)) if use_gpu else by_cpu


@dataclass(frozen=True)
class Placement:
    """How a run will be laid out: `num_workers` is [min, max] for an elastic one."""

    num_workers: int | tuple[int, int]
    use_gpu: bool
    cpus_per_worker: int

    @property
    def is_elastic(self) -> bool:
        return not isinstance(self.num_workers, int)

    def to_resources(self) -> dict[str, float]:
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu}


def look_at_this_machine() -> list[Node]:
    """The one node of a cluster that would be started here."""
    import torch

    return [Node(cpus=len(os.sched_getaffinity(0)), gpus=torch.cuda.device_count())]


def look_at_cluster() -> list[Node]:
    """The living nodes of the connected cluster."""
    import ray

    return [
        Node(cpus=node["Resources"].get("CPU", 0), gpus=node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def place_workers(scaling: ScalingConfig, nodes: Sequence[Node]) -> Placement:
    """Decide on CPU or GPU, and refuse what can never fit.

    `use_gpu: auto` takes GPUs if the nodes have one for every worker.

    Raises:
        ClusterError: the nodes hold fewer workers than the run needs; it says the arithmetic.
    """
    needed = scaling.min_workers
    cpus = scaling.cpus_per_worker

    def fitting(use_gpu: bool) -> int:
        return sum(node.count_workers(cpus, use_gpu) for node in nodes)

    use_gpu = fitting(True) >= needed if scaling.use_gpu == "auto" else scaling.use_gpu
    if fitting(use_gpu) < needed:
        raise ClusterError(_describe_shortage(scaling, nodes, use_gpu, fitting(use_gpu)))
    return Placement(scaling.num_workers, use_gpu, cpus)


def _describe_shortage(scaling: ScalingConfig, nodes: Sequence[Node], use_gpu: bool, fitting: int) -> Problem:
    needed, cpus = scaling.min_workers, scaling.cpus_per_worker
    each = f"{cpus} CPU" + (" and 1 GPU" if use_gpu else "")
    has = ", ".join(f"{node.cpus:g} CPU" + (f" and {node.gpus:g} GPU" if use_gpu else "") for node in nodes)
    total = f"{needed * cpus} CPU" + (f" and {needed} GPU" if use_gpu else "")
    if fitting:
        fix = f"scaling.num_workers={fitting}; the global batch stays what it is if train.global_batch_size is set"
    elif use_gpu and not any(node.gpus for node in nodes):
        fix = "scaling.use_gpu=auto, which takes CPUs where there are no GPUs"
    else:
        fix = "a machine or a cluster with more of it (RAY_ADDRESS)"
    return Problem(
        f"{needed} workers of {each} each need {total}; the {len(nodes)} node(s) have {has}",
        why=f"{fitting} such workers fit; the others would wait for ever",
        fix=fix,
    )
