"""The recipe for Slurm on a real Slurm of two nodes: stopped, it saves and ends with 75; resumed, it finishes."""

import os
from pathlib import Path

import pytest
from slurm import ROOT, Slurm, run_slurm
from tiny_runs import build_config, read_events
from waiting import wait_until

from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.system]

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


def follow(slurm: Slurm, job: str) -> tuple[str, str]:
    """The state and the exit code (`code:signal`) of a job, once it is over and its nodes are free."""
    wait_until(lambda: slurm.describe(job)["JobState"] in OVER, 150)
    wait_until(lambda: len(slurm.list_idle_nodes()) == 2, 30)
    known = slurm.describe(job)
    return known["JobState"], known["ExitCode"]


def test_a_job_saves_when_it_is_told_that_its_time_is_over_and_started_again_it_finishes(tmp_path: Path) -> None:
    train = {"epochs": 100, "save_every": 20, "eval_every": 20}
    config = build_config(tmp_path, train=train, scaling={"placement": "spread"})
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
    run_dir, out = tmp_path / "runs" / "mine", tmp_path / "out"
    (tmp_path / "slurm").mkdir()
    with run_slurm(tmp_path / "slurm", "left", "right", cpus=2) as slurm:
        job = send(slurm, tmp_path, "train", "run.yaml", f"store.path={tmp_path}/runs", "name=mine")

        def has_saved() -> bool:
            assert slurm.describe(job)["JobState"] not in OVER, out.read_text()
            return bool(list_checkpoints(run_dir / "checkpoints"))

        wait_until(has_saved, 150)
        (running,) = (event for event in read_events(run_dir) if event["state"] == "running")
        assert sorted(running["nodes"]) == ["left", "right"]
        assert all(os.sched_getaffinity(pid) == os.sched_getaffinity(0) for pid in running["pids"])
        slurm.ask("scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM has Slurm do
        assert follow(slurm, job) == ("FAILED", "75:0"), out.read_text()
        events = read_events(run_dir)
        assert events[-1]["state"] == "stopped"
        slurm.ask("scontrol", "requeue", job)
        assert follow(slurm, job) == ("COMPLETED", "0:0"), out.read_text()
        assert (
            read_events(run_dir)[-1]["state"] == "finished"
            and f"resumed at step {events[-1]['step']}" in out.read_text()
        )
        assert slurm.ask("srun", "--nodes=2", "find", "/tmp", "-maxdepth", "1", "-name", "sftray-*") == ""
