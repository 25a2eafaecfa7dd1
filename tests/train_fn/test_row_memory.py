"""Reading holds a few rows at a time, whatever the size of the file."""

import csv
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftray.train_fn.files import Chunk, scan_files
from sftray.train_fn.rows import Conversation, read_chunk

pytestmark = pytest.mark.slow

LONG = [{"prompt": "x" * 20_000, "completion": str(number)} for number in range(600)]  # 12 MB


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure_reading(chunk: Chunk) -> tuple[int, int]:
    """How many conversations there are, and the bytes that Python held at most while they were read."""
    tracemalloc.start()
    try:
        count = sum(isinstance(row, Conversation) for row in read_chunk(chunk))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_reading_holds_no_more_than_a_few_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_jsonl(path, LONG)
    if name == "a.jsonl.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    if name == "a.csv":
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([["prompt", "completion"], *(row.values() for row in LONG)])
    counts_and_peaks = [measure_reading(chunk) for chunk in scan_files([path]).chunks]
    assert sum(count for count, _ in counts_and_peaks) == len(LONG)
    assert max(peak for _, peak in counts_and_peaks) < 1 << 20


def test_a_row_of_50_mb_is_read_in_memory_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "x" * (50 << 20), "completion": "y"}, {"prompt": "a", "completion": "b"}])
    first, second = scan_files([path]).chunks
    count, peak = measure_reading(first)
    assert count == 1
    assert peak < 8 * (50 << 20)
    (last,) = read_chunk(second)
    assert isinstance(last, Conversation)
    assert last.row == 2


def test_a_cell_of_50_mb_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n" + "x" * (50 << 20) + ",y\n")
    (row,) = read_chunk(scan_files([path]).chunks[0])
    assert isinstance(row, Conversation)
    assert len(row.messages[0]["content"]) == 50 << 20


def read_and_measure_arrow(path: Path) -> Iterator[int]:
    """The bytes that Arrow holds beyond those before, at each row."""
    before = pa.total_allocated_bytes()
    for chunk in scan_files([path]).chunks:
        for _ in read_chunk(chunk):
            yield pa.total_allocated_bytes() - before


def test_long_parquet_rows_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = {"prompt": [str(number) + "x" * 200_000 for number in range(200)], "completion": ["y"] * 200}
    pq.write_table(pa.table(rows), path, compression="none", use_dictionary=False)  # one row group of 40 MB
    held = list(read_and_measure_arrow(path))
    assert len(held) == 200
    assert max(held) < 16 << 20
