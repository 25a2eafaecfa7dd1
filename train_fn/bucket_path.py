"""A path in a bucket, for code that reads and writes small files by `pathlib.Path`.

It has the part of Path's interface that runs and sweeps use, with the same meaning, over the objects of a bucket:
folders are there as soon as something is in them, a file is put whole, and what is gone raises FileNotFoundError.
Anything else that the service refuses is an error that is both an OSError, as a disk would raise, and a StoreError.
"""

import contextlib
import errno
import fnmatch
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any, Self
from uuid import uuid4

from pyarrow import fs

from sftray.train_fn.bucket_url import BucketUrl, parse_bucket_url
from sftray.train_fn.errors import StoreError
from sftray.train_fn.patience import Patience
from sftray.train_fn.store_http import HttpBucket

_MADE = ".made"  # in a folder that one of many was to make
_HASTY = Patience(tries=2)


class BucketError(StoreError, OSError):
    """The service refused. Where a disk would have, code waits for it or passes over it."""


@dataclass(frozen=True)
class Stat:
    st_size: int
    st_mtime: float


class BucketPath:
    """What a URL names (see `bucket_url`); its options go with it wherever it goes."""

    def __init__(self, url: str) -> None:
        self._set(parse_bucket_url(url))

    def _set(self, url: BucketUrl) -> None:
        self._key = PurePosixPath(url.key)
        self._url = replace(url, key="" if str(self._key) == "." else str(self._key))

    def _at(self, key: PurePosixPath) -> Self:
        """Another place in the same bucket; names are not read as parts of a URL."""
        made = object.__new__(type(self))
        made._set(replace(self._url, key=str(key).strip("/")))
        return made

    def __str__(self) -> str:
        return str(self._url)

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketPath, (str(self),)

    def __hash__(self) -> int:
        return hash(self._url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and self._url == other._url

    def __lt__(self, other: Self) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: object) -> Self:
        return self._at(self._key / str(name).strip("/"))

    @property
    def key(self) -> str:
        return self._url.key

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def stem(self) -> str:
        return self._key.stem

    @property
    def parent(self) -> Self:
        return self._at(self._key.parent)

    def with_name(self, name: str) -> Self:
        return self._at(self._key.with_name(name))

    def relative_to(self, above: Self) -> PurePosixPath:
        return self._key.relative_to(above._key)

    def absolute(self) -> Self:
        return self

    def resolve(self) -> Self:
        return self

    @property
    def bucket(self) -> HttpBucket:
        """All of the bucket."""
        return open_root(replace(self._url, key=""), Patience())

    @property
    def hasty_bucket(self) -> HttpBucket:
        """The same for one who has no time to wait for a service that is down."""
        return open_root(replace(self._url, key=""), _HASTY)

    def _find(self) -> Any:
        with _refusing():
            return self.bucket.find(self.key)

    def exists(self) -> bool:
        return bool(self._find().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self._find().type == fs.FileType.File)

    def is_dir(self) -> bool:
        return bool(self._find().type == fs.FileType.Directory)

    def stat(self) -> Stat:
        found = self._find()
        if found.type == fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        return Stat(found.size or 0, (found.mtime_ns or 0) / 1e9)

    def list_marks(self) -> dict[str, str]:
        """The keys of the object and of those below it, and for each what changes with its content."""
        with _refusing():
            return self.bucket.list_marks(self.key)

    def get_mark(self) -> str | None:
        return self.list_marks().get(self.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Of all who make the same folder, exactly one does not hear FileExistsError, unless that is fine."""
        if exist_ok:
            return
        with _refusing():
            mine = uuid4().hex.encode()
            if not self.bucket.list_names(self.key):
                self.bucket.create(f"{self.key}/{_MADE}", mine)
                if self.bucket.get(f"{self.key}/{_MADE}") == mine:
                    return
        raise FileExistsError(errno.EEXIST, "There are objects below it", str(self))

    def iterdir(self) -> Iterator[Self]:
        with _refusing():
            names = sorted(self.bucket.list_names(self.key))
        return (self / name for name in names)

    def glob(self, pattern: str) -> Iterator[Self]:
        """Of names right in the folder."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def read_bytes(self) -> bytes:
        with _refusing():
            data = self.bucket.get(self.key)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        return data

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> int:
        with _refusing():
            self.bucket.put(self.key, data)
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    def open(self, mode: str = "r", encoding: str = "utf-8", buffering: int = -1) -> IO[Any]:
        """To read: the content as it is now. To write is for write_text and write_bytes, which put it whole."""
        if mode == "rb":
            return io.BytesIO(self.read_bytes())
        if mode == "r":
            return io.StringIO(self.read_text(encoding))
        raise ValueError(f"{mode}: an object is put whole")

    def touch(self) -> None:
        with _refusing():
            self.bucket.create(self.key, b"")

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.exists():
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        with _refusing():
            self.bucket.delete(self.key)

    def remove_tree(self) -> None:
        """The object, and all below it, the empty ones that others put for folders too."""
        with _refusing():
            for key in self.bucket.list_marks(self.key):
                self.bucket.delete(key)

    def change(self, edit: Callable[[bytes], bytes], hasty: bool = False) -> None:
        """Put `edit(content)`, b"" where there is none, as one act: of others who do the same, nothing is lost."""
        bucket = self.hasty_bucket if hasty else self.bucket
        with _refusing():
            while not _try_change(bucket, self.key, edit):
                continue  # somebody else was faster


def _try_change(bucket: HttpBucket, key: str, edit: Callable[[bytes], bytes]) -> bool:
    found = bucket.read_version(key)
    if found is None:
        data = edit(b"")
        return bucket.create(key, data) or (bucket.get(key) or b"").startswith(data)
    data = edit(found[0])
    if data == found[0] or bucket.replace(key, data, found[1]):
        return True
    # The answer may have been lost, and the question asked again: then it stands there.
    return bool(data.startswith(found[0]) and (bucket.get(key) or b"").startswith(data))


@lru_cache(maxsize=64)
def open_root(url: BucketUrl, patience: Patience) -> HttpBucket:
    from sftray.train_fn.store_s3 import open_bucket

    return open_bucket(url, patience)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except BucketError:
        raise
    except StoreError as error:
        raise BucketError(*error.problems) from error
