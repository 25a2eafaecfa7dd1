"""A real sweep, watched by a real Prometheus: every query of the board has an answer, and the answers are true."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from prometheus import CLUSTER, ask, find_nodes_file, run_prometheus
from ray_node import lead_node
from tiny_runs import build_config, read_metrics
from waiting import wait_until

from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.system]

BOARD = json.loads((CLUSTER / "grafana-board.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
NO_GPU_HERE = [query for query in QUERIES if "gpus" in query]


def start_sweep(folder: Path, address: str) -> tuple[Path, "subprocess.Popen[bytes]"]:
    """A sweep of one trial that is long enough to be looked at."""
    changes: dict[str, Any] = {"train": {"epochs": 1}, "scaling": {"num_workers": 1, "use_gpu": False}}
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    (folder / "space.yaml").write_text("optim.learning_rate: {value: 1.0e-2}\ntrain.seed: {grid: [1]}\n")
    options = ["--space", "space.yaml", "--scheduler", "none", "--max-examples", "200000", "name=swept"]
    return folder / "runs" / "swept", start_command(folder, "tune", "run.yaml", *options, address=address)


def test_the_board_shows_what_metrics_jsonl_says(tmp_path: Path) -> None:
    run, asked = "swept/trial-000", {query: query.replace("$run", ".+") for query in QUERIES}
    with (
        lead_node(2, RAY_metrics_report_interval_ms="5000") as head,
        run_prometheus(tmp_path, find_nodes_file(head)) as address,
    ):
        sweep_dir, process = start_sweep(tmp_path, head.address)
        trial = sweep_dir / "trial-000"
        wait_for(lambda: list_checkpoints(trial / "checkpoints"), process, tmp_path)
        wanted = [asked[query] for query in QUERIES if query not in NO_GPU_HERE]
        wait_until(lambda: all(ask(address, query) for query in wanted), 120)
        assert len(NO_GPU_HERE) == 1 and ask(address, asked[NO_GPU_HERE[0]]) == []
        for name in ("train/loss", "val/loss", "optim/learning_rate", "progress", "perf/target_tokens_per_second"):
            metric = f'ray_sftray_{name.replace("/", "_")}{{run="{run}"}}'
            (told,) = ask(address, f"max by (run) ({metric})")
            value = float(told["value"][1])
            known = [float(row[name]) for row in read_metrics(trial) if name in row]
            assert any(value == pytest.approx(each, rel=1e-9) for each in known), (name, value)
        states = {each["metric"]["state"]: each["value"][1] for each in ask(address, "ray_sftray_trials")}
        assert states["running"] == "1" and states["finished"] == "0"
        assert all("TOKEN" not in json.dumps(ask(address, query)) for query in ("ray_sftray_progress", "up"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, read_output(tmp_path)
