"""Commands as jobs on a real cluster: sent from a folder, followed, stopped, gone on with; and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray_node import Head
from tiny_runs import build_config, read_events, read_metrics
from waiting import wait_until

from sftray.train_fn.config_file import Resolved, dump_config, load_config

pytestmark = pytest.mark.ray


ELSEWHERE = {"RAY_ADDRESS": "127.0.0.1:9", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}


def call(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`sftray` as a stranger to the cluster calls it: no mode in the environment, but the token; and where it says
    --address, the environment names other clusters."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    kept |= ELSEWHERE if "--address" in arguments else {}
    command = [sys.executable, "-m", "sftray.platform.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a config whose data are named by relative paths, and a secret that nobody asked for."""
    desk = tmp_path / "desk"
    desk.mkdir()
    changes: dict[str, Any] = {
        "train": {"epochs": 10_000, "eval_every": 0, "save_every": 0},
        "scaling": {"num_workers": 1, "use_gpu": False},
        "store": {"path": str(tmp_path / "store")},
    }
    config = build_config(desk, **changes)
    data = config.data.model_copy(update={"train": "train.jsonl", "validation": "validation.jsonl"})
    (desk / "run.yaml").write_text(dump_config(Resolved(config.model_copy(update={"data": data, "name": None}), {})))
    (desk / ".env").write_text("WANDB_API_KEY=planted-canary")
    return desk


def test_a_job_is_sent_stopped_and_gone_on_with(ray_head: Head, desk: Path, tmp_path: Path) -> None:
    there = ("--address", ray_head.dashboard)
    sent = call(desk, "submit", *there, "--no-wait", "--json", "--", "train", "run.yaml", "name=mine")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout) == {
        "job": "sftray-mine",
        "run": "mine",
        "address": ray_head.dashboard,
        "exit_code": None,
    }
    said = sent.stderr
    assert (
        "sent: run.yaml" in said and "sent: train.jsonl" in said and "sent: sftray, as it is installed here" in said
    )
    run_dir = tmp_path / "store" / "mine"
    wait_until(lambda: (run_dir / "metrics.jsonl").exists() and len(read_metrics(run_dir)) > 3, 180)
    again = call(desk, "submit", *there, "--no-wait", "--", "train", "run.yaml", "name=mine")
    assert again.returncode == 0 and "sftray-mine runs already" in again.stderr + again.stdout
    other = call(desk, "submit", *there, "--", "train", "run.yaml", "name=mine", "optim.learning_rate=1.0")
    assert other.returncode == 2 and "job sftray-mine runs, and does something else" in other.stderr, other.stderr
    status = call(desk, "status", "mine", *there, "--json")
    assert json.loads(status.stdout)["state"] == "running"
    assert call(desk, "stop", "mine", *there).returncode == 0
    log = call(desk, "logs", "mine", "-f", *there)
    assert log.returncode == 75, log.stdout + log.stderr
    assert log.stdout.rstrip().endswith("sftray has ended with exit code 75")
    assert "attempt 1 started on " in log.stdout and "step 3/60000" in log.stdout and "SIGTERM: saving" in log.stdout
    stopped = read_events(run_dir)[-1]
    assert stopped["state"] == "stopped"
    refused = call(desk, "submit", *there, "--", "train", "run.yaml", "name=mine")
    assert refused.returncode == 2 and "job sftray-mine was sent before" in refused.stderr

    for name in ("train.jsonl", "validation.jsonl"):
        (desk / name).unlink()  # the store has them
    steps = f"train.max_steps={stopped['step'] + 5}"
    resumed = call(desk, "submit", *there, "--json", "--", "resume", str(run_dir), steps)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert json.loads(resumed.stdout)["exit_code"] == 0 and "attempt 2 resumed at step" in resumed.stderr
    assert read_events(run_dir)[-1]["state"] == "finished"
    assert read_metrics(run_dir)[-1]["step"] == stopped["step"] + 5
    kept = str(load_config(run_dir / "config.yaml").config.data.train)
    assert str(tmp_path / "store" / "tokens" / "inputs") in kept
    assert not find_text(tmp_path / "store", "planted-canary")


def find_text(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_plain_ray_does_as_well(ray_head: Head, desk: Path, tmp_path: Path) -> None:
    """The README's line, from a folder of which Ray takes all."""
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "900"}})
    options = ("--address", ray_head.dashboard, "--working-dir", ".", "--runtime-env-json", environment)
    asked = ("sftray", "train", "run.yaml", f"store.path={tmp_path}/store", "name=plain", "train.max_steps=3")
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", *options, "--", *asked],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "step 3/3" in done.stdout, done.stdout + done.stderr
    assert read_events(tmp_path / "store" / "plain")[-1]["state"] == "finished"


@pytest.mark.parametrize(
    ("environment", "address", "code", "said"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, None, 5, "wants another token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, None, 5, "wants another token"),
        ({}, "http://127.0.0.1:9", 5, "no job server at http://127.0.0.1:9"),
        ({}, "", 2, "no cluster is named"),
    ],
)
def test_a_cluster_that_does_not_take_it_is_told(
    environment: dict[str, str], address: str | None, code: int, said: str, ray_head: Head, desk: Path
) -> None:
    there = ["--address", address or ray_head.dashboard] if address != "" else []
    sent = call(desk, "submit", *there, "--", "train", "run.yaml", **environment)
    assert sent.returncode == code and said in sent.stderr, sent.stderr
