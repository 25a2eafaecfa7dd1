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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sftray.train_fn.errors import Problem, StoreError

EVENTS, METRICS, SAMPLES, DATA, CONFIG = (
    "events.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "data.json",
    "config.yaml",
)
CHECKPOINTS = "checkpoints"
STOP = ".stop"  # once it is there the run saves and stops


class Journal:
    """Appends to the files of one run directory.

    Args:
        patient: a line that the store refuses waits for the next one, or for `write_waiting`: a full disk is no
            reason to stop training before something has to be saved. Else it is an OSError.
    """

    def __init__(self, folder: Path, patient: bool = False) -> None:
        self.folder, self._patient = folder, patient
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}
        self._lock = threading.Lock()  # the train thread, the saver and the watchdog share it

    def add_event(self, state: str, attempt: int, why: str = "", **facts: Any) -> None:
        """A change of state. `seq` counts the run's events, whoever writes them."""
        now, node = round(time.time(), 3), socket.gethostname()
        self._append(EVENTS, {"time": now, "attempt": attempt, "node": node, "state": state, "why": why, **facts})

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._append(METRICS, metrics)

    def add_sample(self, sample: Mapping[str, Any]) -> None:
        self._append(SAMPLES, sample)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        _encode(
            row
        )  # what is no JSON at all is refused here: as a line that waits it would be in the way of all others
        with self._lock:
            waiting = self._waiting.setdefault(name, [])
            waiting.append(row)
            try:
                self._write(name)
            except OSError:
                if not self._patient:
                    waiting.clear()
                    raise

    def write_waiting(self) -> None:
        """Write the lines that a patient journal could not write.

        Raises:
            StoreError: the store still refuses them.
        """
        with self._lock:
            for name in self._waiting:
                try:
                    self._write(name)
                except OSError as error:
                    path = self.folder / name
                    raise StoreError(
                        Problem(
                            f"{path} cannot be written: {error.strerror or error}",
                            fix="make room, or give back the right to write there; then sftray resume the run",
                        )
                    ) from error

    def _write(self, name: str) -> None:
        """All that waits, in its order. The file is locked: others append to it, and events are counted in it."""
        waiting = self._waiting[name]
        while waiting:
            with (self.folder / name).open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _cut_torn_line(file)
                row = waiting[0]
                if name == EVENTS:
                    file.seek(0)
                    row = {"seq": sum(1 for _ in file), **row}
                file.write(_encode(row))
            del waiting[0]

    def rewind(self, step: int) -> None:
        """Forget what a run that goes on from `step` is about to write again: later metrics, later and last
        samples, and at step 0, where it begins anew, all of them.
        """
        for name in (METRICS, SAMPLES):
            path = self.folder / name
            if path.exists():
                rows = read_lines(path) if step else ()
                kept = [_encode(row) for row in rows if row["step"] <= step and row.get("when") != "after"]
                draft = path.with_name(f".{name}.draft")
                draft.write_bytes(b"".join(kept))
                draft.replace(path)

    def count_attempts(self) -> int:
        path = self.folder / EVENTS
        return max((event["attempt"] for event in read_lines(path)), default=0) if path.exists() else 0


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
