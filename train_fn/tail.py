"""Following a file of JSON lines while another process writes it."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.places import find_bucket

Row = Mapping[str, Any]

_logger = logging.getLogger(__name__)


class Tail:
    """The whole lines that a growing file has gained since the last look.

    A resumed run replaces its metrics by a shorter file, and writes later steps anew. Each line is handed on
    once: what the shorter file kept is known already, and a step written anew is a new line, since its time is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._offset = 0
        self._mark: str | None = None  # of an object
        self._seen: set[int] = set()

    def read(self) -> list[Row]:
        """New rows. None while the file is missing or cannot be read: the next look will find them."""
        try:
            lines = self._read_lines()
        except OSError:
            return []
        return [row for line in lines if (row := self._parse(line)) is not None]

    def _read_lines(self) -> list[bytes]:
        if (there := find_bucket(self._path)) is not None:
            return self._read_object(there)
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]  # a torn last line waits for its end
        self._offset += len(whole)
        return whole.split(b"\n")[:-1]

    def _read_object(self, there: BucketPath) -> list[bytes]:
        """All lines, where the object is not the one of the last look: which are new is told by `_parse`."""
        mark = there.get_mark()
        if mark is None or mark == self._mark:
            return []
        self._mark, block = mark, there.read_bytes()
        return block[: block.rfind(b"\n") + 1].split(b"\n")[:-1]

    def _parse(self, line: bytes) -> Row | None:
        key = hash(line)
        if key in self._seen:
            return None
        self._seen.add(key)
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            _logger.warning("%s has a line that is no row; it is passed over", self._path)
            return None
        return row
