"""The recipe for Slurm on a real Slurm of two nodes: stopped, it saves and ends with 75; put back into the queue, it
goes on from there; resumed by another job, it finishes."""

import os
from pathlib import Path
from typing import Any

import pytest
from slurm import ROOT, Slurm, run_slurm
from tiny_runs import build_config, read_events
from waiting import wait_until

from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.system, pytest.mark.chaos]

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
HELPERS = (
    "ALL,RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0,RAY_TRAIN_ENABLE_STATE_TRACKING=0"  # as tests/conftest.py has them
)
RECIPE = ROOT / "cluster" / "slurm.sh"


def send(slurm: Slurm, folder: Path, *command: str) -> str:
    """The recipe as it is, but for the size of the nodes; gives the job's number."""
    options = [
        "--parsable",
        "--cpus-per-task=2",
        f"--export={HELPERS}",
        f"--chdir={folder}",
        f"--output={folder}/out",
    ]
    return slurm.ask("sbatch", *options, str(RECIPE), *command)


def follow(slurm: Slurm, job: str, folder: Path) -> tuple[str, str]:
    """The state and the exit code (`code:signal`) of a job, once it is over and its nodes are free."""
    wait_until(lambda: slurm.describe(job)["JobState"] in OVER, 150)
    wait_until(lambda: len(slurm.list_idle_nodes()) == 2, 30)
    known = slurm.describe(job)
    return known["JobState"], known["ExitCode"]


def list_running(run_dir: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir) if event["state"] == "running"]


def test_a_job_saves_when_its_time_is_over_and_goes_on_in_the_queue_and_in_another(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train": {"epochs": 1000}, "scaling": {"placement": "spread"}}
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(build_config(tmp_path, **changes), {})))
    run_dir, checkpoints = tmp_path / "runs" / "mine", tmp_path / "runs" / "mine" / "checkpoints"
    (tmp_path / "slurm").mkdir()
    with run_slurm(tmp_path / "slurm", "left", "right", cpus=2) as slurm:
        job = send(slurm, tmp_path, "train", "run.yaml", f"store.path={tmp_path}/runs", "name=mine")

        def has_saved() -> bool:
            assert slurm.describe(job)["JobState"] not in OVER, (tmp_path / "out").read_text()
            return bool(list_checkpoints(checkpoints))

        wait_until(has_saved, 150)
        workers = list_running(run_dir)[0]["pids"]
        assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in workers}) == 2, "one on each node"
        assert all(os.sched_getaffinity(pid) == os.sched_getaffinity(0) for pid in workers)
        slurm.ask("scancel", "--batch", "--signal=TERM", job)  # as --signal=B:TERM has Slurm do
        assert follow(slurm, job, tmp_path) == ("FAILED", "75:0"), (tmp_path / "out").read_text()
        assert read_events(run_dir)[-1]["state"] == "stopped"
        step = max(each.step for each in list_checkpoints(checkpoints))
        slurm.ask("scontrol", "requeue", job)
        slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would let two minutes go by
        wait_until(lambda: len(list_running(run_dir)) == 2, 150)
        assert list_running(run_dir)[1]["step"] == step
        assert "attempt 1 started on" in (tmp_path / "out").read_text(), "what was said before is kept"
        slurm.ask("scancel", "--batch", "--signal=TERM", job)
        assert follow(slurm, job, tmp_path) == ("FAILED", "75:0"), (tmp_path / "out").read_text()
        step = max(each.step for each in list_checkpoints(checkpoints))
        job = send(slurm, tmp_path, "resume", str(run_dir), f"train.max_steps={step + 4}")
        assert follow(slurm, job, tmp_path) == ("COMPLETED", "0:0"), (tmp_path / "out").read_text()
        assert read_events(run_dir)[-1]["state"] == "finished"
        assert slurm.ask("srun", "--nodes=2", "find", "/tmp", "-maxdepth", "1", "-name", "sftray-*") == ""
