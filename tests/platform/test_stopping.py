"""A signal stops a run at the end of its step, and the run goes on from there as if nothing had been."""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import Faults, Proxy, run_proxy
from s3_server import make_place
from waiting import wait_until

from sftray.platform.stopping import Owner, are_workers_at_work, ask_to_stop, own, run_stoppable
from sftray.train_fn.errors import FencedError
from sftray.train_fn.journal import STOP, Journal
from sftray.train_fn.places import as_path


def send(number: int) -> None:
    """The main thread's handler runs, whichever thread this is."""
    os.kill(os.getpid(), number)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    with own(tmp_path) as owner:
        yield owner


def quiet(text: str) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_asks_the_workers_and_waits_for_them(number: int, word: str, tmp_path: Path) -> None:
    file, told = tmp_path / STOP, list[str]()
    before = signal.getsignal(number)

    def run() -> str:
        send(number)
        wait_until(file.exists)
        wait_until(lambda: bool(told))
        return file.read_text()

    with own(tmp_path) as owner:
        assert run_stoppable(run, owner, lambda: True, told.append) == (word, word)
    assert told == [f"{word}: saving at the end of this step; once more to leave at once"]
    assert not file.exists() and signal.getsignal(number) is before


def test_who_else_asks_for_a_stop_is_the_reason(owner: Owner) -> None:
    told: list[str] = []

    def run() -> str:
        ask_to_stop(owner.stop_file, "sftray stop")
        wait_until(lambda: bool(told))
        return "saved"

    assert run_stoppable(run, owner, lambda: True, told.append) == ("saved", "sftray stop")
    assert told == ["sftray stop: saving at the end of this step"]


@pytest.mark.slow
def test_a_signal_after_a_stop_from_elsewhere_is_the_first_one(owner: Owner) -> None:
    told: list[str] = []

    def run() -> str:
        ask_to_stop(owner.stop_file, "sftray stop")
        wait_until(lambda: len(told) == 1)
        send(signal.SIGTERM)
        wait_until(lambda: len(told) == 2)
        return "saved"

    assert run_stoppable(run, owner, lambda: True, told.append) == ("saved", "SIGTERM")


def test_a_stop_that_was_asked_of_the_owner_before_is_forgotten(tmp_path: Path) -> None:
    ask_to_stop(tmp_path / STOP, "sftray stop")
    with own(tmp_path) as owner:
        owner.check()
        assert run_stoppable(lambda: "done", owner, lambda: True, print) == ("done", "")


def test_who_waits_before_the_workers_are_there_is_interrupted(owner: Owner) -> None:
    owner.check()
    ask_to_stop(owner.stop_file, "sftray stop")
    with pytest.raises(KeyboardInterrupt, match="sftray stop"):
        owner.check()
    owner.lease.is_lost.set()
    with pytest.raises(FencedError):
        owner.check()


@pytest.mark.parametrize("by", ["SIGTERM", "sftray stop"])
def test_where_nobody_could_save_it_ends_at_once(by: str, owner: Owner) -> None:
    done = threading.Event()

    def run() -> None:
        if by == "SIGTERM":
            send(signal.SIGTERM)
        else:
            ask_to_stop(owner.stop_file, by)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt, match=by):
        run_stoppable(run, owner, lambda: False, print)
    done.set()


@pytest.mark.slow
def test_workers_that_are_lost_before_they_have_saved_are_waited_for_in_vain_for_a_while(owner: Owner) -> None:
    looks, done = list[float](), threading.Event()

    def is_at_work() -> bool:
        looks.append(time.monotonic())
        return len(looks) == 1

    def run() -> None:
        send(signal.SIGTERM)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run_stoppable(run, owner, is_at_work, quiet, grace_s=1.0)
    assert time.monotonic() - looks[0] >= 1.0
    done.set()


def test_a_signal_that_is_passed_on_to_who_has_it_already_is_one(owner: Owner) -> None:
    """As make and timeout do: the group has it from the terminal, and they send it again."""

    def run() -> str:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        wait_until(owner.stop_file.exists)
        return "ended by itself"

    assert run_stoppable(run, owner, lambda: True, quiet) == ("ended by itself", "SIGTERM")


def test_the_second_signal_ends_it_at_once(owner: Owner) -> None:
    done = threading.Event()

    def run() -> None:
        send(signal.SIGTERM)
        wait_until(owner.stop_file.exists)
        send(signal.SIGINT)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        run_stoppable(run, owner, lambda: True, quiet)
    done.set()


@pytest.fixture
def bucket(s3_endpoint: str) -> Iterator[tuple[Path, Proxy]]:
    """A run's place in a bucket that can go away."""
    with run_proxy(s3_endpoint) as proxy:
        yield as_path(make_place(s3_endpoint, proxy.address)), proxy


@pytest.mark.slow
def test_a_signal_while_the_bucket_is_away_is_seen_to_when_it_is_back(bucket: tuple[Path, Proxy]) -> None:
    run_dir, proxy = bucket
    Journal(run_dir).add_event("running", 1)
    told: list[str] = []

    def run() -> str:
        proxy.faults = Faults(is_down=True)
        before = proxy.counts["before"]
        send(signal.SIGTERM)
        wait_until(lambda: proxy.counts["before"] > before)
        proxy.faults = Faults()
        wait_until(lambda: bool(told))
        return (run_dir / STOP).read_text()

    with own(run_dir) as owner:
        at_work = functools.partial(are_workers_at_work, Journal(run_dir))
        assert run_stoppable(run, owner, at_work, told.append) == ("SIGTERM", "SIGTERM")
    assert told[-1] == "SIGTERM: saving at the end of this step; once more to leave at once"
    assert not (run_dir / STOP).exists()


@pytest.mark.slow
def test_the_second_signal_is_heard_while_the_bucket_is_away(bucket: tuple[Path, Proxy]) -> None:
    run_dir, proxy = bucket
    Journal(run_dir).add_event("running", 1)
    done = threading.Event()

    def run() -> None:
        proxy.faults = Faults(is_down=True)
        before = proxy.counts["before"]
        send(signal.SIGTERM)
        wait_until(lambda: proxy.counts["before"] > before)
        send(signal.SIGINT)
        done.wait(60)

    with own(run_dir) as owner:
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            run_stoppable(run, owner, functools.partial(are_workers_at_work, Journal(run_dir)), quiet)
        done.set()
        proxy.faults = Faults()


@pytest.mark.slow
def test_a_store_that_refuses_is_told_once(owner: Owner) -> None:
    looks, told = list[int](), list[str]()

    def is_at_work() -> bool:
        looks.append(1)
        if len(looks) < 3:
            raise OSError("the bucket is away")
        return True

    def run() -> str:
        send(signal.SIGTERM)
        wait_until(owner.stop_file.exists)
        return "saved"

    assert run_stoppable(run, owner, is_at_work, told.append) == ("saved", "SIGTERM")
    folder = owner.stop_file.parent
    assert told[0] == f"SIGTERM: {folder} does not answer, and is asked again until it does"
    assert not any("does not answer" in line for line in told[1:])


def test_without_a_signal_it_is_the_function_and_its_errors(owner: Owner) -> None:
    assert run_stoppable(owner.stop_file.exists, owner, lambda: True, print) == (False, "")
    with pytest.raises(ZeroDivisionError):
        run_stoppable(lambda: 1 / 0, owner, lambda: True, print)


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
