"""Files with planted faults: CSV, Parquet, packed files, and files that are not what their name says."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftray.train_fn.errors import DataError, Problem
from sftray.train_fn.files import Chunk, scan_files
from sftray.train_fn.rows import Conversation, read_chunk

GOOD = b'{"prompt": "a", "completion": "b"}'
PAIR = {"prompt": "a", "completion": "b"}


def split_rows(rows: list[Conversation | Problem]) -> tuple[list[Conversation], list[Problem]]:
    good = [row for row in rows if isinstance(row, Conversation)]
    return good, [row for row in rows if isinstance(row, Problem)]


def read_rows(path: Path, chunk_bytes: int = 8 << 20) -> tuple[list[Conversation], list[Problem]]:
    return split_rows([row for chunk in scan_files([path], chunk_bytes).chunks for row in read_chunk(chunk)])


def check_problem(problem: Problem, where: str, what: str, fix: str) -> None:
    assert problem.where == where
    assert what in problem.what
    assert problem.fix is not None
    assert fix in problem.fix


# The data, the numbers of its good rows, the line of the one problem, words of what is said and of the fix.
CSV_CASES: list[tuple[bytes, list[int], int, str, str]] = [
    (b"prompt,completion\na,b\nc\nd,e\n", [2, 4], 3, "1 cells, the header names 2 columns", "in quotes"),
    (b"prompt,completion\na,b,c\n", [], 2, "3 cells, the header names 2 columns", "in quotes"),
    (b'prompt,completion\na,b\n"c,d\ne,f\n', [2], 3, "the row that starts here is not CSV", "quote a cell"),
    (b'prompt,completion\n"a"x,b\nc,d\n', [3], 2, "the row that starts here is not CSV", "quote a cell"),
    (b'prompt,completion\n"a\n\n",b\nc\n', [2], 5, "1 cells, the header", "in quotes"),
    (b'prompt,completion\r\n\r\n"a\r\nb",c,d\r\ne,f\r\n', [5], 3, "3 cells, the header", "in quotes"),
    (b"2+2?,4\n3+3?,6\n", [], 1, "the table's columns have no shape", '{"messages":'),
    (b"prompt,compleation\na,b\nc,d\n", [], 1, "Did you mean completion?", '{"messages":'),
    (b"prompt;completion\na;b\n", [], 1, "the table's columns have no shape", '{"messages":'),
    (b"prompt,completion\n", [], 1, "no row below its first line", "name the columns"),
    (b"2+2?,4", [], 1, "no row below its first line", "name the columns"),
    (b"prompt,prompt,completion\na,b,c\n", [], 1, "the header names prompt twice", "once"),
    (b'"prompt"x,completion\na,b\n', [], 1, "the row that starts here is not CSV", "quote a cell"),
    (b"prompt,completion\na,caf\xe9\nb,c\n", [3], 2, "not UTF-8: byte 0xe9", "iconv"),
    (b"prompt,completion\na,b\0\nb,c\n", [3], 2, "a NUL character", "delete it"),
    (b'messages\n"[{""role"""\n', [], 2, "the text of messages is not JSON", "as a list"),
    (b"prompt,completion\n,\na,b\n", [3], 2, "no shape that is known", '{"messages":'),
]


@pytest.mark.parametrize(("data", "good_rows", "line", "what", "fix"), CSV_CASES)
def test_a_bad_row_of_csv_is_named_by_the_line_on_which_it_starts(
    tmp_path: Path, data: bytes, good_rows: list[int], line: int, what: str, fix: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    good, problems = read_rows(path)
    assert [row.row for row in good] == good_rows
    assert len(problems) == 1
    check_problem(problems[0], f"{path}:{line}", what, fix)


def make_parquet(*rows: dict[str, Any]) -> bytes:
    """Two rows to a row group."""
    sink = pa.BufferOutputStream()
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, sink, row_group_size=2, write_page_checksum=True)
    return bytes(sink.getvalue())


BOT = {"messages": [{"role": "bot", "content": "x"}]}
PARQUET_CASES: list[tuple[bytes, list[int], int, str, str]] = [
    (make_parquet(PAIR, {"prompt": "a"}, PAIR), [1, 3], 2, "the row has no shape", '{"messages":'),
    (make_parquet(PAIR, PAIR, BOT), [1, 2], 3, "'bot' is not a role", "roles are"),
    (make_parquet({"text": "a"}, {"text": "b"}), [], 1, "the table's columns have no shape", '{"messages":'),
    (make_parquet({"prompt": b"a", "completion": "b"}), [], 1, "prompt must be a list, found a bytes", "as a list"),
]


@pytest.mark.parametrize(("data", "good_rows", "row", "what", "fix"), PARQUET_CASES)
def test_a_bad_row_of_parquet_is_named_by_its_number(
    tmp_path: Path, data: bytes, good_rows: list[int], row: int, what: str, fix: str
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    good, problems = read_rows(path)
    assert [row.row for row in good] == good_rows
    assert len(problems) == 1
    check_problem(problems[0], f"{path}:{row}", what, fix)


def test_a_parquet_row_that_is_not_utf_8_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    prompts = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts, "completion": ["x", "y", "z"]}), path)
    good, (problem,) = read_rows(path)
    assert [row.row for row in good] == [1, 3]
    check_problem(problem, f"{path}:2", "the row is not UTF-8", "write it as UTF-8")


