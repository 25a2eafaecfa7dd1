"""Attempts of a run: each takes a number that no other has, and the highest number fences all lower ones.

An attempt takes its number first, then looks for the checkpoint to go on from, then writes down that step. In this
order nothing is lost to an older attempt that is still alive: what it commits before the number is taken is found;
what it commits later lies beyond the step that is written down, and is ignored; and once it sees the number it
neither commits nor deletes.
"""

import json
import os
import socket
import time
from typing import Any
from uuid import uuid4

from sftray.train_fn.errors import FencedError, Problem
from sftray.train_fn.store import Store

LEASES = "leases"
_ATTEMPT = "attempt-"


def open_attempt(store: Store, run: str, owner: int | None = None, least: int = 1) -> int:
    """Take the next number, at least `least`; `owner` is that of the lease under which it runs."""
    while True:
        number = max(find_newest_attempt(store) + 1, least)
        record = {"run": run, "attempt": number, "owner": owner, **describe_process(), "start_step": None}
        if store.create(name_record(_ATTEMPT, number), dump_record(record)):
            return number


def start_attempt(store: Store, attempt: int, start_step: int) -> None:
    """Write down from which step an attempt goes on: later ones of older attempts do not exist any more.

    Raises:
        FencedError: a newer attempt has begun.
    """
    check_attempt(store, attempt)
    record = read_record(store, name_record(_ATTEMPT, attempt)) or {"attempt": attempt}
    store.write(name_record(_ATTEMPT, attempt), dump_record({**record, "start_step": start_step}))


def find_newest_attempt(store: Store) -> int:
    """The highest number taken; 0 where there is none."""
    return max(list_numbers(store, _ATTEMPT), default=0)


def check_attempt(store: Store, attempt: int) -> None:
    """Raise FencedError where a newer attempt has begun."""
    newest = find_newest_attempt(store)
    if newest > attempt:
        raise FencedError(
            Problem(
                f"attempt {newest} has taken over the run; attempt {attempt} ends here",
                where=store.place,
                why="what two attempts of one run save would be two trainings in one place",
                fix="nothing: the newer attempt goes on from the newest checkpoint",
            )
        )


def read_starts(store: Store, after: int) -> dict[int, int]:
    """The start step of each attempt above number `after` that has written one down."""
    numbers = [number for number in list_numbers(store, _ATTEMPT) if number > after]
    records = {number: read_record(store, name_record(_ATTEMPT, number)) or {} for number in numbers}
    starts = {number: record.get("start_step") for number, record in records.items()}
    return {number: step for number, step in starts.items() if isinstance(step, int)}


def is_fenced(step: int, attempt: int, starts: dict[int, int]) -> bool:
    """Whether a checkpoint was overtaken: a newer attempt has gone on from a step before it."""
    return any(number > attempt and start < step for number, start in starts.items())


def name_record(kind: str, number: int) -> str:
    return f"{LEASES}/{kind}{number:06d}.json"


def list_numbers(store: Store, kind: str) -> list[int]:
    """Numbers of the records of a kind, "attempt-" or "owner-", in order."""
    stems = (
        name.removesuffix(".json").removeprefix(kind) for name in store.list_files(LEASES) if name.startswith(kind)
    )
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def read_record(store: Store, path: str) -> dict[str, Any] | None:
    """A record; None where there is none, or one that is no JSON object."""
    data = store.read(path)
    try:
        record = json.loads(data) if data else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def dump_record(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()


def describe_process() -> dict[str, Any]:
    """Who writes a record. The nonce makes it unlike any other, which the store needs."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": round(time.time(), 3),
        "nonce": uuid4().hex,
    }
