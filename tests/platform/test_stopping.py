"""A signal stops a run at the end of its step, and the run goes on from there as if nothing had been."""

import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from local_runs import build_job
from rich.console import Console
from tiny_runs import build_config, read_events, trace
from waiting import wait_until

from sftray.cluster.processes import run_processes
from sftray.platform.driver import resume_run
from sftray.platform.stopping import are_workers_at_work, ask_to_stop, run_stoppable
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.journal import CHECKPOINTS, STOP, Journal


def send(number: int) -> None:
    """The main thread's handler runs, whichever thread this is."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_asks_the_workers_and_waits_for_them(number: int, word: str, tmp_path: Path) -> None:
    file, told = tmp_path / STOP, list[str]()
    before = signal.getsignal(number)

    def run() -> str:
        send(number)
        wait_until(file.exists)
        return file.read_text()

    assert run_stoppable(run, file, lambda: True, told.append)[0] == word
    assert told == [f"{word}: saving at the end of this step; once more to leave at once"]
    assert not file.exists() and signal.getsignal(number) is before


def test_who_else_asks_for_a_stop_is_the_reason(tmp_path: Path) -> None:
    def run() -> str:
        ask_to_stop(tmp_path / STOP, "sftray stop")
        return "saved"

    result, request = run_stoppable(run, tmp_path / STOP, lambda: True, print)
    assert (result, request.reason) == ("saved", "sftray stop") and not (tmp_path / STOP).exists()


def test_where_nobody_could_save_a_signal_ends_it_at_once(tmp_path: Path) -> None:
    done = threading.Event()

    def run() -> None:
        send(signal.SIGTERM)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run_stoppable(run, tmp_path / STOP, lambda: False, print)
    done.set()
    assert not (tmp_path / STOP).exists()


def test_a_signal_that_is_passed_on_to_who_has_it_already_is_one(tmp_path: Path) -> None:
    """As make and timeout do: the group has it from the terminal, and they send it again."""

    def run() -> str:
        send(signal.SIGTERM)
        wait_until((tmp_path / STOP).exists)
        send(signal.SIGTERM)
        return "ended by itself"

    result, request = run_stoppable(run, tmp_path / STOP, lambda: True, lambda text: None)
    assert (result, request.reason) == ("ended by itself", "SIGTERM")


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    done = threading.Event()

    def run() -> None:
        send(signal.SIGTERM)
        wait_until((tmp_path / STOP).exists)
        send(signal.SIGINT)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        run_stoppable(run, tmp_path / STOP, lambda: True, lambda text: None)
    done.set()


def test_without_a_signal_it_is_the_function_and_its_errors(tmp_path: Path) -> None:
    (tmp_path / STOP).write_text("of an attempt that was killed")
    result, request = run_stoppable((tmp_path / STOP).exists, tmp_path / STOP, lambda: True, print)
    assert result is False and request.reason is None
    with pytest.raises(ZeroDivisionError):
        run_stoppable(lambda: 1 / 0, tmp_path / STOP, lambda: True, print)


@pytest.mark.parametrize(
    ("states", "at_work"),
    [
        (["starting"], False),
        (["starting", "running", "checkpoint"], True),
        (["starting", "running", "worker_failed"], False),
        (["starting", "running", "frozen", "worker_failed", "running"], True),
        (["starting", "running", "stopped", "starting"], False),
        (["starting", "not_joined"], False),
    ],
)
def test_who_could_save(states: list[str], at_work: bool, tmp_path: Path) -> None:
    for state in states:
        Journal(tmp_path).add_event(state, 1)
    assert are_workers_at_work(Journal(tmp_path)) is at_work


def test_what_an_overtaken_attempt_says_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for state, attempt in (("starting", 0), ("running", 1), ("running", 2), ("worker_failed", 1)):
        journal.add_event(state, attempt)
    assert are_workers_at_work(journal)
    journal.add_event("worker_failed", 2)
    assert not are_workers_at_work(journal)


@pytest.mark.ray
def test_sigterm_saves_in_this_step_and_resume_gives_the_straight_run(ray_address: str, tmp_path: Path) -> None:
    changes = {"train": {"epochs": 20, "save_every": 0, "eval_every": 0}}
    config = build_config(tmp_path, **changes)
    straight = build_job(config, tmp_path, "straight")
    assert run_processes(straight, 2).finished  # in plain processes, which start faster
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
    process = start_command(tmp_path, "train", "run.yaml", "--json", "name=stopped", address=ray_address)
    run_dir = tmp_path / "runs" / "stopped"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(trace(run_dir)) >= 3, process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, read_output(tmp_path)
    (saved,) = list_checkpoints(run_dir / CHECKPOINTS)
    stopped = read_events(run_dir)[-1]
    assert (stopped["state"], stopped["why"], stopped["step"]) == ("stopped", "SIGTERM", saved.step)
    assert saved.step == trace(run_dir)[-1][0] < 120, "nothing was trained that is not saved"
    output = read_output(tmp_path)
    assert json.loads(output[output.rindex('{\n "error"') : output.rindex("}") + 1])["exit_code"] == 75
    assert f"sftray resume {run_dir}" in output
    resume_run(run_dir, Console(file=io.StringIO()))
    assert trace(run_dir) == trace(Path(straight["run_dir"]))


@pytest.mark.ray
def test_ctrl_c_while_workers_wait_for_room_leaves_nothing(ray_address: str, tmp_path: Path) -> None:
    import ray

    ray.init(address=ray_address, log_to_driver=False, logging_level="ERROR")
    try:
        room = ray.util.placement_group([{"CPU": 4}])
        ray.get(room.ready(), timeout=60)
        config = build_config(tmp_path)
        (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
        process = start_command(tmp_path, "train", "run.yaml", "name=waiting", address=ray_address)
        run_dir = tmp_path / "runs" / "waiting"
        wait_for(lambda: (run_dir / "events.jsonl").exists(), process, tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, read_output(tmp_path)
        assert [event["state"] for event in read_events(run_dir)] == ["starting", "interrupted"]
        ray.util.remove_placement_group(room)
    finally:
        ray.shutdown()
    resumed = resume_run(run_dir, Console(file=io.StringIO()))
    assert resumed.run_dir == run_dir and read_events(run_dir)[-1]["state"] == "finished"
