"""A place as a path, in a folder or in a bucket, and what must be done with both in ways of their own."""

import contextlib
import os
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.store_posix import put_whole

BUCKETS = ("s3://", "gs://")


def as_path(place: str | Path) -> Path:
    """The path of a folder or a file, or of a URL, which then is a BucketPath."""
    return cast(Path, BucketPath(str(place))) if "://" in str(place) else Path(place)


def find_bucket(place: object) -> BucketPath | None:
    """The place itself where it is in a bucket."""
    return place if isinstance(place, BucketPath) else None


def is_file(path: Path) -> bool:
    """Of a name that the system cannot have, too, it is known: there is none."""
    return path.is_file() if find_bucket(path) else os.path.isfile(path)


def is_folder(path: Path) -> bool:
    return path.is_dir() if find_bucket(path) else os.path.isdir(path)


def spell(path: Path) -> str:
    """A path as one word of a command line."""
    return shlex.quote(str(path))


def write_whole(path: Path, data: str | bytes) -> None:
    """Put a small file: who reads it meanwhile sees the old one or the new one. It is durable on return.

    Raises:
        OSError: the store refuses it.
    """
    content = data.encode() if isinstance(data, str) else data
    if (there := find_bucket(path)) is not None:
        there.write_bytes(content)
        return
    put_whole(path, content)


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it, as far as the store lets it; none is fine."""
    if (there := find_bucket(path)) is None:
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        there.remove_tree()


def name_storage(folder: Path) -> dict[str, Any]:
    """A folder as Ray's `storage_path`, and for one in a bucket its `storage_filesystem`."""
    if (there := find_bucket(folder)) is None:
        return {"storage_path": str(folder)}
    filesystem, path = there.bucket.locate(there.key)
    return {"storage_path": path, "storage_filesystem": filesystem}