def test_a_damaged_row_group_is_named_by_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(make_parquet(*({"prompt": f"question {n}" * 50, "completion": "b"} for n in range(6))))
    column = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0)
    data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)
    good, (problem,) = read_rows(path, chunk_bytes=1)
    assert [row.row for row in good] == [1, 2, 5, 6]
    check_problem(problem, f"{path}:3", "cannot be read from here on", "write or copy the file again")


def write_packed(path: Path, damage: str) -> list[str]:
    """2,000 rows that pack badly, damaged; returns the lines."""
    noise = random.Random(1)
    lines = [json.dumps({"prompt": noise.randbytes(200).hex(), "completion": "b"}) + "\n" for _ in range(2000)]
    packed = bytearray(gzip.compress("".join(lines).encode()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    elif damage == "checksum":
        packed[-8] ^= 0xFF
    else:  # what follows the rows is no packed data
        packed += b"garbage"
    path.write_bytes(packed)
    return lines


@pytest.mark.parametrize("damage", ["cut", "checksum", "garbage"])
def test_damage_of_a_packed_file_is_named_after_its_last_whole_row(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = write_packed(path, damage)
    good, (problem,) = read_rows(path)
    whole = lines[: len(good)]
    assert [row.messages[0]["content"] for row in good] == [json.loads(line)["prompt"] for line in whole]
    assert (900 < len(good) < 1000) if damage == "cut" else len(good) == 2000
    where = f"{path}:{len(good) + 1}:{sum(map(len, whole))}"
    check_problem(problem, where, "ends early or is damaged here", f"gzip -t {path}")


@pytest.mark.parametrize(
    ("name", "data", "what", "fix"),
    [
        ("a.jsonl", b"", "the file is empty", "at least one row"),
        ("a.csv", b"", "the file is empty", "at least one row"),
        ("a.jsonl", b"\n \r\n", "the file is empty", "at least one row"),
        ("a.jsonl", b"\xef\xbb\xbf", "the file is empty", "at least one row"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), "named .jsonl, but is gzip", ".jsonl.gz"),
        ("a.jsonl", make_parquet(PAIR), "named .jsonl, but is Parquet", ".parquet"),
        ("a.jsonl", b"[" + GOOD + b"]", "but is one JSON array", "one object per line: jq -c '.[]'"),
        (
            "a.jsonl",
            b"\xef\xbb\xbf \n[\n " + GOOD + b",\n" + GOOD + b"\n]\n",
            "one JSON array",
            "one object per line",
        ),
        ("a.jsonl", GOOD.decode().encode("utf-16"), "but is UTF-16 text", "iconv -f UTF-16"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>", "but is a web page", "download the file itself"),
        ("a.csv", b"PK\x03\x04....", "but is a ZIP archive", "unzip"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", "but is zstd", "zstd -d"),
        ("a.jsonl.gz", GOOD, "named .jsonl.gz, but is text", "rename it to end in .jsonl"),
        ("a.parquet", GOOD, "named .parquet, but is text", "rename it to end in .jsonl"),
        ("a.parquet", b"PAR1", "cut off or damaged", "write or copy"),
        ("a.parquet", make_parquet(PAIR)[:-20], "cut off or damaged", "write or copy"),
        ("a.parquet", make_parquet(PAIR)[:-8] + b"\xff\xff\x00\x00PAR1", "cut off or damaged", "write or copy"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, data: bytes, what: str, fix: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        scan_files([path])
    (problem,) = caught.value.problems
    check_problem(problem, str(path), what, fix)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="the file is empty"):
        scan_files([path])


def test_rows_that_are_arrays_are_no_array_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'["a"]\r\n["b"]\r\n')
    good, problems = read_rows(path)
    assert good == []
    assert [problem.where for problem in problems] == [f"{path}:1:0", f"{path}:2:7"]


def test_problems_of_all_files_come_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "gone.jsonl", "b.jsonl")]
    paths[0].write_bytes(b"")
    paths[2].write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scan_files(paths)
    assert [problem.where for problem in caught.value.problems] == [str(path) for path in paths]
    assert caught.value.problems[1].why == "No such file or directory"


def test_a_file_that_shrank_after_the_scan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((GOOD + b"\n") * 3)
    (chunk,) = scan_files([path]).chunks
    path.write_bytes(GOOD + b"\n")
    good, (problem,) = split_rows(list(read_chunk(chunk)))
    assert len(good) == 1
    check_problem(problem, f"{path}:2:{len(GOOD) + 1}", "changed after it was scanned", "start again")


def test_a_parquet_file_that_lost_row_groups_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(make_parquet(PAIR))
    (row,) = read_chunk(Chunk(str(path), 1, 2, 3, "parquet"))
    assert isinstance(row, Problem)
    check_problem(row, f"{path}:3", "changed after it was scanned", "start again")


def test_a_file_that_is_not_on_this_node_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    (chunk,) = scan_files([path]).chunks
    path.unlink()
    with pytest.raises(DataError) as caught:
        list(read_chunk(chunk))
    check_problem(caught.value.problems[0], str(path), "cannot be read here", "that every node can read")
