"""A bucket over HTTP, whichever service keeps it: pyarrow lists, reads and streams, and the service's own package
does what pyarrow has no word for.
"""

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.patience import Patience, try_patiently

T = TypeVar("T")
_PIECE = 8 * 2**20  # bytes sent or read at once
_RIGHTS = re.compile(
    r"Expired|Access ?Denied|EXPIRED|ACCESS_DENIED|InvalidAccessKey|INVALID_ACCESS_KEY|Signature|[Cc]redentials"
)


@dataclass(frozen=True)
class Service:
    """What keeps a bucket. Keys begin with the bucket's name.

    create: puts a key unless there is one; False where there is.
    delete: removes a key; none is fine.
    read: content and version of a key, or FileNotFoundError.
    replace: puts a key whose version is still this one; False where it is not.
    list_marks: keys that begin with a text, and for each what changes with its content.
    may_pass: whether an error is worth another try.
    """

    filesystem: Any
    create: Callable[[str, bytes], bool]
    delete: Callable[[str], None]
    read: Callable[[str], tuple[bytes, str]]
    replace: Callable[[str, bytes, str], bool]
    list_marks: Callable[[str], dict[str, str]]
    may_pass: Callable[[Exception], bool]


class HttpBucket:
    """Objects below `root`: bucket and prefix, as pyarrow writes them."""

    def __init__(self, place: str, service: Service, root: str, patience: Patience) -> None:
        self.place = place
        self._service, self._fs, self._root, self._patience = service, service.filesystem, root, patience

    def locate(self, key: str) -> tuple[Any, str]:
        """A key by pyarrow's file system, and its path there."""
        return self._fs, f"{self._root}/{key}"

    def list_marks(self, key: str) -> dict[str, str]:
        """The object at `key` and those below it, and what changes when they do."""
        found = self._try("listed", key, lambda: self._service.list_marks(f"{self._root}/{key}"))
        marks = {name.removeprefix(f"{self._root}/"): mark for name, mark in found.items()}
        return {name: mark for name, mark in marks.items() if name == key or name.startswith(f"{key}/")}

    def list(self, prefix: str) -> dict[str, int]:
        folder = prefix.rpartition("/")[0]
        base = f"{self._root}/{folder}" if folder else self._root
        selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
        found = self._try("listed", prefix, lambda: self._fs.get_file_info(selector))
        keys = {info.path.removeprefix(f"{self._root}/"): info.size for info in found if info.is_file}
        return {key: size for key, size in keys.items() if key.startswith(prefix)}

    def list_names(self, folder: str) -> dict[str, bool]:
        """Names right in `folder`, and whether they are objects; else more is below them."""
        selector = fs.FileSelector(f"{self._root}/{folder}".rstrip("/"), allow_not_found=True)
        found = self._try("listed", folder, lambda: self._fs.get_file_info(selector))
        return {info.base_name: info.is_file for info in found if info.base_name}

    def find(self, key: str) -> Any:
        """pyarrow's word on a key: its `type`, `size` and `mtime_ns`."""
        return self._try("looked at", key, lambda: self._fs.get_file_info(f"{self._root}/{key}"))

    def get(self, key: str) -> bytes | None:
        return self._try("read", key, lambda: b"".join(self._stream(key)), missing=None)

    def digest(self, key: str) -> str | None:
        def compute() -> str:
            digest = hashlib.sha256()
            for piece in self._stream(key):
                digest.update(piece)
            return digest.hexdigest()

        return self._try("read", key, compute, missing=None)

    def put(self, key: str, data: bytes) -> None:
        def put() -> None:
            with self._open(key) as stream:
                stream.write(data)

        self._try("written", key, put)

    def create(self, key: str, data: bytes) -> bool:
        return self._try("written", key, lambda: self._service.create(f"{self._root}/{key}", data))

    def read_version(self, key: str) -> tuple[bytes, str] | None:
        return self._try("read", key, lambda: self._service.read(f"{self._root}/{key}"), missing=None)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Put a key whose version is still this one; False where another has been put meanwhile."""
        return self._try("written", key, lambda: self._service.replace(f"{self._root}/{key}", data, version))

    def delete(self, key: str) -> None:
        self._try("removed", key, lambda: self._service.delete(f"{self._root}/{key}"))

    def upload(self, path: Path, key: str) -> None:
        def upload() -> None:
            with path.open("rb") as file, self._open(key) as stream:
                while piece := file.read(_PIECE):
                    stream.write(piece)

        self._try("written", key, upload)

    def download(self, key: str, path: Path) -> None:
        def download() -> None:
            pieces = self._stream(key)
            first = next(pieces, b"")
            file = _do_here(path.open, "wb")
            try:
                for piece in itertools.chain([first], pieces):
                    _do_here(file.write, piece)
            finally:
                _do_here(file.close)

        try:
            self._try("read", key, download, missing=None)
        except _RefusedHere as refused:
            raise refused.error from None

    def _open(self, key: str) -> Any:
        return self._fs.open_output_stream(f"{self._root}/{key}", compression=None)

    def _stream(self, key: str) -> Any:
        with self._fs.open_input_stream(f"{self._root}/{key}", compression=None) as stream:
            while piece := stream.read(_PIECE):
                yield piece

    def _try(self, act: str, key: str, what: Callable[[], T], **missing: Any) -> T:
        """`what()`, tried again where that may help. `missing=…`: what stands for an object that is not there."""
        try:
            return try_patiently(what, self._service.may_pass, self._patience)
        except FileNotFoundError as error:
            if missing:
                return missing["missing"]  # type: ignore[no-any-return]
            raise StoreError(self._describe(act, key, error)) from error
        except StoreError:
            raise
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise StoreError(self._describe(act, key, error)) from error

    def _describe(self, act: str, key: str, error: Exception) -> Problem:
        fixes = {
            True: "give new credentials, or the right to list, read, write and delete below store.path",
            False: "see that the service answers and that the bucket exists; then sftray resume the run",
        }
        said = " ".join(str(error).split())[:300]
        tried = f", though that was tried {self._patience.tries} times" if self._service.may_pass(error) else ""
        return Problem(
            f"{key.rsplit('/', 1)[-1] or key} cannot be {act}{tried}",
            where=f"{self.place}/{key}",
            why=said,
            fix=fixes[bool(_RIGHTS.search(said))],
        )


class _RefusedHere(Exception):
    """This machine refuses, and not the service: to ask it again would be in vain."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _do_here(act: Callable[..., T], *arguments: Any) -> T:
    try:
        return act(*arguments)
    except OSError as error:
        raise _RefusedHere(error) from error


def is_of_storage(error: Exception) -> bool:
    """Whether it comes from a service's package or the network, and not from a mistake of our own."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"botocore", "boto3", "google"}
