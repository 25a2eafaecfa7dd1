"""Where workers and trials lie on clusters of several real nodes, and a node that is lost in a sweep."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from ray_node import join_node, kill_node, start_node
from tiny_runs import build_config, read_events, train
from tiny_sweeps import sweep

from sftray.platform.ledger_check import check_ledger
from sftray.platform.plan_cluster import plan_cluster
from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import ClusterError

pytestmark = pytest.mark.ray

SIDES = ("left", "right")
HELPERS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, and two nodes by their names."""

    address: str
    nodes: dict[str, "subprocess.Popen[bytes]"]
    folders: dict[str, Path]

    def list_sides(self, run_dir: Path) -> list[str]:
        """The node of each worker of the newest attempt that began to train."""
        return sorted(map(self.find_side, find_starts(run_dir)[-1]["pids"]))

    def find_side(self, pid: int) -> str:
        """The node in whose own folder a process has its log; it may have ended since."""
        log = f"session_2*/logs/worker-*-{pid}.out"
        (side,) = (name for name, folder in self.folders.items() if list(folder.glob(log)))
        return side


@contextlib.contextmanager
def start_cluster(num_cpus: int) -> Iterator[Cluster]:
    """Two nodes, each with a label that says its name, and with a resource that the head has not."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(start_node(0))
        nodes = {}
        for side in SIDES:
            own = ["--labels", f"side={side}", "--resources", '{"own": 2}']
            nodes[side] = stack.enter_context(join_node(address, num_cpus, more=own))
        yield Cluster(address, nodes, {side: find_folder(node) for side, node in nodes.items()})


def find_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The events of the attempts that began to train."""
    return [event for event in read_events(run_dir) if event["state"] == "running"]


def find_saved_step(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((each.step for each in list_checkpoints(run_dir / "checkpoints")), default=0)


def find_folder(node: "subprocess.Popen[bytes]") -> Path:
    """Where a node keeps its logs."""
    assert isinstance(node.args, list)
    return Path(node.args[node.args.index("--temp-dir") + 1])


def test_workers_and_trials_lie_where_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_cluster(2) as cluster:
        for name, value in {**HELPERS, "RAY_ADDRESS": cluster.address}.items():
            monkeypatch.setenv(name, value)

        def run(name: str, **scaling: object) -> list[str]:
            asked = {"num_workers": 2, "use_gpu": False, **scaling}
            config = build_config(tmp_path, scaling=asked, train={"max_steps": 2})
            train(config.model_copy(update={"name": name}))
            sides = cluster.list_sides(tmp_path / "runs" / name)
            planned = plan_cluster(ScalingConfig.model_validate(asked))
            assert planned.fits and not planned.has_autoscaler
            assert sorted(map(sides.count, {*sides})) == sorted(filter(None, planned.layout))
            return sides

        assert run("spread", placement="spread") == ["left", "right"]
        right = {"node_labels": {"side": "right"}, "resources_per_worker": {"own": 1}}
        assert run("labelled", placement="spread", **right) == ["right", "right"]

        with pytest.raises(ClusterError, match="3 workers of 1 CPU and 1 own, on a node with side=right each need"):
            run("many", num_workers=3, **right)
        with pytest.raises(ClusterError, match=r"more nodes were waited for, 0\.01 min"):
            run("late", num_workers=5, wait_minutes=0.01)

        space = {"optim.learning_rate": {"grid": [1e-2, 5e-3]}}
        swept = sweep(tmp_path, space, {"scaling": {"num_workers": 1, "use_gpu": False, **right}}, max_examples=16)
        assert [cluster.list_sides(swept / each.name) for each in read_ledger(swept)] == [["right"], ["right"]]


def test_a_node_lost_in_a_sweep_costs_its_trial_the_way_since_the_last_checkpoint(tmp_path: Path) -> None:
    config = build_config(tmp_path, train={"epochs": 60}, scaling={"num_workers": 1, "use_gpu": False})
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
    (tmp_path / "space.yaml").write_text("optim.learning_rate: {grid: [1.0e-2, 5.0e-3]}\n")
    asked = ["tune", "run.yaml", "--space", "space.yaml", "--scheduler", "none", "--json", "name=swept"]
    with start_cluster(1) as cluster:
        process = start_command(tmp_path, *asked, address=cluster.address)
        trials = [tmp_path / "runs" / "swept" / f"trial-00{number}" for number in range(2)]
        wait_for(lambda: all(map(find_saved_step, trials)), process, tmp_path)
        lost, kept = sorted(trials, key=find_saved_step)  # who began last has the longest way
        (pid,) = find_starts(lost)[-1]["pids"]
        os.kill(pid, signal.SIGSTOP)  # however fast the machine, it does not end before its node does
        (its_own,), (other,) = cluster.list_sides(lost), cluster.list_sides(kept)
        assert {its_own, other} == {*SIDES}, "one on each node"
        kill_node(cluster.nodes[its_own])
        assert process.wait(120) == 0, read_output(tmp_path)
        ends = [read_events(trial)[-1] for trial in trials]
        assert {end["state"] for end in ends} == {"finished"}, (ends, read_output(tmp_path))
        assert cluster.list_sides(lost) == cluster.list_sides(kept) == [other]
    assert len(find_starts(kept)) == 1
    first, second = find_starts(lost)
    assert second["step"] >= 1 and second["attempt"] == first["attempt"] + 1, "it goes on from its checkpoint"
    assert all(check_ledger(trial).holds for trial in trials)
