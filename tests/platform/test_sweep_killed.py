"""A sweep of the real command on a cluster of two CPUs of its own: stopped, killed, and ended by `resume`."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from local_runs import build_job, run_here
from tiny_runs import build_config, read_events, trace
from tiny_sweeps import read_result, read_results, read_states

from sftray.platform.sweep import EVALUATIONS
from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.tune_spaces.halving import plan_evaluations

pytestmark = pytest.mark.ray

SPACE = "train.gradient_accumulation_steps: {grid: [1, 2, 4]}\noptim.learning_rate: {value: 1.0e-2}\n"


def prepare(folder: Path) -> list[str]:
    changes: dict[str, Any] = {"train": {"epochs": 15}, "scaling": {"num_workers": 1, "use_gpu": False}}
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    (folder / "space.yaml").write_text(SPACE)
    return ["tune", "run.yaml", "--space", "space.yaml", "--scheduler", "none", "--json", "name=swept"]


def run_straight(sweep_dir: Path, folder: Path) -> list[Any]:
    """The results of the sweep's trials, each run again in this process with nothing in its way."""
    results = []
    for record in read_ledger(sweep_dir):
        config = load_config(sweep_dir / record.name / "config.yaml").config
        job = build_job(config, folder, record.name, evaluations=plan_evaluations(EVALUATIONS))
        run_here(job)
        results.append(read_result(record, Path(job["run_dir"])))
    return sorted(results, key=lambda result: result[:2])


def test_a_sweep_that_is_stopped_and_then_killed_loses_nothing(tmp_path: Path) -> None:
    process = start_command(tmp_path, *prepare(tmp_path))
    sweep_dir = tmp_path / "runs" / "swept"
    first, second = sweep_dir / "trial-000", sweep_dir / "trial-001"
    wait_for(lambda: (first / "metrics.jsonl").exists(), process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, read_output(tmp_path)
    assert "SIGTERM: saving at the end of this step" in read_output(tmp_path)
    stopped = read_events(first)[-1]
    assert (stopped["state"], stopped["step"]) == ("stopped", trace(first)[-1][0]), "all is saved"
    process = start_command(tmp_path, "resume", str(sweep_dir), "--json")
    wait_for(lambda: list_checkpoints(second / "checkpoints"), process, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_events(second)[-1]["state"] != "finished"
    process = start_command(tmp_path, "resume", str(sweep_dir), "--json")
    assert process.wait(300) == 0, read_output(tmp_path)
    assert read_results(sweep_dir) == run_straight(sweep_dir, tmp_path / "straight")
    assert set(read_states(sweep_dir).values()) == {"finished"}
    assert len(read_ledger(sweep_dir)) == 3
