"""A sweep of the real command on a cluster of two CPUs of its own; its driver is killed, and `resume` ends it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from tiny_runs import build_config, read_events
from tiny_sweeps import read_results, read_states

from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = pytest.mark.ray

SPACE = "train.gradient_accumulation_steps: {grid: [1, 2, 4]}\noptim.learning_rate: {value: 1.0e-2}\n"


def prepare(folder: Path) -> list[str]:
    folder.mkdir()
    changes: dict[str, Any] = {"train": {"epochs": 3}, "scaling": {"num_workers": 1, "use_gpu": False}}
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    (folder / "space.yaml").write_text(SPACE)
    return ["tune", "run.yaml", "--space", "space.yaml", "--scheduler", "none", "--json", "name=swept"]


def test_a_killed_driver_loses_nothing(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start_command(straight, *prepare(straight))
    assert process.wait(300) == 0, read_output(straight)
    process = start_command(killed, *prepare(killed))
    sweep_dir = killed / "runs" / "swept"
    wait_for(lambda: list_checkpoints(sweep_dir / "trial-001" / "checkpoints"), process, killed)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_events(sweep_dir / "trial-001")[-1]["state"] != "finished"
    process = start_command(killed, "resume", str(sweep_dir), "--json")
    assert process.wait(300) == 0, read_output(killed)
    assert read_results(sweep_dir) == read_results(straight / "runs" / "swept")
    assert set(read_states(sweep_dir).values()) == {"finished"}
    assert len(read_ledger(sweep_dir)) == 3
