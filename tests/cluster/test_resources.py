"""What fits where: a table of clusters, and the arithmetic in the words of a refusal."""

import os
from dataclasses import replace
from typing import Any

import pytest

from sftray.cluster.resources import (
    Node,
    Placement,
    choose_placement,
    look_at_this_machine,
    place_workers,
    plan_layout,
)
from sftray.cluster.tuning import count_concurrent
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError

LABELLED = [
    Node(4, 2, {"fast": 2, "memory": 8e9}, {"zone": "a", "ray.io/accelerator-type": "A100"}, "first"),
    Node(4, 0, {}, {"zone": "b"}, "second"),
    Node(8, 0, {"fast": 3}, {}, "third"),
]
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
    # only nodes that have the label, and what else a worker takes
    (LABELLED, {"num_workers": 2, "node_labels": {"zone": "a"}}, 2, True),
    (LABELLED, {"num_workers": 4, "node_labels": {"zone": "a"}}, 4, False),
    (LABELLED, {"num_workers": 4, "node_labels": {"zone": "b"}}, 4, False),
    (LABELLED, {"num_workers": 5, "resources_per_worker": {"fast": 1.0}}, 5, False),
    (LABELLED, {"num_workers": 10, "resources_per_worker": {"fast": 0.5}}, 10, False),
    (LABELLED, {"num_workers": 2, "resources_per_worker": {"memory": 4e9}}, 2, True),
    (LABELLED, {"num_workers": (1, 5), "resources_per_worker": {"fast": 1}}, (1, 5), True),
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
    (
        LABELLED,
        {"num_workers": 5, "node_labels": {"zone": "a"}},
        "5 workers of 1 CPU, on a node with zone=a each need 5 CPU; "
        "the 3 node(s) have 4 CPU (zone=a), 4 CPU (zone=b), 8 CPU (no such label)",
        "scaling.num_workers=4;",
    ),
    (
        LABELLED,
        {"node_labels": {"zone": "c"}},
        "1 workers of 1 CPU, on a node with zone=c each need 1 CPU",
        "a label that a node has (there is zone=a, zone=b), in scaling.node_labels",
    ),
    (
        LABELLED,
        {"node_labels": {"zone": "a", "rack": "7"}},
        "on a node with zone=a and rack=7",
        "a label that a node has (there is zone=a, zone=b), in scaling.node_labels",
    ),
    (
        LABELLED,
        {"num_workers": 6, "resources_per_worker": {"fast": 1.0}, "use_gpu": False},
        "6 workers of 1 CPU and 1 fast each need 6 CPU and 6 fast; "
        "the 3 node(s) have 4 CPU and 2 fast, 4 CPU and 0 fast, 8 CPU and 3 fast",
        "scaling.num_workers=5;",
    ),
    (
        LABELLED,
        {"resources_per_worker": {"fats": 1.0}},
        "the 3 node(s) have 4 CPU and 0 fats,",
        "a name of a resource that a node has (fast), in scaling.resources_per_worker",
    ),
    (ONE, {"resources_per_worker": {"fast": 1.0}}, "2 CPU and 0 fast", "a name of a resource that a node has (none"),
    ([], {}, "1 workers of 1 CPU each need 1 CPU; the 0 node(s) have ", "a machine or a cluster with more of it"),
]


@pytest.mark.parametrize(("nodes", "settings", "num_workers", "use_gpu"), FITS)
def test_workers_are_placed(
    nodes: list[Node], settings: dict[str, Any], num_workers: int | tuple[int, int], use_gpu: bool
) -> None:
    scaling = ScalingConfig(**settings)
    placement = place_workers(scaling, nodes)
    assert (placement.num_workers, placement.use_gpu) == (num_workers, use_gpu)
    own, labels = scaling.resources_per_worker, scaling.node_labels
    assert placement == Placement(num_workers, use_gpu, scaling.cpus_per_worker, own, labels)


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
    assert Placement(2, True, 3, {"fast": 0.5}).to_resources() == {"CPU": 3.0, "GPU": 1.0, "fast": 0.5}


# The nodes, the settings, and how many workers each node gets.
LAYOUTS: list[tuple[list[Node], dict[str, Any], list[int]]] = [
    (LABELLED, {"num_workers": 3}, [0, 0, 3]),
    (LABELLED, {"num_workers": 10}, [2, 0, 8]),
    (LABELLED, {"num_workers": 2, "placement": "spread"}, [1, 1, 0]),
    (LABELLED, {"num_workers": 7, "placement": "spread"}, [3, 2, 2]),
    (LABELLED, {"num_workers": 15, "placement": "spread"}, [4, 4, 7]),
    (LABELLED, {"num_workers": 3, "node_labels": {"zone": "b"}}, [0, 3, 0]),
    (LABELLED, {"num_workers": 4, "resources_per_worker": {"fast": 1.0}}, [1, 0, 3]),
    (LABELLED, {"num_workers": [2, 40]}, [4, 4, 8]),  # as many as fit
    (LABELLED, {"num_workers": 40, "placement": "spread"}, [4, 4, 8]),
    ([], {"num_workers": 2}, []),
]


@pytest.mark.parametrize(("nodes", "settings", "layout"), LAYOUTS)
def test_which_node_gets_how_many(nodes: list[Node], settings: dict[str, Any], layout: list[int]) -> None:
    placement = choose_placement(ScalingConfig(use_gpu=False, **settings), nodes)
    assert plan_layout(placement, nodes) == layout


def test_trials_run_side_by_side_as_many_as_fit_or_as_nodes_are_waited_for() -> None:
    one, two = Placement(1, False, 1), Placement(2, False, 2)
    assert [each.count_side_by_side(LABELLED) for each in (one, two, Placement((1, 8), False, 1))] == [16, 4, 2]
    assert two.count_side_by_side([]) == 1
    assert [count_concurrent(one, ONE, asked) for asked in (None, 1, 2, 9)] == [2, 1, 2, 2]
    assert [count_concurrent(replace(one, wait_s=60.0), ONE, asked) for asked in (None, 1, 9)] == [2, 1, 9]
    assert count_concurrent(replace(two, wait_s=60.0), ONE, 9) == 1, "trials of several workers are not started early"


def test_this_machine_has_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = look_at_this_machine()
    assert node.cpus == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})  # as taskset would have it
    assert [node.cpus for node in look_at_this_machine()] == [3]
