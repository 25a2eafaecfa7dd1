"""Nodes that are lost, that come, and that are going to be taken away, on clusters of several real nodes."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from outcomes import Outcome, record
from ray_node import join_node, kill_node, start_node
from short_runs import count_steps, list_starts
from tiny_runs import build_config, read_events, read_metrics, trace

from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, and two nodes of one CPU each."""

    address: str
    nodes: list["subprocess.Popen[bytes]"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(start_node(0))
        yield Cluster(address, [stack.enter_context(join_node(address, 1)) for _ in range(2)])


def begin(folder: Path, cluster: Cluster, workers: object, epochs: int) -> tuple[Path, "subprocess.Popen[bytes]"]:
    changes = {
        "train": {"epochs": epochs, "save_every": 10, "eval_every": 0},
        "scaling": {"num_workers": workers, "use_gpu": False},
    }
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    return folder / "runs" / "run", start_command(folder, "train", "run.yaml", "name=run", address=cluster.address)


def wait_for_start(number: int, run_dir: Path, process: "subprocess.Popen[bytes]", folder: Path) -> float:
    """When the first step of start `number` was done, in Unix seconds."""
    wait_for(lambda: len(list_starts(run_dir)) >= number, process, folder)
    began = list_starts(run_dir)[number - 1]["time"]
    wait_for(lambda: read_metrics(run_dir)[-1]["time"] > began, process, folder)
    return float(next(row["time"] for row in read_metrics(run_dir) if row["time"] > began))


def test_an_elastic_run_shrinks_and_grows_in_the_middle_of_an_epoch(cluster: Cluster, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, cluster, (1, 2), epochs=10_000)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, tmp_path)
    reached, killed = count_steps(run_dir), time.time()
    kill_node(cluster.nodes[1])
    shrunk = wait_for_start(2, run_dir, process, tmp_path) - killed
    joined = time.time()
    with join_node(cluster.address, 1):
        grown = wait_for_start(3, run_dir, process, tmp_path) - joined
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, read_output(tmp_path)
    starts = list_starts(run_dir)
    assert [len(start["pids"]) for start in starts] == [2, 1, 2]
    whole = check_ledger(run_dir)
    assert whole.holds and whole.step == trace(run_dir)[-1][0]
    again = max(reached - starts[1]["step"], 0)
    saw = "attempt 2 goes on: rank and node that were lost"
    record(Outcome("node", "1 of 2 nodes lost, elastic: shrink (ledger whole)", 1, saw, 1, again, shrunk))
    record(Outcome("node", "a node joins, elastic: grow (ledger whole)", 1, "attempt 3 goes on", 1, None, grown))


def test_a_fixed_run_goes_on_with_the_spare_node(cluster: Cluster, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, cluster, 2, epochs=10_000)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, tmp_path)
    with join_node(cluster.address, 1):
        killed = time.time()
        kill_node(cluster.nodes[1])
        seconds = wait_for_start(2, run_dir, process, tmp_path) - killed
        stop_and_check(process, run_dir, tmp_path)
    first, second = list_starts(run_dir)
    assert second["attempt"] == 2 and len(second["pids"]) == 2
    assert not set(first["pids"]) & set(second["pids"])
    lost = find_failure(run_dir)
    notice = lost["time"] - killed
    saw = f"attempt 2 goes on: rank and node that were lost (noticed after {notice:.1f} s)"
    again = lost["step"] - second["step"]
    record(Outcome("node", "1 of 2 nodes lost, a spare node takes over (ledger whole)", 1, saw, 1, again, seconds))


def test_a_fixed_run_waits_for_a_node_to_come_back(cluster: Cluster, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, cluster, 2, epochs=10_000)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, tmp_path)
    killed = time.time()
    kill_node(cluster.nodes[1])
    wait_for(lambda: any(e["state"] == "waiting" for e in read_events(run_dir)), process, tmp_path)
    told = time.time() - killed
    said = "waiting: the nodes that are left hold 1 of 2 workers"
    wait_for(lambda: said in read_output(tmp_path), process, tmp_path)
    joined = time.time()
    with join_node(cluster.address, 1):
        seconds = wait_for_start(2, run_dir, process, tmp_path) - joined
        stop_and_check(process, run_dir, tmp_path)
    second = list_starts(run_dir)[1]
    assert second["attempt"] == 2 and len(second["pids"]) == 2
    saw = f"after {told:.1f} s: how many workers the nodes hold that are left, and how long a node is waited for"
    again = find_failure(run_dir)["step"] - second["step"]
    fault = "1 of 2 nodes lost, no spare, until a node joins (ledger whole)"
    record(Outcome("node", fault, 1, saw, 1, again, seconds))


def stop_and_check(process: "subprocess.Popen[bytes]", run_dir: Path, folder: Path) -> None:
    """End a run that has clearly gone on: it saves, and its ledger is whole up to there."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, read_output(folder)
    whole = check_ledger(run_dir)
    assert whole.holds and whole.step == trace(run_dir)[-1][0], whole.describe()


def find_failure(run_dir: Path) -> dict[str, Any]:
    """Why the first attempt ended: who was lost, and where."""
    return next(event for event in read_events(run_dir) if event["state"] == "worker_failed")


def test_a_notice_of_preemption_saves_and_ends_with_75(cluster: Cluster, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, cluster, 2, epochs=10_000)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 5, process, tmp_path)
    noticed = time.time()
    drain(cluster.address)
    assert process.wait(60) == 75, read_output(tmp_path)
    seconds = time.time() - noticed
    stopped = read_events(run_dir)[-1]
    assert stopped["state"] == "stopped" and stopped["why"] == "a node is going to be taken away"
    assert stopped["step"] == trace(run_dir)[-1][0], "nothing was trained that is not saved"
    record(Outcome("node", "a notice of preemption", 1, "stopped; saved; the command that goes on", 1, 0, seconds))


def drain(address: str) -> None:
    """Tell a node with a CPU that it is going to be taken away in 60 s."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    node = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU"))
    ray.shutdown()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)
