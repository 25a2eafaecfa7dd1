"""What goes on in a store that is at hand: told, followed and stopped."""

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console
from waiting import wait_until

from sftray.platform.cli import main
from sftray.platform.watch import describe_status, follow_log, read_status, stop_run
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, STOP, Journal
from sftray.train_fn.lease import hold_lease
from sftray.train_fn.store import connect_store


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that is in its fifth step of ten."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    journal = Journal(folder)
    journal.add_event("starting", 0, "1 worker(s) on CPU")
    journal.add_event("running", 1, step=0, total_steps=10)
    for step in range(1, 6):
        journal.add_metrics({"step": step, "progress": step / 10, "train/loss": 3.0 - step / 10, "time": float(step)})
    journal.add_metrics({"step": 5, "progress": 0.5, "val/loss": 2.75, "time": 5.5})
    journal.add_event("checkpoint", 1, step=5)
    return folder


def print_log(run_dir: Path, until_end: bool) -> str:
    out = io.StringIO()
    follow_log(run_dir, Console(file=out, width=200), until_end)
    return out.getvalue()


def test_a_run_that_is_driven_is_told_in_one_line(run_dir: Path) -> None:
    with hold_lease(connect_store(run_dir), "mine"):
        assert describe_status(read_status(run_dir)) == ["mine: running  step 5/10 (50%)  loss 2.500  val 2.750"]


def test_a_run_that_nobody_drives_any_more_says_how_to_go_on(run_dir: Path) -> None:
    lines = describe_status(read_status(run_dir))
    assert lines[1:] == [f"nothing drives it any more; to go on: sftray resume {run_dir}"]
    Journal(run_dir).add_event("finished", 1)
    assert describe_status(read_status(run_dir)) == ["mine: finished  step 5/10 (50%)  loss 2.500  val 2.750"]


def test_its_log_is_what_the_terminal_showed(run_dir: Path) -> None:
    lines = print_log(run_dir, until_end=False).splitlines()
    assert "attempt 1 started" in lines and "checkpoint saved at step 5" in lines
    assert "step 5/10  loss 2.500  eta 0:05" in lines and lines[-1].startswith("checkpoint")


def test_a_log_is_followed_until_nobody_drives_the_run(run_dir: Path) -> None:
    printed: list[str] = []
    thread = threading.Thread(target=lambda: printed.append(print_log(run_dir, until_end=True)))
    with hold_lease(connect_store(run_dir), "mine"):
        thread.start()
        Journal(run_dir).add_event("finished", 1)
        assert thread.is_alive()
    thread.join(60)
    assert printed and printed[0].splitlines()[-1] == "finished"


def test_a_run_is_told_to_stop_and_waited_for(run_dir: Path) -> None:
    told: list[str] = []
    with hold_lease(connect_store(run_dir), "mine") as lease:
        thread = threading.Thread(target=lambda: stop_run(run_dir, told.append))
        thread.start()
        wait_until((run_dir / STOP).exists)
        assert (run_dir / STOP).read_text() == "sftray stop" and thread.is_alive() and not lease.is_lost.is_set()
        Journal(run_dir).add_event("stopped", 1, "sftray stop", step=5)
    thread.join(60)
    assert not thread.is_alive() and told == ["mine is asked to save and stop"]
    assert read_status(run_dir).why == "sftray stop"


def test_what_does_not_run_cannot_be_stopped(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="mine is not running"):
        stop_run(run_dir, print)
    assert not (run_dir / STOP).exists()


def test_the_commands(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(run_dir.parent)]
    assert main(["status", "mine", *store, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["is_driven"], facts["total_steps"], facts["latest"]["step"]) == (
        "running",
        False,
        10,
        5,
    )
    assert main(["logs", "mine", *store]) == 0
    assert "step 5/10" in capsys.readouterr().out
    assert main(["stop", "mine", *store]) == 2
    assert "mine is not running" in capsys.readouterr().err
    assert main(["status", "other", *store]) == 2
