"""A real sweep, watched by a real Prometheus: every query of the board has an answer, and the answers are true."""

import contextlib
import json
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import read_output, start_command, wait_for
from ray_node import find_free_ports, lead_node
from tiny_runs import build_config, read_metrics
from waiting import wait_until

from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.system]

CLUSTER = Path(__file__).parents[2] / "cluster"
BOARD = json.loads((CLUSTER / "grafana-board.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
NO_GPU_HERE = [query for query in QUERIES if "gpus" in query]


@contextlib.contextmanager
def run_prometheus(folder: Path, metrics: str) -> Iterator[str]:
    """The address of a Prometheus with the cluster's config, but for its pace and for where it finds the nodes."""
    nodes = folder / "nodes.json"
    nodes.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [metrics]}]))
    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = "1s"
    (job,) = config["scrape_configs"]
    job["file_sd_configs"][0]["files"] = [str(nodes)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    flags = [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.out").open("wb") as out:
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *flags]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except ConnectionError:  # it is about to start
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return []
        raise
    return found


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
        run_prometheus(tmp_path, head.metrics) as address,
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
