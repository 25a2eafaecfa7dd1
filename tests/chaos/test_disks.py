"""Disks that fill up and that may only be read, mounted for the purpose: the run waits, and goes on."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, record
from short_runs import count_steps, end_run, find_drafts, is_straight, start_run, straight_run
from waiting import wait_until

from sftray.train_fn.journal import CHECKPOINTS, EVENTS, read_lines

pytestmark = pytest.mark.system


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 16 MB; a run needs about half of it."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "sftray-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Watcher(threading.Thread):
    """Breaks the disk in the middle of a run, and mends it when the run has met that."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.run_dir = Path(job["run_dir"])
        self.mended_at = 0

    def spoil(self) -> None:
        raise NotImplementedError

    def has_met(self) -> bool:
        raise NotImplementedError

    def mend(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        wait_until(lambda: count_steps(self.run_dir) >= 3)
        self.spoil()
        wait_until(self.has_met)
        self.mended_at = count_steps(self.run_dir)
        self.mend()


class Filler(Watcher):
    """Leaves `spared` bytes: room for lines, but not for a checkpoint; or for nothing."""

    def __init__(self, job: dict[str, Any], disk: Path, spared: int) -> None:
        super().__init__(job)
        self._file, self._spared, self._before = disk / "filler", spared, 0

    def spoil(self) -> None:
        with self._file.open("wb", buffering=0) as file:
            while (left := measure_free(self._file.parent) - self._spared) > 0:
                file.write(bytes(left))

    def has_met(self) -> bool:
        """A draft has come and gone since the disk was full: where there is no room at all, no event can say so."""
        if find_drafts(self.run_dir):
            return False
        changed = (self.run_dir / CHECKPOINTS).stat().st_mtime_ns
        self._before = self._before or changed
        return changed != self._before

    def mend(self) -> None:
        self._file.unlink()


class Lock(Watcher):
    """Makes the disk read-only, as a file system does that has found errors."""

    def __init__(self, job: dict[str, Any], disk: Path) -> None:
        super().__init__(job)
        self._disk = disk
        self._tried = 0

    def spoil(self) -> None:
        wait_until(self._remount_read_only)

    def _remount_read_only(self) -> bool:
        """Not possible while a file is open for writing."""
        command = ["mount", "-o", "remount,ro", str(self._disk)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def has_met(self) -> bool:
        """Nothing on the disk can tell; but it takes 0.1 s to the next save, and this is a hundred looks."""
        self._tried += 1
        return self._tried > 100

    def mend(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self._disk)], check=True)


def measure_free(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize


def end_watched(job: dict[str, Any], watcher: Watcher, fault: str) -> list[str]:
    """The states of the run's events, once it has ended as the straight one: in one attempt, with nothing lost."""
    straight_run(1)
    watcher.start()
    seconds = end_run(job, 1).seconds
    watcher.join()
    equal = is_straight(job, 1)
    states = [event["state"] for event in read_lines(Path(job["run_dir"], EVENTS))]
    saw = "the store refuses, it is tried again; then: it takes checkpoints again"
    record(Outcome("store", fault, 1, saw, int(equal), 0, seconds))
    assert equal and states.count("running") == 1
    assert 3 <= watcher.mended_at < 12
    return states


@pytest.mark.parametrize("spared", [0, 65536])
def test_a_disk_that_fills_up_pauses_the_run(spared: int, disk: Path) -> None:
    job = start_run(disk, 1)
    states = end_watched(job, Filler(job, disk, spared), f"a full disk ({spared} bytes left), then room again")
    assert "store_refused" in states and "store_back" in states


def test_a_disk_that_may_only_be_read_pauses_the_run(disk: Path) -> None:
    job = start_run(disk, 1)
    states = end_watched(job, Lock(job, disk), "a disk that turns read-only for a while")
    assert "store_refused" in states and "store_back" in states
