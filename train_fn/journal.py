"""The files of a run directory that grow: events, metrics, samples. One JSON object a line.

The directory is the truth and all else a mirror of it, so lines are written when the thing has happened, in
one append each, and a reader may follow a file while it grows.
"""

import fcntl
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.places import find_bucket, write_whole
from sftray.train_fn.store_posix import flush

EVENTS, METRICS, SAMPLES, DATA, CONFIG = (
    "events.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "data.json",
    "config.yaml",
)
CHECKPOINTS = "checkpoints"
_SEND_EVERY_S, _SEND_SHARE = 2.0, 10.0
STOP = ".stop"  # once it is there the run saves and stops


class Journal:
    """Appends to the files of one run directory.

    In a bucket a file is read, and put as a whole unless it has changed meanwhile; so metrics and samples go there
    by a thread, several lines at once.

    Args:
        patient: a line that the store refuses waits for the next one, or for `write_waiting`: a full disk is no
            reason to stop training before something has to be saved. Else it is an OSError.
    """

    def __init__(self, folder: Path, patient: bool = False) -> None:
        self.folder, self._patient = folder, patient
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}
        self._unflushed: set[str] = set()  # files with lines that a loss of power could take
        self._lock = threading.Lock()  # the train thread, the saver and the watchdog share it
        self._sending = threading.Lock()  # held while a bucket is written to, for which nobody who has a line waits
        self._timer: threading.Timer | None = None
        self._pause = _SEND_EVERY_S

    def add_event(self, state: str, attempt: int, why: str = "", **facts: Any) -> None:
        """A change of state. `seq` counts the run's events, whoever writes them."""
        now, node = round(time.time(), 3), socket.gethostname()
        self._append(EVENTS, {"time": now, "attempt": attempt, "node": node, "state": state, "why": why, **facts})

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._append(METRICS, metrics)

    def add_sample(self, sample: Mapping[str, Any]) -> None:
        self._append(SAMPLES, sample)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        _encode(row)  # what is no JSON is refused here: as a line that waits it would be in the way of all others
        with self._lock:
            self._waiting.setdefault(name, []).append(row)
        if self._patient and name != EVENTS and find_bucket(self.folder) is not None:
            self._send_later()
            return
        try:
            self._write(name)
        except OSError:
            if not self._patient:
                with self._lock:
                    self._waiting[name].clear()
                raise
            self._send_later()

    def write_waiting(self) -> None:
        """Write the lines that wait: those that the store has refused, or that were not worth a request each.

        On return all lines are durable.

        Raises:
            StoreError: the store still refuses them.
        """
        for name in list(self._waiting):
            try:
                self._write(name)
                self._flush(name)
            except StoreError:  # a bucket's, which says it itself
                raise
            except OSError as error:
                path = self.folder / name
                raise StoreError(
                    Problem(
                        f"{path} cannot be written: {error.strerror or error}",
                        fix="make room, or give back the right to write there; then sftray resume the run",
                    )
                ) from error

    def _write(self, name: str) -> None:
        """All that waits, in its order."""
        if (there := find_bucket(self.folder / name)) is not None:
            self._send(name, there)
            return
        with self._lock:
            waiting = self._waiting[name]
            while waiting:
                _append_line(self.folder / name, waiting[0])
                del waiting[0]
                self._unflushed.add(name)

    def _flush(self, name: str) -> None:
        """Nobody who has a line waits for it."""
        with self._lock:
            if name not in self._unflushed:
                return
            self._unflushed.remove(name)
        try:
            flush(self.folder / name)
            flush(self.folder)
        except OSError:
            self._unflushed.add(name)
            raise

    def _send(self, name: str, there: BucketPath) -> None:
        with self._sending:
            with self._lock:
                rows = list(self._waiting[name])
            if rows:
                there.change(lambda before: before + _encode_all(name, rows, before.count(b"\n")), self._patient)
            with self._lock:
                del self._waiting[name][: len(rows)]

    def _send_later(self) -> None:
        """Try it soon, in a thread, where it is a bucket: what a disk refuses is tried with the next line."""
        with self._lock:
            if self._timer is None and find_bucket(self.folder) is not None:
                self._timer = threading.Timer(self._pause, self._send_now)
                self._timer.daemon = True
                self._timer.start()

    def _send_now(self) -> None:
        started = time.monotonic()
        with self._lock:
            self._timer = None
        for name in list(self._waiting):
            try:
                self._write(name)
            except OSError:
                self._send_later()
        # A long file takes long to put, and is put the less often.
        self._pause = max(_SEND_EVERY_S, _SEND_SHARE * (time.monotonic() - started))

    def rewind(self, step: int) -> None:
        """Forget what a run that goes on from `step` is about to write again: later metrics, later and last
        samples, and at step 0, where it begins anew, all of them.
        """
        for name in (METRICS, SAMPLES):
            path = self.folder / name
            if path.exists():
                rows = read_lines(path) if step else ()
                kept = [_encode(row) for row in rows if row["step"] <= step and row.get("when") != "after"]
                write_whole(path, b"".join(kept))

    def count_attempts(self) -> int:
        path = self.folder / EVENTS
        return max((event["attempt"] for event in read_lines(path)), default=0) if path.exists() else 0


def _append_line(path: Path, row: Mapping[str, Any]) -> None:
    """The file is locked: others append to it, and events are counted in it."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_line(file)
        file.seek(0)
        count = sum(1 for _ in file) if path.name == EVENTS else 0
        file.write(_encode_all(path.name, [row], count))


def _encode_all(name: str, rows: Sequence[Mapping[str, Any]], count: int) -> bytes:
    """Lines of a file that has `count` lines."""
    return b"".join(_encode({"seq": count + k, **row} if name == EVENTS else row) for k, row in enumerate(rows))


def _cut_torn_line(file: IO[bytes]) -> None:
    """Remove what a killed writer, or a full disk, left of a line, lest the next line be glued to it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)


def _encode(row: Mapping[str, Any]) -> bytes:
    clean = {key: _finite(value) for key, value in row.items()}
    return (json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    """JSON has no NaN; as text they can be read back by float()."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that may still be written: a torn last line is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
