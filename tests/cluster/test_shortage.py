"""What a person is told when the nodes that are left do not hold the workers."""

import pytest

from sftray.cluster.resources import Node, Placement
from sftray.cluster.shortage import describe_shortage

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
