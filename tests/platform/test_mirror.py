"""Following the files of a run while real writers write them."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from sftray.platform.mirror import Follower, Row
from sftray.train_fn.journal import EVENTS, METRICS, Journal, read_lines


class Recorder:
    """A mirror that remembers."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.state: str | None = None
        self.thread_names: set[str] = set()

    def on_metrics(self, row: Row) -> None:
        self.thread_names.add(threading.current_thread().name)
        self.calls.append(row["step"])

    def on_event(self, row: Row) -> None:
        self.calls.append(row["state"])

    def close(self, state: str) -> None:
        assert self.state is None
        self.state = state


class Failing(Recorder):
    """A mirror that fails from its second row on."""

    def on_metrics(self, row: Row) -> None:
        super().on_metrics(row)
        if len(self.calls) > 1:
            raise OSError("no route to host")


def add_row(journal: Journal, step: int) -> None:
    """As the worker does; the measured seconds make rows differ that fall into one millisecond."""
    row = {"step": step, "train/loss": 1.0 / (step + 1), "perf/step_seconds": time.perf_counter()}
    journal.add_metrics({**row, "time": round(time.time(), 3)})


@pytest.mark.slow
def test_rows_arrive_while_a_process_writes_them(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from sftray.train_fn.journal import Journal
        journal = Journal(Path(sys.argv[1]))
        for line in sys.stdin:
            journal.add_metrics({"step": int(line), "time": time.time()})
    """
    mirror = Recorder()
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Follower(tmp_path, [mirror]), subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        for step in range(5):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            wait_until(lambda step=step: mirror.calls == list(range(step + 1)))
    assert mirror.thread_names == {"run-follower"}


def test_events_and_rows_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    events = [{"state": "running", "time": 10.0}, {"state": "checkpoint", "time": 12.0}]
    rows = [{"step": 1, "time": 11.0}, {"step": 2, "time": 13.0}]
    for name, values in ((EVENTS, events), (METRICS, rows)):
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    mirror = Recorder()
    with Follower(tmp_path, [mirror], replay=True):
        pass
    assert mirror.calls == ["running", 1, "checkpoint", 2]


def test_leaving_hands_on_what_is_left_and_closes(tmp_path: Path) -> None:
    journal, mirror = Journal(tmp_path), Recorder()
    with Follower(tmp_path, [mirror]) as follower:
        for step in range(1000):
            add_row(journal, step)
        follower.state = "stopped"
    assert (mirror.calls, mirror.state) == (list(range(1000)), "stopped")


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_state_at_the_end(tmp_path: Path, error: type[BaseException] | None, state: str) -> None:
    mirror = Recorder()
    try:
        with Follower(tmp_path, [mirror]):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert mirror.state == state


@pytest.mark.slow
def test_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    mirror, path = Recorder(), tmp_path / METRICS
    with Follower(tmp_path, [mirror]), path.open("ab", buffering=0) as file:
        file.write(b'{"step": 1}\n{"step": 2, "te')
        wait_until(lambda: mirror.calls == [1])
        file.write('xt": "é'.encode()[:-1])  # torn inside a character
        Journal(tmp_path).add_event("checkpoint", 1)  # both files are looked at together
        wait_until(lambda: mirror.calls == [1, "checkpoint"])
        file.write("é".encode()[-1:] + b'"}\n')
        wait_until(lambda: mirror.calls == [1, "checkpoint", 2])


def test_rewind_hands_on_each_step_written_anew_and_none_twice(tmp_path: Path) -> None:
    journal, mirror = Journal(tmp_path), Recorder()
    with Follower(tmp_path, [mirror]):
        for step in range(1, 6):
            add_row(journal, step)
        wait_until(lambda: len(mirror.calls) == 5)
        journal.rewind(3)
        add_row(journal, 4)
        wait_until(lambda: len(mirror.calls) == 6)
        journal.rewind(3)
        for step in range(4, 9):  # longer than it was
            add_row(journal, step)
    assert mirror.calls == [1, 2, 3, 4, 5, 4, 4, 5, 6, 7, 8]


def test_rewind_to_the_beginning_and_on(tmp_path: Path) -> None:
    journal, mirror = Journal(tmp_path), Recorder()
    with Follower(tmp_path, [mirror]):
        add_row(journal, 0)
        wait_until(lambda: mirror.calls == [0])
        journal.rewind(0)
        add_row(journal, 0)
    assert mirror.calls == [0, 0]


def test_file_cut_in_place_is_read_from_its_start(tmp_path: Path) -> None:
    journal, mirror = Journal(tmp_path), Recorder()
    with Follower(tmp_path, [mirror]):
        for step in (1, 2):
            add_row(journal, step)
        wait_until(lambda: mirror.calls == [1, 2])
        os.truncate(tmp_path / METRICS, 0)
        add_row(journal, 1)
    assert mirror.calls == [1, 2, 1]


def test_history_of_a_resumed_run_is_not_handed_on(tmp_path: Path) -> None:
    journal, mirror = Journal(tmp_path), Recorder()
    journal.add_event("running", 1)
    for step in range(1, 6):
        add_row(journal, step)
    with Follower(tmp_path, [mirror]):
        journal.rewind(3)
        journal.add_event("running", 2)
        add_row(journal, 4)
    assert mirror.calls == ["running", 4]


def test_failing_mirror_is_turned_off_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, failing, healthy = Journal(tmp_path), Failing(), Recorder()
    with caplog.at_level(logging.WARNING), Follower(tmp_path, [failing, healthy]):
        journal.add_event("running", 3)
        for step in range(4):
            add_row(journal, step)
        wait_until(lambda: "mirror_off" in healthy.calls)
    assert failing.calls == ["running", 0]
    assert failing.state == "finished"
    assert healthy.calls == ["running", 0, 1, 2, 3, "mirror_off"]
    assert [record.message for record in caplog.records] == [
        "a mirror is off, and the run goes on: Failing: OSError: no route to host"
    ]
    event = list(read_lines(tmp_path / EVENTS))[-1]
    assert (event["state"], event["attempt"], event["why"]) == (
        "mirror_off",
        3,
        "Failing: OSError: no route to host",
    )


def test_mirror_that_fails_in_closing_hurts_no_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FailsInClosing(Recorder):
        def close(self, state: str) -> None:
            raise RuntimeError("late")

    healthy = Recorder()
    with Follower(tmp_path, [FailsInClosing(), healthy]):
        pass
    assert healthy.state == "finished"
    assert "RuntimeError: late" in caplog.text


def test_hanging_mirror_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sftray.platform.mirror.LEAVE_SECONDS", 0.3)
    release = threading.Event()

    class Hanging(Recorder):
        def on_metrics(self, row: Row) -> None:
            release.wait(60)

    journal, started = Journal(tmp_path), time.monotonic()
    with Follower(tmp_path, [Hanging()]):
        add_row(journal, 1)
    release.set()
    assert time.monotonic() - started < 5
    assert "has hung" in caplog.text


@pytest.mark.parametrize("line", [b"\0\0\0\0\n", b"{'step': 1}\n", b"[1]\n", b"\xff\n"])
def test_line_that_is_no_row_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes) -> None:
    mirror = Recorder()
    with Follower(tmp_path, [mirror]), (tmp_path / METRICS).open("ab", buffering=0) as file:
        file.write(line)
        file.write(json.dumps({"step": 2}).encode() + b"\n")
    assert mirror.calls == [2]
    assert len(caplog.records) == 1


def test_row_without_its_step_costs_the_mirror_and_not_the_run(tmp_path: Path) -> None:
    mirror = Recorder()
    with Follower(tmp_path, [mirror]):
        (tmp_path / METRICS).write_text('{"loss": 1}\n')
    assert mirror.state == "finished"
