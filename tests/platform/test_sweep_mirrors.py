"""The trials of a sweep in W&B, with the real wandb, offline."""

import io
import os
import threading
from pathlib import Path

import pytest
from rich.console import Console
from run_dirs import log_step
from sweep_dirs import KEYS, write_trial
from waiting import wait_until
from wandb_probe import read_history, read_records

from sftray.platform.sweep_files import TrialRecord
from sftray.platform.sweep_mirrors import SweepMirrors
from sftray.platform.tracking import load_run_id
from sftray.train_fn.config import TrackingConfig
from sftray.train_fn.journal import Journal

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_wandb_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the settings nor the key of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    folder.mkdir()
    return folder


def mirror(sweep_dir: Path, wandb: str = "offline") -> tuple[SweepMirrors, io.StringIO]:
    file = io.StringIO()
    tracking = TrackingConfig.model_validate({"wandb": wandb})
    return SweepMirrors(sweep_dir, tracking, Console(file=file, width=300)), file


def begin(sweep_dir: Path, number: int, end: tuple[str, float] = ("finished", 0.1)) -> Path:
    record = TrialRecord(number, "search", {KEYS[0]: 1e-3 + number / 1e5, KEYS[1]: 4}, 1, None, 1.7e9)
    return write_trial(sweep_dir, record, end).folder


def test_each_trial_is_a_run_of_the_sweeps_group(sweep_dir: Path) -> None:
    watched, file = mirror(sweep_dir)
    with watched:
        folders = [begin(sweep_dir, 0), begin(sweep_dir, 1, ("pruned", 0.1))]
    for folder in folders:
        runs = [record.run for record in read_records(folder) if record.HasField("run")]
        names = {(run.run_id, run.display_name, run.run_group) for run in runs}
        assert names == {(load_run_id(folder), f"sweep/{folder.name}", "sweep")}
        assert [row["step"] for row in read_history(folder)] == [0, 1, 2, 3, 4]
        assert [r.exit.exit_code for r in read_records(folder) if r.HasField("exit")] == [0]
    told = file.getvalue()
    assert told.startswith("W&B: 10 row(s) of 2 trial(s) mirrored under the group sweep; to upload them: wandb sync ")
    assert told.count("\n") == 1


def test_a_trial_is_closed_when_it_ends_and_not_when_the_sweep_does(sweep_dir: Path) -> None:
    watched, _ = mirror(sweep_dir)
    with watched:
        folder = begin(sweep_dir, 0)
        wait_until(lambda: any(record.HasField("exit") for record in read_records(folder)))
        begin(sweep_dir, 1)


def test_those_that_find_no_room_wait_and_lose_nothing(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftray.platform.sweep_mirrors.MOST_OPEN", 1)
    watched, file = mirror(sweep_dir)
    with watched:
        folders = [begin(sweep_dir, number) for number in range(3)]
        wait_until(lambda: len(list(sweep_dir.glob("trial-002/wandb/offline-run-*"))) == 1)
    assert [len(read_history(folder)) for folder in folders] == [5, 5, 5]
    assert file.getvalue().startswith("W&B: 15 row(s) of 3 trial(s)")


def test_a_sweep_that_is_resumed_mirrors_what_is_new(sweep_dir: Path) -> None:
    folder = begin(sweep_dir, 0, ("interrupted", 0.1))
    watched, file = mirror(sweep_dir)
    with watched:
        journal = Journal(folder)
        journal.add_event("starting", 1)
        wait_until(lambda: any(thread.name == "run-follower" for thread in threading.enumerate()))
        log_step(journal, 5, 2e9, train_loss=1.0)
        journal.add_event("finished", 2)
    assert [row["step"] for row in read_history(folder)] == [5]
    assert file.getvalue().startswith("W&B: 1 row(s) of 1 trial(s)")


def test_nothing_is_mirrored_where_it_is_disabled(sweep_dir: Path) -> None:
    watched, file = mirror(sweep_dir, "disabled")
    with watched:
        folder = begin(sweep_dir, 0)
    assert (file.getvalue(), (folder / "wandb").exists()) == ("", False)
