"""A store in a folder. What it promises holds on local disks and on NFS: rename, hard links and fsync are all it
needs. The files that grow (`journal`) and the mailboxes of a sweep stand in the same folder and need flock besides.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.store import name_claim

_UNFINISHED = ".writing-"  # a file on its way; a killed writer leaves it
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}


class FolderStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        return str(self.root)

    def list_files(self, folder: str = "") -> dict[str, int]:
        top, found = self.root / folder, {}
        with _refusing("read", top):
            for parent, _, names in os.walk(top, onerror=_raise_unless_gone):
                for path in (Path(parent, name) for name in names if not name.startswith(_UNFINISHED)):
                    with contextlib.suppress(FileNotFoundError):
                        found[path.relative_to(top).as_posix()] = path.stat().st_size
        return found

    def list_folders(self, folder: str) -> list[str]:
        with _refusing("read", self.root / folder):
            try:
                return sorted(entry.name for entry in os.scandir(self.root / folder) if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read(self, path: str) -> bytes | None:
        with _refusing("read", self.root / path):
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def digest(self, path: str) -> str | None:
        with _refusing("read", self.root / path):
            try:
                with (self.root / path).open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        final = self.root / path
        with _refusing("written", final):
            final.parent.mkdir(parents=True, exist_ok=True)
            put_whole(final, data)

    def create(self, path: str, data: bytes) -> bool:
        final = self.root / path
        with _refusing("written", final):
            final.parent.mkdir(parents=True, exist_ok=True)
        with _refusing("written", final), _draft(final, data) as draft:
            try:
                os.link(draft, final)
            except FileExistsError:
                # NFS may have done it, lost the answer and asked again.
                return draft.stat().st_nlink == 2
            flush(final.parent)
            return True

    def delete(self, path: str) -> None:
        with _refusing("removed", self.root / path), contextlib.suppress(NotADirectoryError):
            (self.root / path).unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        path = self.root / folder
        with _refusing("removed", path):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                shutil.rmtree(path, ignore_errors=True)  # somebody else removes it too
            except OSError as error:
                if error.errno not in _TAKEN:  # else somebody has put something there meanwhile, which stays
                    raise

    def stage(self, draft: str) -> Path:
        path = self.root / draft
        with _refusing("written", path):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
        return path

    def publish(self, staged: Path, folder: str, last: str, claim: bytes, check: Callable[[], None]) -> bool:
        """One rename shows all files, so `last` is not needed."""
        final = self.root / folder
        check()
        if not self.create(name_claim(folder), claim):
            return False
        with _refusing("written", final):
            for parent, _, _ in os.walk(staged):
                flush(Path(parent))
            check()
            try:
                staged.rename(final)
            except OSError as error:
                if error.errno in _TAKEN and staged.exists():
                    return False
                raise
            flush(final.parent)
        return True

    def discard(self, staged: Path) -> None:
        shutil.rmtree(staged, ignore_errors=True)

    def locate(self, folder: str) -> Path:
        return self.root / folder

    def fetch(self, folder: str, files: Mapping[str, tuple[int, str]]) -> Path:
        return self.root / folder


def _raise_unless_gone(error: OSError) -> None:
    """A folder that vanishes is empty; one that cannot be read is not: its files would pass for missing."""
    if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
        raise error


def put_whole(final: Path, data: bytes) -> None:
    """Put a file, replacing one. Readers see the old one or the new one, which is durable on return."""
    with _draft(final, data) as draft:
        draft.replace(final)
        flush(final.parent)


@contextlib.contextmanager
def _draft(final: Path, data: bytes) -> Iterator[Path]:
    """A flushed file beside `final`, gone at the end."""
    draft = final.with_name(f"{_UNFINISHED}{final.name}-{uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make what a file holds durable, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _refusing(act: str, path: Path) -> Iterator[None]:
    """Errors of the file system as StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            Problem(
                f"{path.name} cannot be {act}: {error.strerror or error}",
                where=str(path),
                fix="free space, or mend the permissions or the mount of store.path; then sftray resume the run",
            )
        ) from error
