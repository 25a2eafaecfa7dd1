"""Where a run's directory is kept: in a folder, local or on a shared mount, or under a prefix of a bucket.

All that is written twice by two processes at once, or must survive the death of one, goes through this: the
checkpoints, the numbers of attempts, the lease. It promises little, so that a folder and a bucket can both keep it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sftray.train_fn.patience import Patience

CLAIMS = "claims"


class Store(Protocol):
    """One run's directory. Paths are relative, with `/` between their parts.

    Everything raises StoreError where the store refuses for good. What may pass by itself is waited for first.
    """

    @property
    def place(self) -> str:
        """The directory, as a person would write it."""

    def list_files(self, folder: str = "") -> dict[str, int]:
        """All files below `folder` at any depth: paths relative to it, and bytes. {} where there is none."""

    def list_folders(self, folder: str) -> list[str]:
        """Names of the folders right in `folder`, sorted."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""

    def digest(self, path: str) -> str | None:
        """The sha256 of a file's content, in hexadecimal; None where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file, replacing one. Readers see the old one or the new one, which is durable on return."""

    def create(self, path: str, data: bytes) -> bool:
        """Put a file unless there is one: of all who try, exactly one hears True.

        `data` must be unique to the caller: what stands there after a lost answer tells whose it is.
        """

    def delete(self, path: str) -> None:
        """Remove a file; none is fine."""

    def remove(self, folder: str) -> None:
        """Remove a folder with all that is in it; none is fine."""

    def stage(self, draft: str) -> Path:
        """An empty local folder to be filled and then published; in a store of folders it stands at `draft`."""

    def publish(self, staged: Path, folder: str, last: str, claim: bytes, check: Callable[[], None]) -> bool:
        """Make a staged folder, whose files are flushed, stand at `folder`. Nothing that stands there is touched.

        The name is claimed first, and a claim outlives its folder, so that a name is given once and for all: were it
        given again, whoever slept while writing or deleting the first would wake up in the second.

        Args:
            last: the file that makes it whole; it is put after all others.
            claim: the record that stands in `name_claim(folder)`, unique to the caller.
            check: called right before the last act; what it raises ends the matter.

        Returns:
            False where `folder` is taken, or was, be it by half a folder.
        """

    def discard(self, staged: Path) -> None:
        """Remove what is left of a staged folder."""

    def locate(self, folder: str) -> Path:
        """Where on this machine a folder is, or would be once fetched."""

    def fetch(self, folder: str, files: Mapping[str, tuple[int, str]]) -> Path:
        """`locate(folder)`, with these files in it, by name: bytes and sha256; what is missing is left out."""


def name_claim(folder: str) -> str:
    """Where it stands who has a folder's name: the writer of what is, was or will be there."""
    return f"{CLAIMS}/{folder.rsplit('/', 1)[-1]}.json"


def connect_store(place: str | Path, patience: Patience | None = None) -> Store:
    """The store at a local path, or at a URL: `s3://bucket/prefix`, `gs://bucket/prefix`.

    A URL may end in `?endpoint_override=http://host:port&region=name` for a service that speaks S3.

    Raises:
        ConfigError: a URL of another kind.
        StoreError: a package is missing.
    """
    if "://" not in str(place):
        from sftray.train_fn.store_posix import FolderStore

        return FolderStore(Path(place))
    from sftray.train_fn.store_s3 import connect_bucket

    return connect_bucket(str(place), patience or Patience())
