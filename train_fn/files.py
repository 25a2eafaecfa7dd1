"""Input files: finding them, cutting them into chunks that are prepared apart, and their fingerprint."""

import difflib
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftray.train_fn.errors import DataError, Problem, UserError
from sftray.train_fn.file_kinds import FORMATS, Format, check_content, explain_empty, get_format
from sftray.train_fn.local_copies import copy_here
from sftray.train_fn.places import BUCKETS, as_path, find_bucket

ASSETS = Path(__file__).parent / "assets"
PRESET = "preset://"
BLOCK_BYTES = 1 << 20  # of one read: stays in a processor's cache between the hash and the count
MAX_NAMES = 5000  # of a folder, among which a near name is sought


@dataclass(frozen=True)
class Chunk:
    """A piece of one file that one process can read alone.

    `start` and `stop` are bytes for JSONL (`start` at the start of a line), row groups for Parquet, and the
    whole file otherwise. `first_row` is the number of its first row: a line number, from 1, for JSONL (blank
    lines count) and CSV, and the number of the row, from 1, for Parquet.
    """

    file: str
    start: int
    stop: int
    first_row: int
    format: Format


@dataclass(frozen=True)
class Scanned:
    """All files as chunks, in order. The fingerprint is of the files' bytes and order, not of their names."""

    chunks: list[Chunk]
    fingerprint: str
    num_bytes: int


def find_files(paths: str | Sequence[str], key: str) -> list[Path]:
    """The files that the config's `key` (such as `data.train`) names: a file, a glob, or a list of them.

    The order is the given one, and by name within a glob. `preset://…` is a file that ships with the package.
    Raises `DataError` with all that is wrong: missing, a folder, a glob of nothing, an unknown extension,
    a URL of another kind, a file named twice.
    """
    found: list[Path] = []
    problems: list[Problem] = []
    for text in [paths] if isinstance(paths, str) else paths:
        matches = _match(text, key)
        if isinstance(matches, Problem):
            problems.append(matches)
        else:
            found += matches
            problems += [problem for path in matches if (problem := _check_kind(path, key))]
    problems += _find_repeats(found, key)
    if problems:
        raise DataError(*problems)
    return found


def _match(text: str, key: str) -> list[Path] | Problem:
    pattern = os.path.expanduser(text)
    if text.startswith(PRESET):
        shipped = ASSETS / text.removeprefix(PRESET)
        if not shipped.resolve().is_relative_to(ASSETS.resolve()):
            return Problem(f"{key}: {text} leads out of the package", fix="name the file by its path")
        pattern = str(shipped)
    elif "://" in text:
        return _match_url(text, key)
    if os.path.exists(pattern):
        return [Path(pattern)]
    if not glob.has_magic(pattern):
        return _explain_missing(text, Path(pattern), key)
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(name)]
    return matches or Problem(
        f"{key}: {text} matches no file",
        why=f"looked in {os.path.abspath(os.path.dirname(pattern))}",
        fix=f"{key}: a pattern such as data/*.jsonl, relative to where the command is run",
    )


def _match_url(text: str, key: str) -> list[Path] | Problem:
    if not text.startswith(BUCKETS):
        return Problem(
            f"{key}: {text} is a URL of a kind that is not known",
            why=f"rows are read from paths, and from {' and '.join(BUCKETS)}",
            fix="copy the file to a path that every node can read, or into a bucket, and name that",
        )
    path = as_path(text)
    try:
        if path.exists():
            return [path]
        if not glob.has_magic(path.name):
            return Problem(f"{key}: no object {text}", fix=f"{key}: one that is there")
        return sorted(path.parent.glob(path.name)) or Problem(
            f"{key}: {text} matches no object",
            why="of a URL only the last part may hold * and ?",
            fix=f"{key}: a pattern such as {BUCKETS[0]}bucket/data/*.jsonl",
        )
    except UserError as error:
        return error.problems[0]


def _explain_missing(text: str, path: Path, key: str) -> Problem:
    """Names the first part of the path that is missing, and the nearest names beside it."""
    missing = path
    while not os.path.exists(missing.parent):
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES) if entry.name != missing.name]
        why = f"{missing.parent.absolute()} holds no {missing.name}"
    except OSError as error:  # no folder, or a closed one
        names, why = [], f"{missing.parent.absolute()}: {error.strerror}"
    if os.path.islink(missing):
        why = f"{missing} is a link to {os.readlink(missing)}, which is not there"
    near = difflib.get_close_matches(missing.name, names)
    # As the person writes it: after a home folder or preset:// too.
    here = missing == path
    meant = [text.removesuffix(path.name) + name if here else str(missing.parent / name) for name in near]
    return Problem(
        f"{key}: no file {text}" + (f". Did you mean {' or '.join(meant)}?" if meant else ""),
        why=why,
        fix=f"{key}: {meant[0] if meant and here else 'a file that is there'}",
    )


