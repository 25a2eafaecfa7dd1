"""A sweep on a cluster that begins with no worker node: it grows for the trials, and shrinks when they are done."""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_autoscaler import start_growing_cluster
from rich.console import Console
from tiny_runs import build_config, read_events, train
from waiting import wait_until

from sftray.cluster.connection import connected, look_around
from sftray.platform.plan_cluster import describe_cluster, plan_cluster
from sftray.platform.sweep import SweepOptions, tune_run
from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ClusterError

pytestmark = [pytest.mark.ray, pytest.mark.system]

ONE = {"num_workers": 1, "use_gpu": False}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with start_growing_cluster(max_nodes=2, num_cpus=1) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


def list_nodes() -> list[dict[str, Any]]:
    """Those that joined beside the head, the living and the dead."""
    import ray

    with connected():
        return [node for node in ray.nodes() if not node["NodeID"].endswith("00000")]


def count_living() -> int:
    return sum(node["Alive"] for node in list_nodes())


def find_span(events: list[dict[str, Any]]) -> tuple[float, float]:
    """When a trial began to train, and when it had ended."""
    return next(event["time"] for event in events if event["state"] == "running"), events[-1]["time"]


def test_a_cluster_grows_for_a_sweep_and_shrinks_after_it(address: str, tmp_path: Path) -> None:
    wait_until(lambda: look_around()[1])  # the autoscaler has looked for the first time
    planned = plan_cluster(ScalingConfig(**ONE))
    assert not planned.fits and planned.shortage is None and planned.to_json()["missing_workers"] == 1
    assert describe_cluster(planned) == [
        "cluster: 0 of 1 worker(s) on CPU fit (1 CPU each); nodes for 1 would be waited for, up to 15 min",
        "  an autoscaler adds nodes; how many there may be, Ray does not say",
    ]
    assert list_nodes() == [], "a plan asks for nothing"

    with pytest.raises(ClusterError, match=r"more nodes were waited for, 0\.02 min"):
        train(build_config(tmp_path, scaling={**ONE, "cpus_per_worker": 2, "wait_minutes": 0.02}))

    said = io.StringIO()
    options = SweepOptions(
        space={"optim.learning_rate": {"grid": [1e-2, 5e-3, 2e-3]}}, scheduler="none", concurrent=2
    )
    config = build_config(tmp_path, scaling=ONE, train={"epochs": 150})
    folder = tune_run(Resolved(config, {}), "tiny", options, Console(file=said, width=200))
    assert "waiting for nodes, up to 15 min: 1 workers of 1 CPU each need 1 CPU; the 1 node(s) have 0 CPU" in (
        said.getvalue()
    )
    events = [read_events(folder / each.name) for each in read_ledger(folder)]
    assert [each[-1]["state"] for each in events] == ["finished"] * 3
    spans = sorted(find_span(each) for each in events)
    assert any(second[0] < first[1] for first, second in pairwise(spans)), "two at a time, on a node each"
    assert len(list_nodes()) >= 2
    wait_until(lambda: count_living() == 0)
