"""One owner of a run at a time, whatever the others see of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, record
from s3_server import make_place

from sftray.train_fn.attempts import LEASES, dump_record, name_record, read_record
from sftray.train_fn.errors import ConfigError, FencedError
from sftray.train_fn.lease import (
    PEOPLE,
    Here,
    Lease,
    find_start,
    hold_lease,
    judge_owner,
    keep_lease,
    look_here,
    take_lease,
)
from sftray.train_fn.store import Store, connect_store

NOW = 1_000_000.0
STARTS = {7: "100", 8: "200"}
HERE = Here("here", "machine-1", STARTS.get)
MINE = {"host": "here", "machine": "machine-1", "pid": 7, "started": "100", "heartbeat": NOW - 1, "released": False}
THEIRS = {**MINE, "host": "there", "machine": "machine-2"}


@pytest.mark.parametrize(
    ("record", "still_s", "verdict"),
    [
        (None, 0, "free"),
        ({**MINE, "released": True}, 0, "free"),
        ({**THEIRS, "released": True}, 0, "free"),
        (MINE, 0, "alive"),
        ({**MINE, "heartbeat": 0}, 0, "alive"),  # stopped by a signal, perhaps; it is there
        ({**MINE, "pid": 9}, 0, "dead"),
        ({**MINE, "pid": 8}, 0, "dead"),  # the number now belongs to another process
        ({**MINE, "pid": 9, "machine": "machine-0"}, 0, "alive"),  # of the same name, but another boot or container
        (THEIRS, 0, "alive"),
        ({**THEIRS, "heartbeat": NOW + 14}, 0, "alive"),
        ({**THEIRS, "heartbeat": NOW - 16}, 0, "wait"),
        ({**THEIRS, "heartbeat": NOW - 61}, 0, "wait"),  # its clock may be behind
        ({**THEIRS, "heartbeat": NOW + 4000}, 0, "wait"),  # or before ours
        ({**THEIRS, "heartbeat": NOW - 361}, 0, "dead"),
        ({**THEIRS, "heartbeat": NOW - 16}, 59, "wait"),
        ({**THEIRS, "heartbeat": NOW - 16}, 60, "dead"),
        ({**THEIRS, "heartbeat": NOW + 4000}, 60, "dead"),
        ({}, 0, "wait"),
        ({}, 60, "dead"),
    ],
)
def test_an_owner_is_judged(record: dict[str, Any] | None, still_s: float, verdict: str) -> None:
    assert judge_owner(record, NOW, HERE, still_s) == verdict


class Clock:
    """Time that passes by sleeping alone; `events` are what happens at a time."""

    def __init__(self, *events: tuple[float, Any]) -> None:
        self.now, self.events = NOW, list(events)

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return connect_store(tmp_path / "alpha")


def put(store: Store, number: int, record: dict[str, Any]) -> None:
    store.write(name_record("owner-", number), dump_record(record))


def take(store: Store, clock: Clock) -> int:
    return take_lease(store, "alpha", HERE, clock.read, clock.sleep)[0]


OLD = {**THEIRS, "heartbeat": NOW - 30}


def test_a_silent_owner_elsewhere_is_watched_until_it_expires(store: Store) -> None:
    put(store, 3, OLD)
    clock = Clock()
    assert take(store, clock) == 4 and clock.now == NOW + 60


@pytest.mark.parametrize("heartbeat", [NOW + 20, NOW - 200], ids=["right clock", "clock behind"])
def test_a_silent_owner_elsewhere_that_shows_itself_keeps_the_run(heartbeat: float, store: Store) -> None:
    put(store, 3, OLD)
    clock = Clock((NOW + 20, lambda: put(store, 3, {**OLD, "heartbeat": heartbeat})))
    with pytest.raises(ConfigError, match="is being driven by process 7 on there"):
        take(store, clock)
    assert clock.now == NOW + 20


def test_an_owner_that_releases_the_run_while_it_is_watched_gives_it_up(store: Store) -> None:
    put(store, 3, OLD)
    clock = Clock((NOW + 20, lambda: put(store, 3, {**OLD, "released": True})))
    assert take(store, clock) == 4 and clock.now == NOW + 20


def test_another_that_takes_the_run_first_has_it(store: Store) -> None:
    put(store, 3, OLD)
    clock = Clock((NOW + 60, lambda: put(store, 4, {**THEIRS, "heartbeat": NOW + 60})))
    with pytest.raises(ConfigError, match=r"owner-000004\.json"):
        take(store, clock)


def test_a_torn_record_is_watched_and_then_taken_over(store: Store) -> None:
    store.write(name_record("owner-", 1), b'{"host": ')
    clock = Clock()
    assert take(store, clock) == 2 and clock.now == NOW + 60


def test_a_second_start_names_the_owner_and_the_ways_on(store: Store) -> None:
    with hold_lease(store, "alpha") as lease:
        assert lease.number == 1 and not lease.is_lost.is_set()
        with pytest.raises(ConfigError) as caught, hold_lease(store, "alpha"):
            pytest.fail("it has two owners")
    problem = caught.value.problems[0]
    assert caught.value.exit_code == 2 and f"process {os.getpid()} on {look_here().host}" in problem.what
    assert problem.why and "last showed" in problem.why and problem.fix and "sftray resume" in problem.fix
    with hold_lease(store, "alpha") as second:
        assert second.number == 2


def test_an_owner_shows_that_it_lives_and_says_when_it_ends(store: Store) -> None:
    seen = threading.Event()
    beats: list[float] = []

    def clock() -> float:
        beats.append(float(len(beats)))
        if len(beats) > 4:
            seen.set()
        return beats[-1]

    with hold_lease(store, "alpha", clock=clock, beat_s=0.001):
        assert seen.wait(30)
        shown = read_record(store, PEOPLE) or {}
        assert shown["owner"] == 1 and shown["pid"] == os.getpid() and not shown["released"]
    for path in (PEOPLE, name_record("owner-", 1)):
        assert (read_record(store, path) or {})["released"]


def test_an_owner_that_was_overtaken_knows_and_shows_itself_no_more(store: Store) -> None:
    with hold_lease(store, "alpha", beat_s=0.001) as lease:
        put(store, 2, THEIRS)
        assert lease.is_lost.wait(30)
        with pytest.raises(FencedError, match="another process has taken over the run") as caught:
            lease.check()
    assert caught.value.exit_code == 75
    assert not (read_record(store, name_record("owner-", 1)) or {})["released"]
    assert read_record(store, name_record("owner-", 2)) == THEIRS
    record(Outcome("owners", "a driver taken for dead comes back", 1, "another process has taken over; exit 75", 1))


def test_an_owner_that_sleeps_does_not_write_over_the_next_one(store: Store) -> None:
    lease = Lease(1)
    put(store, 2, THEIRS)
    keep_lease(store, lease, MINE, NOW)
    assert lease.is_lost.is_set() and store.list_files(LEASES) == {"owner-000002.json": len(dump_record(THEIRS))}


HOLDS = """
import sys
from pathlib import Path
from sftray.train_fn.lease import hold_lease
from sftray.train_fn.store import connect_store

