"""Prepared tokens: memory-mapped Arrow files, read at random with flat memory.

A store is a folder `tokens/<key>/` with `train-00000.arrow, …`, `validation-00000.arrow, …` and `data.json`,
the receipt. The key is a digest of everything that decides its content, so a store never changes.
"""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sftray.train_fn.batch import Example
from sftray.train_fn.local_copies import copy_here
from sftray.train_fn.places import find_bucket

Split = Literal["train", "validation"]
RECEIPT = "data.json"
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.bool_()),
        "num_target_tokens": pa.int32(),
        "file": pa.int32(),  # index into the receipt's files
        "row": pa.int64(),  # line or row number there, from 1
        "digest": pa.uint64(),  # of the conversation, to find equal ones
    }
)
_STALE_SECONDS = 24 * 3600


class TokenStore:
    """One split of a store as a map-style data set. Picklable: a copy opens the files anew.

    Of a store in a bucket there is one copy on each machine, for all its processes.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split
        self._batches: list[pa.RecordBatch] = []
        for path in sorted(copy_here(folder, ".arrow").glob(f"{split}-*.arrow")):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches.extend(reader.get_batch(i) for i in range(reader.num_record_batches))
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self.lengths = self._read(lambda batch: np.diff(batch.column("input_ids").offsets.to_numpy()))
        self.target_counts = self._read(lambda batch: batch.column("num_target_tokens").to_numpy())

    def _read(self, column: Callable[[pa.RecordBatch], NDArray[np.int32]]) -> NDArray[np.int32]:
        """A number of each example, copied: four bytes each, in every process that trains."""
        values = np.empty(self._starts[-1], dtype=np.int32)
        for batch, start, stop in zip(self._batches, self._starts, self._starts[1:], strict=False):
            values[start:stop] = column(batch)
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.split)

    def __len__(self) -> int:
        return len(self.lengths)

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        which = bisect_right(self._starts, index) - 1
        return self._batches[which], index - self._starts[which]

    def __getitem__(self, index: int) -> Example:
        batch, row = self._find(index)
        ids = batch.column("input_ids")[row].values.to_numpy()
        mask = batch.column("loss_mask")[row].values.to_numpy(zero_copy_only=False)
        return Example(ids, mask, index)

    def get_place(self, index: int, files: Sequence[str]) -> str:
        """Where example `index` came from, as `file:row`; `files` are the receipt's."""
        batch, row = self._find(index)
        return f"{files[batch.column('file')[row].as_py()]}:{batch.column('row')[row].as_py()}"

    def get_digests(self) -> NDArray[np.uint64]:
        parts = [batch.column("digest").to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def read_receipt(folder: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    return receipt


def find_overlap(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """Equal conversations among the kept rows: within train, and of validation in train; first places."""
    train, validation = (TokenStore(folder, split) for split in ("train", "validation"))
    digests, first = np.unique(train.get_digests(), return_index=True)
    repeated = np.setdiff1d(np.arange(len(train)), first)
    shared = np.flatnonzero(np.isin(validation.get_digests(), digests))
    return {
        "train_duplicates": len(repeated),
        "validation_in_train": len(shared),
        "places": {
            "train_duplicates": [train.get_place(int(i), files) for i in repeated[:5]],
            "validation_in_train": [validation.get_place(int(i), files) for i in shared[:5]],
        },
    }


class SplitWriter:
    """Writes one Arrow file of one split, batch by batch; makes no file if nothing was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sink: Any = None
        self._writer: Any = None

    def write(self, columns: dict[str, list[Any]]) -> None:
        if not columns["input_ids"]:
            return
        if self._writer is None:
            self._sink = self.path.open("wb")
            self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.flush()
            os.fsync(self._sink.fileno())
            self._sink.close()


@contextlib.contextmanager
def open_draft(root: Path, key: str) -> Iterator[Path]:
    """`make_draft`, and what is left of it is removed at the end."""
    draft = make_draft(root, key)
    try:
        yield draft
    finally:
        if draft != root / key:
            shutil.rmtree(draft, ignore_errors=True)


def make_draft(root: Path, key: str) -> Path:
    """A folder of this process's own to prepare into; drafts left by dead processes for a day are removed.

    In a bucket it is the store itself, which is none before its receipt is there: whoever prepares the same key puts
    the same files, byte by byte.
    """
    if find_bucket(root) is not None:
        return root / key
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(".draft-*"):
        with contextlib.suppress(FileNotFoundError):  # its owner has just published it
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    draft = root / f".draft-{key}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    return draft


def publish_draft(draft: Path, root: Path, key: str) -> Path:
    """Make a finished draft the store of `key`, in one rename; who comes second uses the first one's."""
    final = root / key
    if draft == final:
        return final
    try:
        draft.rename(final)
    except OSError:
        if not (final / RECEIPT).exists():
            raise  # a folder that is no store, such as what an interrupted rm -r left of one
        shutil.rmtree(draft)
    return final
