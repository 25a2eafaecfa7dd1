"""Drivers that die, that meet, and stores that go away, with the real command and real Ray."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from outcomes import Outcome, record
from processes import list_processes
from short_runs import count_steps, end_run, find_drafts, newest_of, start_run
from tiny_runs import build_config, read_events, read_metrics

from sftray.platform.ledger_check import check_ledger
from sftray.platform.rehearsal import hash_state, read_values
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.journal import CHECKPOINTS

pytestmark = pytest.mark.ray

CHANGES = {"train": {"epochs": 15, "save_every": 2, "eval_every": 0}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 steps of two workers that nothing happened to, in plain processes: with Ray they have the same bits."""
    job = start_run(tmp_path_factory.mktemp("straight"), 2, **CHANGES)
    end_run(job, 2)
    return Path(job["run_dir"])


def begin(folder: Path, address: str, epochs: int = 15) -> tuple[Path, "subprocess.Popen[bytes]"]:
    config = build_config(folder, train={**CHANGES["train"], "epochs": epochs})
    (folder / "run.yaml").write_text(dump_config(Resolved(config, {})))
    return folder / "runs" / "run", start_command(folder, "train", "run.yaml", "name=run", address=address)


def resume(run_dir: Path, folder: Path, address: str) -> float:
    """Resume to the end; seconds from the command's start to the first new step."""
    started = time.time()
    process = start_command(folder, "resume", str(run_dir), address=address)
    assert process.wait(300) == 0, read_output(folder)
    return next(row["time"] for row in read_metrics(run_dir) if row["time"] > started) - started


def assert_straight(run_dir: Path, straight: Path) -> bool:
    assert check_ledger(run_dir).holds
    return hash_state(run_dir) == hash_state(straight) and read_values(run_dir) == read_values(straight)


def is_saving(run_dir: Path) -> bool:
    return count_steps(run_dir) >= 4 and bool(find_drafts(run_dir))


def test_a_driver_killed_in_the_middle_of_a_save(straight: Path, ray_address: str, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, ray_address)
    wait_for(lambda: is_saving(run_dir), process, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = count_steps(run_dir)
    seconds = resume(run_dir, tmp_path, ray_address)
    start = [event["step"] for event in read_events(run_dir) if event["state"] == "running"][-1]
    equal = assert_straight(run_dir, straight)
    fault, saw = "SIGKILL in a save, then resume", "where it is resumed"
    record(Outcome("driver", fault, 1, saw, int(equal), max(reached - start, 0), seconds))
    assert equal


@pytest.mark.chaos
def test_the_controller_killed(straight: Path, ray_address: str, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, ray_address)
    wait_for(lambda: count_steps(run_dir) >= 5, process, tmp_path)
    os.kill(find_controller(), signal.SIGKILL)
    assert process.wait(120) == 5, read_output(tmp_path)
    assert f"sftray resume {run_dir}" in read_output(tmp_path)
    seconds = resume(run_dir, tmp_path, ray_address)
    equal = assert_straight(run_dir, straight)
    saw = "the process that directs the workers was lost; the command that goes on"
    record(Outcome("driver", "SIGKILL of Ray Train's controller, then resume", 1, saw, int(equal), None, seconds))
    assert equal


def find_controller() -> int:
    """Ray names the process of an actor after it: `ray::TrainController`."""
    (pid,) = [process.pid for process in list_processes() if process.command.startswith("ray::TrainController")]
    return pid


@pytest.mark.chaos
def test_two_drivers_of_one_run(ray_address: str, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, ray_address, epochs=10_000)
    wait_for(lambda: count_steps(run_dir) >= 5, process, tmp_path)
    (tmp_path / "second").mkdir()
    second = start_command(tmp_path / "second", "resume", str(run_dir), address=ray_address)
    assert second.wait(60) == 2, read_output(tmp_path / "second")
    said = read_output(tmp_path / "second")
    assert f"driven by process {process.pid}" in said
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, read_output(tmp_path)
    record(Outcome("driver", "a second driver of a living run", 1, "exit 2: who drives it, since when", 1))


@pytest.mark.parametrize("name", ["checkpoint_manager_snapshot.json", ".validate_storage_marker"])
@pytest.mark.chaos
def test_torn_state_of_ray(name: str, straight: Path, ray_address: str, tmp_path: Path) -> None:
    run_dir, process = begin(tmp_path, ray_address)
    wait_for(lambda: is_saving(run_dir), process, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run_dir / name).write_text('{"checkpoint_results": [{"checkp')
    seconds = resume(run_dir, tmp_path, ray_address)
    equal = assert_straight(run_dir, straight)
    record(Outcome("files", f"half of Ray's {name}, then resume", 1, "nothing", int(equal), None, seconds))
    assert equal


@pytest.mark.chaos
def test_a_store_that_refuses_for_a_while(straight: Path, ray_address: str, tmp_path: Path) -> None:
    """Training goes on until the next save is due, waits, and goes on when the store takes checkpoints again."""
    run_dir, process = begin(tmp_path, ray_address)
    place, kept = run_dir / CHECKPOINTS, run_dir / ".kept"
    wait_for(lambda: count_steps(run_dir) >= 5, process, tmp_path)
    place.rename(kept)
    place.write_text("in the way")
    wait_for(lambda: any(e["state"] == "store_refused" for e in read_events(run_dir)), process, tmp_path)
    place.unlink()
    kept.rename(place)
    assert process.wait(120) == 0, read_output(tmp_path)
    states = [event["state"] for event in read_events(run_dir)]
    assert "store_back" in states and states.count("running") == 1
    equal = assert_straight(run_dir, straight)
    saw = "the store refuses, it is tried again; then: it takes checkpoints again"
    record(Outcome("store", "the checkpoints' folder gone for a while", 1, saw, int(equal), 0))
    assert equal
    assert newest_of(run_dir).name == "step-000090"
