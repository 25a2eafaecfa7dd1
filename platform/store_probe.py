"""Trying a store: what it promises, and how fast it is."""

import fcntl
import os
import time
import uuid
from pathlib import Path
from typing import Literal

from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.errors import UserError
from sftray.train_fn.places import as_path, find_bucket
from sftray.train_fn.store import connect_store

Level = Literal["ok", "note", "bad"]
_PIECE = 16 * 2**20  # bytes
_ANY_PLACE = "store.path: a place that can be written"
_WITH_LOCKS = (
    "mount it with locks (NFS with its lock service and not local_lock or nolock, Lustre with flock), or a bucket"
)


def probe_store(store: str) -> list[tuple[Level, str, str]]:
    """Whether a store keeps and locks what is written and gives a name once, and how fast: findings and fixes."""
    place = store if "://" in store else str(Path(store).expanduser().absolute())
    name, data = f".doctor-{uuid.uuid4().hex[:12]}", os.urandom(_PIECE)
    try:
        opened = connect_store(place)
        began = time.perf_counter()
        opened.write(f"{name}/piece", data)
        written = time.perf_counter()
        same = opened.read(f"{name}/piece") == data
        read = time.perf_counter()
        once = opened.create(f"{name}/once", b"a") and not opened.create(f"{name}/once", b"b")
        bucket = find_bucket(as_path(place))
        kept = bucket is None or _keeps_changes(bucket / name / "changed")
        lacking = _find_lacking_locks(Path(place, name)) if bucket is None else ""
        listed = opened.list_files(name).keys() >= {"piece", "once"}
        opened.remove(name)
    except UserError as error:
        problem = error.problems[0]
        told = ": ".join(text for text in (problem.what, problem.why) if text)
        return [("bad", f"{store}: {told}", problem.fix or _ANY_PLACE)]
    except OSError as error:
        return [("bad", f"{store}: {error}", _ANY_PLACE)]
    wrong = [
        said
        for holds, said in (
            (same, "what is read is not what was written"),
            (once, "a name is given twice: two drivers could own one run"),
            (kept, "If-Match is not heeded: of two lines that are written at once, one is lost"),
            (listed, "what was written is not listed"),
        )
        if not holds
    ]
    if wrong:
        fix = "another file system or service: this one breaks its promises"
        return [("bad", f"{store}: {said}", fix) for said in wrong]
    if lacking:
        return [("bad", f"{store}: {lacking}", _WITH_LOCKS)]
    speeds = f"{_PIECE / 1e6 / (written - began):.0f} MB/s written, {_PIECE / 1e6 / (read - written):.0f} MB/s read"
    does = "writes, reads, lists, locks" if bucket is None else "writes, reads, lists"
    return [("ok", f"{store}: {does}, and gives a name once; {speeds}", "")]


def _find_lacking_locks(folder: Path) -> str:
    """What is wrong with locks on a mount, "" if nothing: events, metrics and the mailboxes of a sweep need them.

    That a lock keeps out other nodes too cannot be seen from one.
    """
    path = folder / "lock"
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"a file cannot be locked there ({error.strerror}), and every line of a run's events is"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
    return "a locked file is locked a second time: of two lines that are written at once, one may be lost"


def _keeps_changes(there: BucketPath) -> bool:
    """Whether an object that another has put meanwhile is not put over."""
    there.write_bytes(b"a")
    found = there.bucket.read_version(there.key)
    there.write_bytes(b"b")
    return found is not None and not there.bucket.replace(there.key, b"c", found[1])
