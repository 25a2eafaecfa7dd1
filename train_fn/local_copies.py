"""Copies of what is in a bucket, on this machine: one for all its processes, fetched by the first that asks."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.places import BUCKETS, as_path, find_bucket

CACHE = "SFTRAY_CACHE"  # the environment variable that names another place for their folder
_OURS = "sftray-copies"  # the folder, wherever it is: in it nothing is anybody else's
_WHOLE, _LOCK = ".whole", ".lock"  # the first is put last into a copy, and its time is that of the last use
_UNUSED_S = 7 * 86400.0


def get_cache() -> Path:
    """The folder of the copies: this user's alone, made if need be.

    Raises:
        StoreError: it cannot be made.
    """
    base = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/"), ".cache")
    folder = Path(base, _OURS)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder
    except OSError:  # as in a container whose user has no home
        return _make_fallback(Path(tempfile.gettempdir(), f"{_OURS}-{os.getuid()}"))


def _make_fallback(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        facts = folder.lstat()
    except OSError as error:
        raise _refuse(folder, error) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise _refuse(folder, PermissionError(errno.EPERM, "it is not a folder of this user"))
    return folder


def copy_here(path: Path, ending: str = "") -> Path:
    """A file or a folder, as it is now, on this machine; itself where it is no bucket's.

    Args:
        ending: of a folder only the files are fetched whose names end so.

    Raises:
        StoreError: it cannot be fetched, or there is no room for it here. FileNotFoundError: there is none.
    """
    there = find_bucket(path)
    if there is None:
        return path
    found = there.list_marks()
    marks = {key: mark for key, mark in found.items() if key.endswith(ending) and not key.endswith("/")}
    if not found:
        raise FileNotFoundError(errno.ENOENT, "No such object", str(there))
    mark = hashlib.sha256(repr((str(there), sorted(marks.items()))).encode()).hexdigest()[:24]

    def download(folder: Path) -> None:
        for key in marks:
            target = folder / there.name / key.removeprefix(there.key).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            there.bucket.download(key, target)

    return keep_copy(mark, download) / there.name


def copy_source(name: str) -> str:
    """A model or tokenizer by its hub id or path, or by the path of its copy here where it is in a bucket."""
    return str(copy_here(as_path(name))) if name.startswith(BUCKETS) else name


def keep_copy(name: str, fill: Callable[[Path], None], is_right: Callable[[Path], bool] = Path.exists) -> Path:
    """The copy of this name, filled by whoever asks for it first, and again where it is not right any more."""
    root = get_cache()
    folder = root / name
    try:
        with _locked(root / f"{name}{_LOCK}"):
            if not (folder / _WHOLE).exists() or not is_right(folder):
                _remove_unused(root)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
            (folder / _WHOLE).touch()
    except StoreError:
        raise
    except OSError as error:
        raise _refuse(folder, error) from error
    return folder


def _remove_unused(root: Path) -> None:
    """What nobody has asked for in a week goes, and what a killed process left; who has it open keeps it.

    Only copies have a lock of their name beside them: another folder is not ours, and stays.
    """
    for lock in root.glob(f"*{_LOCK}"):
        folder = root / lock.name.removesuffix(_LOCK)
        with contextlib.suppress(OSError):
            used = folder / _WHOLE if (folder / _WHOLE).exists() else folder
            if folder.is_dir() and time.time() - used.stat().st_mtime > _UNUSED_S:
                with _locked(lock, fcntl.LOCK_NB):  # who is just filling it has it
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, how: int = 0) -> Iterator[None]:
    """Hold the lock at `path`. One that was removed while it was waited for locks nobody out, and is not it."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | how)
            if not _is_still(path, file.fileno()):
                continue
            yield
            return


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def upload_folder(folder: Path, target: BucketPath) -> None:
    """Put all files of a local folder below `target`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.bucket.upload(path, f"{target.key}/{path.relative_to(folder).as_posix()}")


def _refuse(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        Problem(
            f"a copy of what is in the bucket cannot be kept on this machine: {error.strerror or error}",
            where=str(folder),
            fix=f"make room there, or name another folder in the environment variable {CACHE} of the workers",
        )
    )
