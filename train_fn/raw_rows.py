"""The raw rows of a chunk, one at a time, each with its place; what cannot be read is a `Problem`.

Memory is that of one row (Parquet: of a few), whatever the size of the file.
"""

import csv
import gzip
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sftray.train_fn.errors import DataError, Problem
from sftray.train_fn.file_kinds import BOM
from sftray.train_fn.files import Chunk
from sftray.train_fn.json_lines import RawRow, parse_line
from sftray.train_fn.local_copies import copy_here
from sftray.train_fn.places import as_path

_CELL_CHARS = 1 << 27  # of one CSV cell: a quote that is never closed must not take in a whole file
_BATCH_BYTES = 4 << 20  # of Parquet rows decoded at once
_HEADER_FIX = "name the columns on the first line, such as prompt,completion"


def read_raw(chunk: Chunk, columns: Collection[str]) -> Iterator[RawRow | Problem]:
    """The rows of a chunk, in order. Bytes of a packed file count in what it unpacks to.

    Args:
        columns: those of a Parquet file that are read; in place of the others stands a word.

    Raises:
        DataError: the file cannot be opened or read.
    """
    try:
        with copy_here(as_path(chunk.file)).open("rb") as stream:
            if chunk.format == "csv":
                yield from _read_csv(chunk, stream)
            elif chunk.format == "parquet":
                yield from _read_parquet(chunk, stream, columns)
            else:
                yield from _read_jsonl(chunk, stream)
    except OSError as error:
        raise DataError(
            Problem(
                "the file cannot be read here",
                chunk.file,
                why=error.strerror or str(error),
                fix="put it on a path that every node can read",
            )
        ) from error


def _read_jsonl(chunk: Chunk, stream: BinaryIO) -> Iterator[RawRow | Problem]:
    packed = chunk.format == "jsonl.gz"
    row, byte = chunk.first_row, chunk.start
    try:
        for line in gzip.GzipFile(fileobj=stream) if packed else _read_lines(chunk, stream):
            if byte == 0 and line.startswith(BOM):
                line, byte = line.removeprefix(BOM), len(BOM)
            if line and not line.isspace():
                yield parse_line(chunk.file, row, byte, line)
            row, byte = row + 1, byte + len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Problem(
            "the packed file ends early or is damaged here",
            f"{chunk.file}:{row}:{byte}",
            why=f"rows from here on cannot be unpacked: {error}",
            fix=f"copy or pack the file again, until gzip -t {chunk.file} is content",
        )
        return
    if not packed and byte != chunk.stop:
        yield _explain_change(f"{chunk.file}:{row}:{byte}")


def _explain_change(place: str) -> Problem:
    return Problem(
        "the file changed after it was scanned",
        place,
        why="lines or row groups that it had are no longer there",
        fix="start again when nothing writes to the file",
    )


def _read_lines(chunk: Chunk, stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(chunk.start)
    left = chunk.stop - chunk.start
    while left > 0 and (line := stream.readline()):
        left -= len(line)
        yield line


def _read_csv(chunk: Chunk, stream: BinaryIO) -> Iterator[RawRow | Problem]:
    """Rows are named by the line on which they start; blank lines are skipped."""
    records = _read_records(chunk.file, stream)
    line, header = next(records, (1, []))
    if isinstance(header, Problem):
        yield header
        return
    if twice := sorted({name for name in header if header.count(name) > 1}):
        yield Problem(
            f"the header names {', '.join(twice)} twice", f"{chunk.file}:{line}", fix="name each column once"
        )
        return
    line = 0
    for line, cells in records:
        if isinstance(cells, Problem):
            yield cells
        elif len(cells) != len(header):
            yield Problem(
                f"the row has {len(cells)} cells, the header names {len(header)} columns",
                f"{chunk.file}:{line}",
                why=f"the columns are {', '.join(header)}",
                fix="put a cell that holds a comma in quotes, and give every column a cell",
            )
        else:
            yield RawRow(chunk.file, line, dict(zip(header, cells, strict=True)))
    if not line:
        yield Problem("the file has no row below its first line", f"{chunk.file}:1", fix=_HEADER_FIX)


def _read_records(file: str, stream: BinaryIO) -> Iterator[tuple[int, list[str] | Problem]]:
    """The cells of each row, with the line on which it starts."""
    csv.field_size_limit(_CELL_CHARS)
    if stream.read(len(BOM)) != BOM:
        stream.seek(0)
    # A byte that is not UTF-8 becomes a lone surrogate, so that the reader can go on after it.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in stream), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
            "".join(cells).encode()
        except StopIteration:
            return
        except (csv.Error, UnicodeEncodeError) as error:
            yield line, _explain_bad_record(f"{file}:{line}", error)
        else:
            if cells:
                yield line, cells


def _explain_bad_record(place: str, error: csv.Error | UnicodeEncodeError) -> Problem:
    if isinstance(error, UnicodeEncodeError):
        byte = ord(error.object[error.start]) - 0xDC00
        fix = "write the file as UTF-8: iconv -f THE_ENCODING -t UTF-8"
        return Problem(f"the row that starts here is not UTF-8: byte 0x{byte:02x}", place, fix=fix)
    fix = 'quote a cell that holds a comma, quote or line end, and write its quotes as ""'
    return Problem("the row that starts here is not CSV", place, why=str(error), fix=fix)


def _read_parquet(chunk: Chunk, stream: BinaryIO, columns: Collection[str]) -> Iterator[RawRow | Problem]:
    row = chunk.first_row
    try:
        with pq.ParquetFile(stream, buffer_size=1 << 20, page_checksum_verification=True) as parquet:
            if parquet.num_row_groups < chunk.stop:
                yield _explain_change(f"{chunk.file}:{row}")
                return
            names = parquet.schema_arrow.names
            # A null cell was not there; columns that are not read stay named, for messages.
            empty = {name: None if name in columns else "not read" for name in names}
            for batch in parquet.iter_batches(
                _count_batch_rows(chunk, parquet.metadata),
                row_groups=range(chunk.start, chunk.stop),
                columns=[name for name in names if name in columns] or names,
            ):
                for value in _decode_rows(batch):
                    if isinstance(value, UnicodeDecodeError):
                        yield Problem("the row is not UTF-8", f"{chunk.file}:{row}", str(value), "write it as UTF-8")
                    else:
                        yield RawRow(chunk.file, row, empty | value)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        yield Problem(
            "the Parquet file cannot be read from here on",
            f"{chunk.file}:{row}",
            why=str(error),
            fix="write or copy the file again",
        )


def _count_batch_rows(chunk: Chunk, meta: pq.FileMetaData) -> int:
    """How many rows are decoded at once: few where they are long."""
    groups = [meta.row_group(index) for index in range(chunk.start, chunk.stop)]
    num_bytes: int = sum(group.total_byte_size for group in groups)
    num_rows: int = sum(group.num_rows for group in groups)
    return max(1, min(1024, num_rows * _BATCH_BYTES // max(1, num_bytes)))


def _decode_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows > 1:
            for index in range(batch.num_rows):
                yield from _decode_rows(batch.slice(index, 1))
        else:
            yield error
        return
    yield from (_drop_none(row) for row in rows)


def _drop_none(value: Any) -> Any:
    """Parquet gives every struct all fields; those that are null were not there."""
    if isinstance(value, dict):
        return {key: _drop_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_drop_none(inner) for inner in value]
    return value
