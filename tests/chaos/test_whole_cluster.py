"""What the README promises of a cluster, in one piece: three nodes with a token, a store in a bucket, a run and a
sweep sent from another folder, a Prometheus that watches, a node that is killed, and a report that opens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import read_output
from prometheus import ask, find_nodes_file, run_prometheus
from ray_node import join_node, kill_node, lead_node
from s3_server import make_place
from tiny_runs import read_events, read_metrics
from waiting import wait_until

from sftray.platform.sweep_files import read_ledger
from sftray.platform.trial_directory import read_validations
from sftray.train_fn.places import as_path

pytestmark = [pytest.mark.ray, pytest.mark.system, pytest.mark.chaos]

QUICK = ("train.max_steps=16", "train.eval_every=8", "train.save_every=8", "train.log_every=1")


def send(folder: Path, dashboard: str, *command: str) -> "subprocess.Popen[bytes]":
    """`sftray submit`, by one who knows the cluster's address and token, and nothing else."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SFTRAY_"))}
    words = [sys.executable, "-m", "sftray.platform.cli", "submit", "--address", dashboard, "--", *command]
    environment = {key: value for key, value in kept.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=(folder / "out").open("wb"), stderr=subprocess.STDOUT
    )


def test_a_run_and_a_sweep_on_a_cluster(tmp_path: Path, s3_endpoint: str) -> None:
    store = make_place(s3_endpoint)
    settings = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (
        lead_node(0, RAY_metrics_report_interval_ms="5000", **settings) as head,
        join_node(head.address, 2, RAY_metrics_report_interval_ms="5000", **settings),
        join_node(head.address, 2, RAY_metrics_report_interval_ms="5000", **settings) as lost,
        run_prometheus(tmp_path, find_nodes_file(head)) as prometheus,
    ):
        job = send(tmp_path, head.dashboard, "train", "quickstart", f"store.path={store}", "name=first", *QUICK)
        wait_until(lambda: bool(ask(prometheus, 'ray_sftray_train_loss{run="first"}')) or job.poll() is not None, 240)
        assert job.wait(240) == 0, read_output(tmp_path)
        run_dir = as_path(store) / "first"
        assert read_events(run_dir)[-1]["state"] == "finished"
        losses = [row["val/loss"] for row in read_metrics(run_dir) if "val/loss" in row]
        assert len(losses) == 3 and losses[-1] < losses[0] / 2

        asked = ("--space", "lr_accumulation", "--trials", "4", "--max-examples", "640", "--scheduler", "none")
        settled = (f"store.path={store}", "name=swept", "scaling.num_workers=1")
        job = send(tmp_path, head.dashboard, "tune", "quickstart", *asked, *settled)
        sweep_dir = as_path(store) / "swept"

        def count_at_work() -> int:
            return sum(0 < len(read_validations(sweep_dir / each.name)) < 8 for each in read_ledger(sweep_dir))

        wait_until(lambda: job.poll() is not None or count_at_work() >= 3, 240)  # so one of them is there
        kill_node(lost)
        assert job.wait(400) == 0, read_output(tmp_path)
        seen = ask(prometheus, 'max by (state) (max_over_time(ray_sftray_trials{sweep="swept"}[30m]))')
        assert {each["metric"]["state"]: each["value"][1] for each in seen}["running"] >= "3"
    trials = [sweep_dir / each.name for each in read_ledger(sweep_dir)]
    assert [read_events(trial)[-1]["state"] for trial in trials] == ["finished"] * 4
    starts = [sum(event["state"] == "running" for event in read_events(trial)) for trial in trials]
    assert max(starts) >= 2, "no trial was on the node that was lost"
    for trial in trials:
        assert sorted(read_validations(trial)) == [k / 8 for k in range(1, 9)]
        steps = [row["step"] for row in read_metrics(trial)]
        assert steps == sorted(set(steps))
    check_report(str(sweep_dir), tmp_path)


def check_report(place: str, folder: Path) -> None:
    """The report is made from the bucket, and a browser shows it."""
    report = folder / "report.html"
    words = ("runs", "report", place, "--output", str(report), "--json")
    command = [sys.executable, "-m", "sftray.platform.cli", *words]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(made.stdout)
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
    shown = subprocess.run(
        [*browser, "--dump-dom", report.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert "swept" in shown.stdout and "trial-003" in shown.stdout and "js-plotly-plot" in shown.stdout
