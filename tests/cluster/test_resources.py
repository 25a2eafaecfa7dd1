"""What fits where: a table of clusters, and the arithmetic in the words of a refusal."""

import os
from typing import Any

import pytest

from sftray.cluster.resources import Node, Placement, look_at_this_machine, place_workers
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError

ONE, BIG, GPU, MIXED = [Node(2, 0)], [Node(64, 0)], [Node(8, 4)], [Node(8, 0), Node(4, 2), Node(1, 8)]

# The nodes, the settings, and what comes of it: how many workers, on GPUs or not.
FITS: list[tuple[list[Node], dict[str, Any], int | tuple[int, int], bool]] = [
    (ONE, {}, 1, False),
    (ONE, {"num_workers": 2}, 2, False),
    (ONE, {"cpus_per_worker": 2}, 1, False),
    (BIG, {"num_workers": 64, "use_gpu": False}, 64, False),
    # auto takes GPUs where every worker gets one, and no mixture
    (GPU, {"num_workers": 4}, 4, True),
    (GPU, {"num_workers": 5}, 5, False),
    (GPU, {"num_workers": 4, "use_gpu": False}, 4, False),
    (GPU, {"num_workers": 4, "cpus_per_worker": 2}, 4, True),
    (GPU, {"num_workers": 2, "cpus_per_worker": 4}, 2, True),
    # GPUs on some nodes only: 2 of the second and, for want of CPUs, 1 of the third
    (MIXED, {"num_workers": 3}, 3, True),
    (MIXED, {"num_workers": 3, "use_gpu": True}, 3, True),
    (MIXED, {"num_workers": 4}, 4, False),
    (MIXED, {"num_workers": 13}, 13, False),
    (MIXED, {"num_workers": 2, "cpus_per_worker": 4}, 2, False),
    (MIXED, {"num_workers": 1, "cpus_per_worker": 4}, 1, True),
    # elastic: the minimum must fit, now
    (ONE, {"num_workers": (1, 8)}, (1, 8), False),
    (ONE, {"num_workers": (2, 2)}, (2, 2), False),
    (MIXED, {"num_workers": (3, 16)}, (3, 16), True),
    (MIXED, {"num_workers": (4, 16)}, (4, 16), False),
    # a node that gives fractions
    ([Node(2.9, 0.5)], {"num_workers": 2}, 2, False),
]

# The nodes, the settings, the arithmetic, and the fix.
REFUSED: list[tuple[list[Node], dict[str, Any], str, str]] = [
    (
        ONE,
        {"num_workers": 3},
        "3 workers of 1 CPU each need 3 CPU; the 1 node(s) have 2 CPU",
        "scaling.num_workers=2;",
    ),
    (
        [Node(3, 0), Node(3, 0)],
        {"num_workers": 3, "cpus_per_worker": 2},
        "3 workers of 2 CPU each need 6 CPU; the 2 node(s) have 3 CPU, 3 CPU",
        "scaling.num_workers=2;",
    ),
    (
        ONE,
        {"cpus_per_worker": 3},
        "1 workers of 3 CPU each need 3 CPU; the 1 node(s) have 2 CPU",
        "a machine or a cluster with more of it",
    ),
    (
        ONE,
        {"use_gpu": True},
        "1 workers of 1 CPU and 1 GPU each need 1 CPU and 1 GPU; the 1 node(s) have 2 CPU and 0 GPU",
        "scaling.use_gpu=auto",
    ),
    (
        MIXED,
        {"num_workers": 4, "use_gpu": True},
        "4 workers of 1 CPU and 1 GPU each need 4 CPU and 4 GPU; "
        "the 3 node(s) have 8 CPU and 0 GPU, 4 CPU and 2 GPU, 1 CPU and 8 GPU",
        "scaling.num_workers=3;",
    ),
    (
        [Node(1, 8)],
        {"use_gpu": True, "cpus_per_worker": 2},
        "have 1 CPU and 8 GPU",
        "a machine or a cluster with more",
    ),
    (ONE, {"num_workers": (3, 8)}, "3 workers of 1 CPU each need 3 CPU", "scaling.num_workers=2;"),
    ([], {}, "1 workers of 1 CPU each need 1 CPU; the 0 node(s) have ", "a machine or a cluster with more of it"),
]


@pytest.mark.parametrize(("nodes", "settings", "num_workers", "use_gpu"), FITS)
def test_workers_are_placed(
    nodes: list[Node], settings: dict[str, Any], num_workers: int | tuple[int, int], use_gpu: bool
) -> None:
    scaling = ScalingConfig(**settings)
    assert place_workers(scaling, nodes) == Placement(num_workers, use_gpu, scaling.cpus_per_worker)


@pytest.mark.parametrize(("nodes", "settings", "arithmetic", "fix"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_arithmetic(
    nodes: list[Node], settings: dict[str, Any], arithmetic: str, fix: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        place_workers(ScalingConfig(**settings), nodes)
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 5
    assert arithmetic in problem.what
    assert str(problem.fix).startswith(fix)


@pytest.mark.parametrize(
    ("nodes", "settings", "arithmetic", "fix"), [case for case in REFUSED if "num_workers=" in case[3]]
)
def test_the_fix_of_a_refusal_fits(nodes: list[Node], settings: dict[str, Any], arithmetic: str, fix: str) -> None:
    fitting = int(fix.removeprefix("scaling.num_workers=").removesuffix(";"))
    assert place_workers(ScalingConfig(**{**settings, "num_workers": fitting}), nodes).num_workers == fitting


def test_a_worker_asks_ray_for_what_it_was_placed_by() -> None:
    assert Placement(2, False, 3).to_resources() == {"CPU": 3.0}
    assert Placement(2, True, 3).to_resources() == {"CPU": 3.0, "GPU": 1.0}


def test_this_machine_has_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = look_at_this_machine()
    assert node.cpus == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})  # as taskset would have it
    assert [node.cpus for node in look_at_this_machine()] == [3]
