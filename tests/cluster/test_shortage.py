"""What a person is told when the nodes that are left do not hold the workers."""

import os

import pytest

from sftray.cluster.resources import Node, Placement
from sftray.cluster.room import count_wait_minutes
from sftray.cluster.shortage import apply_patience, describe_shortage
from sftray.train_fn.config import ScalingConfig

ONE_CPU, ONE_GPU = Node(1, 0), Node(8, 1)


@pytest.mark.parametrize(
    ("workers", "use_gpu", "nodes"),
    [
        (2, False, [ONE_CPU, ONE_CPU]),
        (2, False, [Node(2, 0)]),
        (2, True, [ONE_GPU, ONE_GPU]),
        ((1, 4), False, [ONE_CPU]),  # it goes on with fewer
    ],
)
def test_where_they_fit_nothing_is_said(workers: int | tuple[int, int], use_gpu: bool, nodes: list[Node]) -> None:
    assert describe_shortage(Placement(workers, use_gpu, 1), nodes) is None


def test_what_is_missing_is_said_and_how_long_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    said = describe_shortage(Placement(2, False, 1), [ONE_CPU])
    assert said == (
        "the nodes that are left hold 1 of 2 workers (1 CPU each); another node is waited for, up to 4 min"
    )
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    said = describe_shortage(Placement(3, True, 4), [ONE_CPU, ONE_GPU])
    assert said == (
        "the nodes that are left hold 1 of 3 workers (4 CPU and 1 GPU each); another node is waited for, up to 40 min"
    )


@pytest.mark.parametrize(
    ("workers", "wait_s", "each"), [(2, 0.0, "60"), (2, 60.0, "60"), (2, 900.0, "225"), ((1, 2), 900.0, None)]
)
def test_ray_waits_for_nodes_as_long_as_the_run_does(
    workers: int | tuple[int, int], wait_s: float, each: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")  # so that it is put back
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S")
    apply_patience(Placement(workers, False, 1, wait_s=wait_s))
    assert os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S") == each
    if each == "225":
        said = describe_shortage(Placement(2, False, 1, labels={"zone": "a"}), [ONE_CPU])
        assert said is not None and said.startswith(
            "the nodes that are left hold 0 of 2 workers (1 CPU, on a node with"
        )
        assert said.endswith("another node is waited for, up to 15 min")


def test_the_wait_is_what_is_asked_for_or_follows_from_the_cluster() -> None:
    assert [count_wait_minutes(ScalingConfig(), has_autoscaler) for has_autoscaler in (False, True)] == [0, 15]
    for minutes in (0, 3.5):
        assert count_wait_minutes(ScalingConfig(wait_minutes=minutes), True) == minutes
        assert count_wait_minutes(ScalingConfig(wait_minutes=minutes), False) == minutes
