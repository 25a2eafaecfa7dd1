"""A store in a bucket: what a bucket lacks, a folder that appears at once, is made of a claim, which one writer gets,
and of a file that is put last."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.local_copies import get_cache, keep_copy
from sftray.train_fn.store import name_claim
from sftray.train_fn.store_posix import FolderStore

_UPLOADS = 4  # so often a file is sent that the bucket says it has, and has not


class Bucket(Protocol):
    """Objects below one prefix, by key. Each act happens whole or not at all, and is seen by all at once."""

    place: str

    def list(self, prefix: str) -> dict[str, int]:
        """Keys that begin with `prefix`, and bytes."""

    def get(self, key: str) -> bytes | None: ...

    def digest(self, key: str) -> str | None: ...

    def put(self, key: str, data: bytes) -> None: ...

    def create(self, key: str, data: bytes) -> bool:
        """Put unless there is one; False where there is."""

    def delete(self, key: str) -> None: ...

    def upload(self, path: Path, key: str) -> None: ...

    def download(self, key: str, path: Path) -> None:
        """Fill the file at `path`; none appears where there is no such key.

        Raises:
            StoreError: the service refuses it. OSError: this machine does, as where its disk is full.
        """


class ObjectStore:
    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._held: set[str] = set()  # folders that this writer has claimed and may still fill
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def place(self) -> str:
        return self.bucket.place

    def list_files(self, folder: str = "") -> dict[str, int]:
        prefix = f"{folder}/" if folder else ""
        return {key.removeprefix(prefix): size for key, size in self.bucket.list(prefix).items()}

    def list_folders(self, folder: str) -> list[str]:
        return sorted({path.split("/", 1)[0] for path in self.list_files(folder) if "/" in path})

    def read(self, path: str) -> bytes | None:
        return self.bucket.get(path)

    def digest(self, path: str) -> str | None:
        return self.bucket.digest(path)

    def write(self, path: str, data: bytes) -> None:
        self.bucket.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self.bucket.create(path, data)
        # The answer may have been lost and the question asked again, or be a lie: what stands there says who won.
        return self.bucket.get(path) == data

    def delete(self, path: str) -> None:
        self.bucket.delete(path)

    def remove(self, folder: str) -> None:
        for path in self.list_files(folder):
            self.bucket.delete(f"{folder}/{path}")

    def stage(self, draft: str) -> Path:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="sftray-", ignore_cleanup_errors=True)
        path = Path(self._scratch.name, draft)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def publish(self, staged: Path, folder: str, last: str, claim: bytes, check: Callable[[], None]) -> bool:
        if not self._claim(folder, claim):
            return False
        check()
        try:
            self._upload(staged, folder, last)
            check()
        except BaseException:
            with contextlib.suppress(StoreError):
                self.remove(folder)
            raise
        # From here on it may be whole for others, so it is not filled a second time.
        self._held.discard(folder)
        data = (staged / last).read_bytes()
        self.bucket.put(f"{folder}/{last}", data)
        if self.bucket.get(f"{folder}/{last}") != data:
            raise StoreError(_describe_lie(self.place, f"{folder}/{last}"))
        shutil.rmtree(staged, ignore_errors=True)
        return True

    def _claim(self, folder: str, claim: bytes) -> bool:
        if folder in self._held:
            return True
        if not self.create(name_claim(folder), claim) or self.list_files(folder):
            return False
        self._held.add(folder)
        return True

    def _upload(self, staged: Path, folder: str, last: str) -> None:
        files = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
        missing = sorted(files.keys() - {last})
        for _ in range(_UPLOADS):
            for name in missing:
                self.bucket.upload(files[name], f"{folder}/{name}")
            there = self.list_files(folder)
            missing = [name for name in missing if there.get(name) != files[name].stat().st_size]
            if not missing:
                return
        raise StoreError(_describe_lie(self.place, f"{folder}/{missing[0]}"))

    def discard(self, staged: Path) -> None:
        shutil.rmtree(staged, ignore_errors=True)

    def locate(self, folder: str) -> Path:
        return get_cache() / self._name_copy(folder) / folder.rsplit("/", 1)[-1]

    def _name_copy(self, folder: str) -> str:
        return hashlib.sha256(f"{self.place}/{folder}".encode()).hexdigest()[:24]

    def fetch(self, folder: str, files: Mapping[str, tuple[int, str]]) -> Path:
        """A copy that is here already is taken where it is what `files` say: all processes of a machine share it."""
        path = self.locate(folder)

        def download(copy: Path) -> None:
            for name in files:
                target = copy / path.name / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.bucket.download(f"{folder}/{name}", target)

        def is_right(copy: Path) -> bool:
            here = FolderStore(copy / path.name)
            return all(here.digest(name) == digest for name, (_, digest) in files.items())

        keep_copy(self._name_copy(folder), download, is_right)
        return path


def _describe_lie(place: str, path: str) -> Problem:
    return Problem(
        f"the store says that it keeps {path.rsplit('/', 1)[-1]}, and does not",
        where=f"{place}/{path}",
        why=f"it was sent {_UPLOADS} times at most, and is missing or has another size",
        fix="look at the storage service and what stands in front of it; then sftray resume the run",
    )
