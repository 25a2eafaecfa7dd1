"""A sweep in the terminal while it runs: plain lines in a log, a live table on a terminal."""

import io
import re
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console
from run_dirs import log_step, write_run
from sweep_dirs import KEYS, write_sweep
from waiting import wait_until

from sftray.platform.leaderboard import load_leaderboard
from sftray.platform.sweep_files import LEDGER, TrialRecord, add_trial, read_ledger
from sftray.platform.sweep_progress import SweepProgress, build_live_table
from sftray.platform.sweep_watch import watch_trial
from sftray.train_fn.journal import EVENTS

POINT = {KEYS[0]: 3e-4, KEYS[1]: 4}


def follow(folder: Path, terminal: bool = False, width: int = 140) -> tuple[SweepProgress, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=30, force_terminal=terminal, color_system=None)
    return SweepProgress(console, folder, 8), file


def appear(folder: Path, scheduler: Literal["asha", "pbt"] = "asha") -> None:
    """A whole sweep is there from one moment to the next."""
    write_sweep(folder.parent / "made", scheduler=scheduler).rename(folder)


def show(folder: Path, width: int) -> list[str]:
    trials = [watch_trial(folder, record) for record in read_ledger(folder)]
    for trial in trials:
        trial.look()
    console = Console(file=io.StringIO(), width=width)
    console.print(build_live_table(trials, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.slow
def test_a_log_gets_one_line_for_each_thing_that_happens(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    progress, file = follow(folder)
    with progress:
        appear(folder)
    lines = file.getvalue().splitlines()
    for each in load_leaderboard(folder):
        own = [line.partition("  ")[2] for line in lines if line.startswith(each.record.name)]
        assert re.fullmatch(r"started  learning_rate \S+, gradient_accumulation_steps \d", own[0])
        assert own[1].startswith("progress 12%  val ")
        assert own[-1].startswith(each.state) and own[-1].endswith(each.why)
    assert len([line for line in lines if line.startswith("trial-004  progress ")]) == 8


@pytest.mark.slow
def test_a_line_is_out_before_the_sweep_ends(tmp_path: Path) -> None:
    progress, file = follow(tmp_path)
    with progress:
        add_trial(tmp_path, TrialRecord(0, "search", POINT, 1))
        journal = write_run(tmp_path, "trial-000")
        wait_until(lambda: "trial-000  started" in file.getvalue())
        log_step(journal, 10, 1.0, val_loss=2.31, milestone=0.25)
        wait_until(lambda: "trial-000  progress 25%  val 2.310\n" in file.getvalue())


def test_what_was_there_before_is_counted_and_not_told_again(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=8)
    progress, file = follow(folder)
    with progress:
        pass
    assert file.getvalue() == "before: 8 trials (2 finished, 5 pruned, 1 failed)\n"


def test_a_follower_names_its_donor_and_its_new_settings(tmp_path: Path) -> None:
    progress, file = follow(tmp_path / "sweep")
    with progress:
        appear(tmp_path / "sweep", "pbt")
    assert re.search(r"trial-\d+  exploited; now learning_rate \S+", file.getvalue())


def test_a_terminal_gets_a_table_and_failures_above_it(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    progress, file = follow(folder, terminal=True)
    with progress:
        appear(folder)
    last = file.getvalue().rpartition("8 trials (2 finished, 5 pruned, 1 failed) of 8; ")[2]
    assert all(record.name in last for record in read_ledger(folder))
    assert f"best {load_leaderboard(folder)[0].loss:.3f}" in last
    assert re.search(r"trial-001  failed: torch.OutOfMemoryError", file.getvalue())
    assert "started" not in file.getvalue()


@pytest.mark.parametrize(("width", "has"), [(80, ()), (100, ("best", "eta")), (140, ("best", "eta", "tokens/s"))])
def test_a_narrow_terminal_gets_fewer_columns(tmp_path: Path, width: int, has: tuple[str, ...]) -> None:
    folder = write_sweep(tmp_path, trials=4)
    lines = show(folder, width)
    assert max(map(len, lines)) <= width
    assert [name for name in ("best", "eta", "tokens/s") if name in "".join(lines)] == list(has)
    assert all(any(line.startswith(record.name) for line in lines) for record in read_ledger(folder))


def test_the_remaining_time_follows_from_the_last_rows(tmp_path: Path) -> None:
    record = TrialRecord(0, "search", POINT, 1)
    journal = write_run(tmp_path, record.name)
    trial = watch_trial(tmp_path, record)
    later = 4e9  # after the events, which have the time of now
    log_step(journal, 10, later, train_loss=2.0)
    trial.look()
    assert trial.remaining is None
    log_step(journal, 20, later + 30, train_loss=1.9)
    trial.look()
    assert (trial.progress, trial.remaining) == (0.5, 60.0)
    journal.add_event("finished", 1, step=40)
    trial.look()
    assert trial.remaining is None


def test_a_loss_that_is_no_number_is_shown_and_never_the_best(tmp_path: Path) -> None:
    record = TrialRecord(0, "search", POINT, 1)
    journal = write_run(tmp_path, record.name)
    trial = watch_trial(tmp_path, record)
    for step, loss in ((5, float("nan")), (10, 2.0), (15, float("nan"))):
        log_step(journal, step, 4e9 + step, val_loss=loss, milestone=step / 40)
    assert [line.rpartition(" ")[2] for line in trial.look()[1:]] == ["nan", "2.000", "nan"]
    assert trial.best == 2.0


def test_what_fails_in_a_look_reaches_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LEDGER).mkdir()  # the ledger cannot be read
    progress, file = follow(tmp_path)
    with progress:
        pass
    assert file.getvalue() == ""
    assert [record.getMessage() for record in caplog.records if "look at the sweep failed" in record.getMessage()]


def test_one_trial_that_cannot_be_told_hides_no_other(tmp_path: Path) -> None:
    progress, file = follow(tmp_path)
    with progress:
        for number in (0, 1):
            add_trial(tmp_path, TrialRecord(number, "search", POINT, 1))
            journal = write_run(tmp_path, f"trial-00{number}")
            if number == 0:
                log_step(journal, 5, 1.0, val_loss=2.0, milestone=0.125)
                (journal.folder / EVENTS).write_text('{"no": "state", "time": "soon"}\n')
    assert "trial-001  started" in file.getvalue()


def test_trials_are_counted_in_every_state_there_is() -> None:
    from sftray.platform.sweep_gauges import STATES, count_states

    counts = count_states(["running", "finished", "finished"])
    assert (counts["running"], counts["finished"], counts["failed"]) == (1, 2, 0) and set(counts) == set(STATES)
