"""Nodes that are cut off from the others while they live, and still reach the store: each in a network namespace."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from namespaces import Network, build_network
from outcomes import Outcome, record
from processes import has_ended
from ray_node import join_node, start_node
from short_runs import count_steps, list_starts
from tiny_runs import build_config, read_events, read_metrics, trace

from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.system]

SETTINGS = {"GLOO_SOCKET_IFNAME": "eth0"}
NODES = ("left", "right")


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, where the command runs too, and two nodes of one CPU each."""

    network: Network
    address: str


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(build_network("head", *NODES))
        address = stack.enter_context(start_node(0, network.hosts["head"], **SETTINGS))
        for name in NODES:
            stack.enter_context(join_node(address, 1, network.hosts[name], **SETTINGS))
        yield Cluster(network, address)


def begin(folder: Path, cluster: Cluster, workers: object) -> tuple[Path, "subprocess.Popen[bytes]"]:
    changes = {
        "train": {"epochs": 10_000, "save_every": 10, "eval_every": 0},
        "scaling": {"num_workers": workers, "use_gpu": False},
    }
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    enter = cluster.network.hosts["head"].enter
    process = start_command(folder, "train", "run.yaml", "name=run", address=cluster.address, enter=enter)
    run_dir = folder / "runs" / "run"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, folder)
    return run_dir, process


@pytest.mark.parametrize("workers", [(1, 2), 1], ids=["elastic", "spare"])
def test_a_node_that_is_cut_off(workers: object, cluster: Cluster, tmp_path: Path) -> None:
    """Its worker lives on, and still reaches the store: it ends itself, and saves nothing that counts."""
    run_dir, process = begin(tmp_path, cluster, workers)
    (first,) = list_starts(run_dir)
    node, zombie = first["nodes"][0], first["pids"][0]
    cut = time.time()
    cluster.network.cut(node)
    wait_for(lambda: len(list_starts(run_dir)) > 1, process, tmp_path)
    second = list_starts(run_dir)[1]
    wait_for(lambda: read_metrics(run_dir)[-1]["time"] > second["time"], process, tmp_path)
    wait_for(lambda: has_ended(zombie), process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, read_output(tmp_path)
    failure = next(event for event in read_events(run_dir) if event["state"] == "worker_failed")
    assert failure["rank"] == 0 and failure["node"] == node and failure["kind"] == "lost"
    noticed = failure["time"] - cut
    assert noticed < 60
    assert second["attempt"] == 2 and node not in second["nodes"]
    late = [event for event in read_events(run_dir) if event["time"] > second["time"]]
    assert {event["attempt"] for event in late} == {2}, "one that was overtaken says nothing"
    assert [event["state"] for event in late if event["state"] != "checkpoint"] == ["stopped"]
    whole = check_ledger(run_dir)
    assert whole.holds and whole.step == trace(run_dir)[-1][0], whole.describe()
    began = next(row["time"] for row in read_metrics(run_dir) if row["time"] > second["time"])
    kind = "a node with the only worker, of two" if workers == 1 else "1 of 2 nodes, elastic"
    saw = f"rank and node that did not answer (noticed after {noticed:.1f} s); attempt 2 goes on"
    again = max(failure["step"] - second["step"], 0)
    record(Outcome("node", f"the network of {kind}, cut (ledger whole)", 1, saw, 1, again, began - cut))
