"""The lease: one process at a time drives a run, and two starts of one name do not meet.

An owner takes the next number by creating its record, which exactly one can do, and shows from then on that it
lives. Nothing of an owner is ever removed. Clocks of two hosts may differ, so the owner on another host is dead
only when its sign of life has not moved while it was watched, or is older than clocks differ.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sftray.train_fn.attempts import describe_process, dump_record, list_numbers, name_record, read_record
from sftray.train_fn.errors import ConfigError, FencedError, Problem, StoreError
from sftray.train_fn.store import Store

BEAT_S = 5.0  # an owner shows so often that it lives
FRESH_S = 15.0  # a sign of life of this age is one
EXPIRY_S = 60.0  # so long a sign of life must have stood still
SKEW_S = 300.0  # so much may the clocks of two hosts differ
PEOPLE = "LEASE.json"  # the newest record, for people: nothing reads it

Verdict = Literal["free", "dead", "alive", "wait"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Here:
    """This machine: its name, a mark that no other has at this time, and when its processes were started."""

    host: str
    machine: str
    find_start: Callable[[int], str | None]


@dataclass
class Lease:
    """Held by this process as owner `number`, until `is_lost` is set: then another has taken the run over."""

    number: int
    is_lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise FencedError where another owner has taken the run over."""
        if self.is_lost.is_set():
            raise FencedError(
                Problem(
                    "another process has taken over the run",
                    why=f"owner {self.number} gave no sign of life for {EXPIRY_S:.0f} s",
                    fix="nothing: the other goes on from the newest checkpoint",
                )
            )


def look_here() -> Here:
    """Containers of one machine may share its name, and see only processes of their own: they are told apart."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return Here(describe_process()["host"], f"{boot} {namespace}".strip(), find_start)


def find_start(pid: int) -> str | None:
    """When a process was started, in ticks since boot; "" where that cannot be known; None where it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it is another user's
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if not Path("/proc/self/stat").exists() else None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return None if fields[0] in "ZX" else fields[19]


def judge_owner(record: Record | None, now: float, here: Here, still_s: float = 0.0) -> Verdict:
    """What is to be thought of the newest owner.

    Args:
        record: None where there is no owner; {} where its record cannot be read.
        now: Unix seconds.
        still_s: seconds for which we have watched its sign of life and it has not moved.
    """
    if record is None or record.get("released"):
        return "free"
    if here.machine and record.get("machine") == here.machine and record.get("host") == here.host:
        started = here.find_start(int(record["pid"]))
        return "dead" if started is None or started != record["started"] else "alive"
    age = now - float(record.get("heartbeat") or 0)
    if still_s >= EXPIRY_S or (record and age > EXPIRY_S + SKEW_S):
        return "dead"
    return "alive" if abs(age) <= FRESH_S and not still_s else "wait"


def look_at_lease(store: Store) -> Verdict:
    """Whether somebody drives the run: "wait" where another host's sign of life is neither fresh nor old."""
    return judge_owner(_read_owner(store)[1], time.time(), look_here())


def take_lease(
    store: Store,
    run: str,
    here: Here,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, Record]:
    """Become the run's owner: the number, and the record as written.

    Raises:
        ConfigError: it has an owner that lives.
    """
    while True:
        number, record = _read_owner(store)
        if _watch(store, number, record, here, clock, sleep) == "alive":
            raise ConfigError(_describe_owner(store, *_read_owner(store), clock()))
        mine = {
            **{"run": run, "owner": number + 1, **describe_process(), "machine": here.machine},
            **{"started": here.find_start(os.getpid()), "heartbeat": clock(), "released": False},
        }
        if store.create(_name(number + 1), dump_record(mine)):
            return number + 1, mine


def _watch(
    store: Store,
    number: int,
    record: Record | None,
    here: Here,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Verdict:
    """The verdict on an owner, watched for EXPIRY_S at most where that is needed."""
    began, verdict = clock(), judge_owner(record, clock(), here)
    while verdict == "wait":
        sleep(BEAT_S)
        newest, again = _read_owner(store)
        if newest != number or again != record:
            return "free" if newest == number and again and again.get("released") else "alive"
        verdict = judge_owner(record, clock(), here, max(clock() - began, 1e-9))
    return verdict


def _read_owner(store: Store) -> tuple[int, Record | None]:
    number = max(list_numbers(store, "owner-"), default=0)
    return number, (read_record(store, _name(number)) or {}) if number else None


def _name(number: int) -> str:
    return name_record("owner-", number)


def _describe_owner(store: Store, number: int, found: Record | None, now: float) -> Problem:
    record = found or {}

    def ago(key: str) -> str:
        return f"{max(now - float(record.get(key) or now), 0):.0f} s ago"

    return Problem(
        f"the run is being driven by process {record.get('pid')} on {record.get('host')}",
        where=f"{store.place}/{_name(number)}",
        why=f"it took the run {ago('time')} and last showed {ago('heartbeat')} that it lives",
        fix="wait for it or stop it, and then sftray resume the run; or start a run of another name (name=…)",
    )


@contextlib.contextmanager
def hold_lease(
    store: Store,
    run: str,
    here: Here | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    beat_s: float = BEAT_S,
) -> Iterator[Lease]:
    """Own a run: a thread shows every `beat_s` seconds that this process lives; at the end the run is free at once.

    Raises:
        ConfigError: another owner lives.
    """
    number, record = take_lease(store, run, here or look_here(), clock, sleep)
    lease, ended = Lease(number), threading.Event()
    _show(store, record)

    def beat() -> None:
        while not ended.wait(beat_s) and not lease.is_lost.is_set():
            with contextlib.suppress(StoreError):  # it is tried again at the next beat
                keep_lease(store, lease, record, clock())

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StoreError):  # then it expires
            keep_lease(store, lease, {**record, "released": True}, clock())


def keep_lease(store: Store, lease: Lease, record: Record, now: float) -> None:
    """Show that the owner lives, unless a newer owner is found: then the lease is lost."""
    if max(list_numbers(store, "owner-"), default=0) > lease.number:
        lease.is_lost.set()
    if not lease.is_lost.is_set():
        current = {**record, "heartbeat": now}
        store.write(_name(lease.number), dump_record(current))
        _show(store, current)


def _show(store: Store, record: Record) -> None:
    with contextlib.suppress(StoreError):
        store.write(PEOPLE, dump_record(record))
