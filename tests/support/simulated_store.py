"""Stores for a model of the checkpoint protocol: processes that stop between any two of their acts, for good or while
others act."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

from sftray.train_fn.store_objects import ObjectStore
from sftray.train_fn.store_posix import FolderStore


class CrashError(BaseException):
    """The process is gone: nothing of it happens any more, its cleaning up included."""


class Process:
    """A process that makes a tick before each act, and can be stopped there. It runs in a thread, and only while
    `go` waits for it: so whatever two processes do, they do it in an order that the test has chosen.
    """

    def __init__(self) -> None:
        self.is_dead = False
        self.error: BaseException | None = None
        self._left: int | None = None  # ticks that it may still make; None is any number
        self._thread: threading.Thread | None = None
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def is_busy(self) -> bool:
        return self._thread is not None

    def start(self, act: Callable[[], object]) -> None:
        def run() -> None:
            self._may_go.acquire()
            try:
                act()
            except BaseException as error:  # handed to `go`
                self.error = error
            self._thread = None
            self._has_stopped.release()

        self.error, self._thread = None, threading.Thread(target=run, daemon=True)
        self._thread.start()

    def go(self, ticks: int | None = None) -> None:
        """Let it go on for so many acts, or to its end."""
        if self.is_busy:
            self._left = ticks
            self._may_go.release()
            self._has_stopped.acquire()

    def kill(self) -> None:
        self.is_dead = True
        self.go()

    def tick(self) -> None:
        if self._left == 0:
            self._has_stopped.release()
            self._may_go.acquire()
        if self.is_dead:
            raise CrashError
        if self._left:
            self._left -= 1


class MemoryBucket:
    """Objects in a dict that processes share; each sees it through a bucket of its own."""

    place = "memory"

    def __init__(self, objects: dict[str, bytes], process: Process) -> None:
        self._objects, self._process = objects, process

    def list(self, prefix: str) -> dict[str, int]:
        self._process.tick()
        return {key: len(data) for key, data in self._objects.items() if key.startswith(prefix)}

    def get(self, key: str) -> bytes | None:
        self._process.tick()
        return self._objects.get(key)

    def digest(self, key: str) -> str | None:
        data = self.get(key)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def put(self, key: str, data: bytes) -> None:
        self._process.tick()
        self._objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        self._process.tick()
        return self._objects.setdefault(key, data) is data

    def delete(self, key: str) -> None:
        self._process.tick()
        self._objects.pop(key, None)

    def upload(self, path: Path, key: str) -> None:
        self.put(key, path.read_bytes())

    def download(self, key: str, path: Path) -> None:
        data = self.get(key)
        if data is not None:
            path.write_bytes(data)


class ShakenObjects(ObjectStore):
    """The real protocol over a bucket in memory."""

    def __init__(self, objects: dict[str, bytes], process: Process) -> None:
        super().__init__(MemoryBucket(objects, process))
        self._machine = uuid4().hex  # its own: who waits for another's copy would wait for the test

    def _name_copy(self, folder: str) -> str:
        return f"{self._machine}-{super()._name_copy(folder)}"


class ShakenFolder(FolderStore):
    """The real store in a folder, with a tick before each act, and one file after the other where it removes many."""

    def __init__(self, root: Path, process: Process) -> None:
        super().__init__(root)
        self._process = process

    def list_files(self, folder: str = "") -> dict[str, int]:
        self._process.tick()
        return super().list_files(folder)

    def list_folders(self, folder: str) -> list[str]:
        self._process.tick()
        return super().list_folders(folder)

    def read(self, path: str) -> bytes | None:
        self._process.tick()
        return super().read(path)

    def digest(self, path: str) -> str | None:
        self._process.tick()
        return super().digest(path)

    def write(self, path: str, data: bytes) -> None:
        self._process.tick()
        super().write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self._process.tick()
        return super().create(path, data)

    def delete(self, path: str) -> None:
        self._process.tick()
        super().delete(path)

    def remove(self, folder: str) -> None:
        for path in self.list_files(folder):
            self.delete(f"{folder}/{path}")
        self._process.tick()
        super().remove(folder)

    def stage(self, draft: str) -> Path:
        self._process.tick()
        return super().stage(draft)

    def publish(self, staged: Path, folder: str, last: str, claim: bytes, check: Callable[[], None]) -> bool:
        def check_and_pause() -> None:
            check()
            self._process.tick()

        return super().publish(staged, folder, last, claim, check_and_pause)

    def discard(self, staged: Path) -> None:
        self._process.tick()
        super().discard(staged)

    def fetch(self, folder: str, files: Mapping[str, tuple[int, str]]) -> Path:
        self._process.tick()
        return super().fetch(folder, files)