with hold_lease(connect_store(Path(sys.argv[1])), "alpha"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_run_of_a_process_that_was_killed_here_is_free_at_once(end: signal.Signals, tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    store = connect_store(tmp_path)
    with pytest.raises(ConfigError, match=f"process {process.pid} "):
        take_lease(store, "alpha", look_here())
    process.send_signal(end)
    process.wait()
    assert take_lease(store, "alpha", look_here(), sleep=lambda s: pytest.fail("it waited"))[0] == 2


def test_a_stopped_process_keeps_its_run(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ConfigError, match="is being driven"):
            take_lease(connect_store(tmp_path), "alpha", look_here(), clock=lambda: time.time() + 1e6)
    finally:
        process.kill()
        process.wait()


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine, theirs = find_start(os.getpid()), find_start(child.pid)
    assert mine and theirs and int(mine) <= int(theirs)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert find_start(child.pid) is None, "a dead one that nobody has buried is dead"
    child.wait()
    assert find_start(child.pid) is None


RACES = """
import json, sys
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.lease import look_here, take_lease
from sftray.train_fn.store import connect_store

here, won = look_here(), []
for place in json.loads(sys.argv[1]):
    store = connect_store(place)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        won.append(take_lease(store, "alpha", here)[0])
    except ConfigError:
        won.append(0)
print(json.dumps(won), flush=True)
sys.stdin.readline()
"""


def run_races(places: list[str], racers: int) -> list[list[int]]:
    """For each place what each of several processes got, which all try at the same time: a number, or 0."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACES, json.dumps(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(racers)
    ]
    try:
        for _ in places:
            for process in processes:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
        results = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [list(result) for result in zip(*results, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
@pytest.mark.parametrize("races", [8, pytest.param(150, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("before", [False, True], ids=["free", "owner is dead"])
def test_of_several_starts_exactly_one_owns_the_run(
    kind: str, races: int, before: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "folder":
        places = [str(tmp_path / str(number)) for number in range(races)]
    else:
        place = make_place(request.getfixturevalue("s3_endpoint"))
        places = [place.replace("/alpha?", f"/{number}?") for number in range(races)]
    if before:
        gone = {**MINE, "host": look_here().host, "machine": look_here().machine, "pid": 2**22 + 1}
        for place in places:
            put(connect_store(place), 1, gone)
    results = [sorted(result) for result in run_races(places, racers=3)]
    wanted, state = [0, 0, 2 if before else 1], "its owner is dead" if before else "free"
    fault = f"3 starts of one run at once, {state}, {kind}"
    record(Outcome("owners", fault, races, "one drives it; the others: exit 2", results.count(wanted)))
    assert results == [wanted] * races