def _check_kind(path: Path, key: str) -> Problem | None:
    if path.is_dir():
        inside = next((name for name in FORMATS if any(path.glob(f"*.{name}"))), "jsonl")
        return Problem(f"{key}: {path} is a folder", fix=f"{key}: {path / f'*.{inside}'}")
    if not path.is_file():
        return Problem(f"{key}: {path} is not a regular file", fix=f"{key}: a file on disk")
    if get_format(path) is None:
        return Problem(
            f"{key}: {path} has an extension that is not known",
            why=f"files are read by their extension: {', '.join(FORMATS)}",
            fix="rename it if it is one of these (one JSON object per line is .jsonl), or convert it",
        )
    return None


def _find_repeats(found: Sequence[Path], key: str) -> Iterator[Problem]:
    first: dict[str, Path] = {}
    for path in found:
        earlier = first.setdefault(str(path) if find_bucket(path) else os.path.realpath(path), path)
        if earlier is not path:
            same = "" if str(earlier) == str(path) else f" (also as {earlier})"
            yield Problem(f"{key}: {path} is named twice{same}", fix=f"{key}: name each file once")


def scan_files(files: Sequence[Path], chunk_bytes: int = 8 << 20) -> Scanned:
    """One pass over the files, in flat memory: their hash, and chunks of about `chunk_bytes`.

    A chunk of JSONL ends at the first line end at or past that size, one of Parquet at a row group; other
    files are one chunk. Raises `DataError` with the problem of each file that is empty, unreadable, or not
    what its name says.
    """
    chunks: list[Chunk] = []
    hashes = b""
    num_bytes = 0
    problems: list[Problem] = []
    for path in files:
        format = get_format(path)
        assert format is not None  # find_files has refused the others
        try:
            here = copy_here(path)
            if problem := check_content(here, format):
                problems.append(replace(problem, where=str(path)))
                continue
            hasher = hashlib.sha256()
            found, size = _scan_file(here, format, chunk_bytes, hasher.update)
            pieces = [replace(piece, file=str(path)) for piece in found]
        except (OSError, pa.ArrowException) as error:
            problems.append(_explain_unreadable(path, error))
            continue
        if not pieces:
            problems.append(explain_empty(path))
        chunks += pieces
        hashes += hasher.digest()
        num_bytes += size
    if problems:
        raise DataError(*problems)
    return Scanned(chunks, hashlib.sha256(hashes).hexdigest(), num_bytes)


def _explain_unreadable(path: Path, error: Exception) -> Problem:
    if isinstance(error, OSError) and error.errno is not None:
        return Problem("the file cannot be read", str(path), why=error.strerror, fix="check its path and rights")
    return Problem(
        "the Parquet file is cut off or damaged",
        str(path),
        why=str(error),
        fix="write or copy the file again",
    )


def _scan_file(
    path: Path, format: Format, chunk_bytes: int, update: Callable[[memoryview], None]
) -> tuple[list[Chunk], int]:
    if format == "jsonl":
        return _scan_lines(path, chunk_bytes, update)
    size = sum(size for _, size in _read_blocks(path, update))
    if format == "parquet":
        return _cut_row_groups(path, chunk_bytes), size
    return [Chunk(str(path), 0, size, 1, format)], size


def _read_blocks(path: Path, update: Callable[[memoryview], None]) -> Iterator[tuple[bytearray, int]]:
    """The file's blocks, each with how many of its bytes count; the buffer is used again."""
    block = bytearray(BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            update(view[:size])
            yield block, size


def _scan_lines(path: Path, chunk_bytes: int, update: Callable[[memoryview], None]) -> tuple[list[Chunk], int]:
    chunks: list[Chunk] = []
    start, first_row = 0, 1  # of the chunk that is being measured
    offset, row = 0, 1  # of the block, and of the line that is being measured
    for block, size in _read_blocks(path, update):
        position = 0
        while True:
            end = block.find(b"\n", max(position, start + chunk_bytes - 1 - offset), size) + 1
            if end == 0:
                break
            row += block.count(b"\n", position, end)
            chunks.append(Chunk(str(path), start, offset + end, first_row, "jsonl"))
            start, first_row, position = offset + end, row, end
        row += block.count(b"\n", position, size)
        offset += size
    if start < offset:
        chunks.append(Chunk(str(path), start, offset, first_row, "jsonl"))
    return chunks, offset


def _cut_row_groups(path: Path, chunk_bytes: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    start, first_row, row, size = 0, 1, 1, 0
    with pq.ParquetFile(path) as parquet:
        meta = parquet.metadata
        for index in range(meta.num_row_groups if meta.num_rows else 0):
            group = meta.row_group(index)
            row += group.num_rows
            size += group.total_byte_size
            if size >= chunk_bytes or index + 1 == meta.num_row_groups:
                chunks.append(Chunk(str(path), start, index + 1, first_row, "parquet"))
                start, first_row, size = index + 1, row, 0
    return chunks
