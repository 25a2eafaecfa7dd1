"""When a worker counts as frozen, and what it leaves behind then."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import read_events
from waiting import wait_until

from sftray.train_fn.attempts import open_attempt
from sftray.train_fn.journal import Journal
from sftray.train_fn.standing import Phase, Standing
from sftray.train_fn.store import connect_store
from sftray.train_fn.watchdog import Fuses, compute_fuse, describe_wait, has_overslept, judge, run_watchdog

FUSES = Fuses()


@pytest.mark.parametrize(
    ("phase", "durations", "seconds"),
    [
        ("loading", [], 3600),
        ("starting", [], 600),
        ("step", [], 600),  # the first one may compile
        ("step", [0.2], 30),
        ("step", [4.0, 5.0, 900.0], 50),  # ten times the median
        ("evaluating", [0.2], 600),
        ("between", [0.2], 3600),
    ],
)
def test_what_is_done_has_a_fuse_of_its_own(phase: Phase, durations: list[float], seconds: float) -> None:
    assert compute_fuse(FUSES, phase, durations) == seconds


@pytest.mark.parametrize(
    ("waited", "waits_for_others", "verdict"),
    [
        (30.0, False, "fine"),
        (30.1, False, "end"),
        (30.1, True, "dump"),
        (60.0, True, "dump"),
        (60.1, True, "end"),
    ],
)
def test_one_that_waits_for_another_gets_more_time(waited: float, waits_for_others: bool, verdict: str) -> None:
    assert judge(waited, 30.0, 30.0, waits_for_others) == verdict


@pytest.mark.parametrize(("slept", "overslept"), [(1.0, False), (4.9, False), (5.1, True), (36000.0, True)])
def test_a_machine_that_slept_is_no_frozen_thread(slept: float, overslept: bool) -> None:
    assert has_overslept(slept, 1.0) == overslept


def test_the_words_say_what_takes_how_long_and_where() -> None:
    standing = Standing(0, 1, 1, step=12, phase="step")
    standing.durations.extend([0.1, 0.2, 0.2])
    assert describe_wait(standing, 31.4, None) == "step 13 has taken 31 s, usually 0.2 s"
    here = sys._getframe()
    said = describe_wait(Standing(0, 1, 1), 4000.0, here)
    assert said.startswith("loading the model has taken 4000 s, in test_watchdog.py:")
    assert said.endswith(" test_the_words_say_what_takes_how_long_and_where")


def test_standing_counts_steps_and_batches() -> None:
    standing = Standing(0, 1, 1)
    standing.begin("step")
    standing.finish_step(1)
    assert (standing.step, standing.phase, len(standing.durations)) == (1, "between", 1)
    phases = [standing.phase for _ in standing.watch_batches("ab")]
    assert phases == ["evaluating", "evaluating"] and standing.phase == "between"


STUCK = """
import sys, threading
from pathlib import Path
from sftray.train_fn.journal import Journal
from sftray.train_fn.standing import Standing
from sftray.train_fn.watchdog import Fuses, run_watchdog

def hang_here():
    threading.Lock().acquire()
    lock = threading.Lock()
    lock.acquire()
    print("stuck", flush=True)
    lock.acquire()

standing = Standing(rank=1, world_size=2, attempt=2)
fuses = Fuses(step=float(sys.argv[2]), factor=2.0, look=0.05)
with run_watchdog(standing, Journal(Path(sys.argv[1])), fuses):
    for step in range(1, 4):
        standing.begin("step")
        standing.finish_step(step)
    standing.begin("step")
    hang_here()
"""


def start_stuck(folder: Path, fuse: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", STUCK, str(folder), str(fuse)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "stuck\n"
    return process


@pytest.mark.slow
def test_a_thread_that_hangs_ends_its_process_and_leaves_the_stacks(tmp_path: Path) -> None:
    with start_stuck(tmp_path, 0.5) as process:
        assert process.wait(30) == -signal.SIGKILL
    (event,) = read_events(tmp_path)
    assert (event["state"], event["attempt"], event["rank"], event["step"]) == ("frozen", 2, 1, 3)
    assert event["why"].startswith("step 4 has taken ") and event["why"].endswith(" hang_here")
    stacks = (tmp_path / event["file"]).read_text()
    assert event["file"] == "stacks/attempt-2-rank-1.txt" and "in hang_here" in stacks


@pytest.mark.slow
def test_a_process_that_is_stopped_and_goes_on_is_let_live(tmp_path: Path) -> None:
    fuse = 3.0
    with start_stuck(tmp_path, fuse) as process:
        os.kill(process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() - stopped > fuse + 0.5)
        os.kill(process.pid, signal.SIGCONT)
        went_on = time.monotonic()
        assert process.wait(30) == -signal.SIGKILL
        assert time.monotonic() - went_on > fuse * 0.9  # counted anew
    assert len(read_events(tmp_path)) == 1


OVERTAKEN = """
import sys, threading
from pathlib import Path
from sftray.train_fn.attempts import open_attempt
from sftray.train_fn.journal import Journal
from sftray.train_fn.standing import Standing
from sftray.train_fn.store import connect_store
from sftray.train_fn.watchdog import Fuses, run_watchdog

folder = Path(sys.argv[1])
standing = Standing(rank=0, world_size=1, attempt=1)
with run_watchdog(standing, Journal(folder), Fuses(successor=0.05)):
    standing.attempt = open_attempt(connect_store(folder), "mine")
    standing.begin(sys.argv[2])
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "status"), [("step", -signal.SIGKILL), ("loading", 0)])
def test_one_that_a_newer_attempt_has_overtaken_ends_itself(phase: str, status: int, tmp_path: Path) -> None:
    """But not while it loads, when its number is not known yet."""
    command = [sys.executable, "-c", OVERTAKEN, str(tmp_path), phase]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "at work\n"
        assert open_attempt(connect_store(tmp_path), "mine") == 2
        if status == 0:
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 0.5)  # ten looks
            process.stdin.close()
        assert process.wait(30) == status
    assert not (tmp_path / "events.jsonl").exists()


@pytest.mark.slow
def test_what_goes_on_is_not_ended_and_the_watch_ends_with_the_run(tmp_path: Path) -> None:
    standing = Standing(0, 1, 1)
    with run_watchdog(standing, Journal(tmp_path), Fuses(step=0.5, factor=1.0, look=0.02)):
        for step in range(1, 30):
            standing.begin("step")
            wait_until(lambda began=standing.since: time.monotonic() - began > 0.05)  # type: ignore[misc]
            standing.finish_step(step)
    assert list(tmp_path.iterdir()) == []  # and this process lives
    standing.since -= 3600.0
    with run_watchdog(standing, Journal(tmp_path), None):
        pass
