import gzip
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftray.train_fn import files
from sftray.train_fn.errors import DataError
from sftray.train_fn.files import Chunk, find_files, scan_files
from sftray.train_fn.raw_rows import read_raw

ROW = '{"prompt": "2+2", "completion": "4"}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROW)


def test_files_keep_the_given_order_and_are_sorted_within_a_glob(folder: Path) -> None:
    write_rows("b/2.jsonl", "b/10.jsonl", "b/deep/1.jsonl", "a.jsonl")
    found = find_files(["b/*.jsonl", "a.jsonl"], "data.train")
    assert [str(path) for path in found] == ["b/10.jsonl", "b/2.jsonl", "a.jsonl"]
    assert [str(path) for path in find_files("b/**/*.jsonl", "data.train")] == [
        "b/10.jsonl",
        "b/2.jsonl",
        "b/deep/1.jsonl",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.jsonl.gz", "a.parquet", "a.csv", "odd[1].jsonl"])
def test_known_extensions_are_found(folder: Path, name: str) -> None:
    write_rows(name)
    assert find_files(name, "data.train") == [Path(name)]


def test_home_and_preset_are_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("home/x.jsonl", "assets/quickstart/train.jsonl")
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setattr(files, "ASSETS", folder / "assets")
    assert find_files("~/x.jsonl", "data.train") == [folder / "home/x.jsonl"]
    shipped = folder / "assets/quickstart/train.jsonl"
    assert find_files("preset://quickstart/train.jsonl", "data.train") == [shipped]


@pytest.mark.parametrize(
    ("named", "what", "fix"),
    [
        ("data/trian.jsonl", "no file data/trian.jsonl. Did you mean data/train.jsonl?", "data/train.jsonl"),
        ("daat/train.jsonl", "no file daat/train.jsonl. Did you mean data?", "a file that is there"),
        ("other/none/x.jsonl", "no file other/none/x.jsonl", "a file that is there"),
        ("data/train.jsonl/x.jsonl", "no file data/train.jsonl/x.jsonl", "a file that is there"),
        (
            "preset://quickstart/trian.jsonl",
            "Did you mean preset://quickstart/train.jsonl?",
            "preset://quick",
        ),
        ("preset://../secret.jsonl", "leads out of the package", "by its path"),
        ("preset:///etc/passwd", "leads out of the package", "by its path"),
        ("data/*.parquet", "data/*.parquet matches no file", "a pattern such as"),
        ("data", "data is a folder", "data/*.jsonl"),
        ("packed", "packed is a folder", "packed/*.jsonl.gz"),
        ("data/notes.json", "has an extension that is not known", "rename it"),
        ("data/rows.csv.gz", "has an extension that is not known", "rename it"),
        ("link.jsonl", "no file link.jsonl", "a file that is there"),
        ("/dev/null", "/dev/null is not a regular file", "a file on disk"),
        ("https://example.org/train.jsonl", "is a URL of a kind that is not known", "copy the file"),
        ("hf://datasets/x/train.jsonl", "is a URL of a kind that is not known", "copy the file"),
        ("x" * 300 + ".jsonl", "no file xxx", "a file that is there"),
        ("data/train\0.jsonl", "Did you mean data/train.jsonl?", "data/train.jsonl"),
        ("", "no file ", "a file that is there"),
    ],
)
def test_a_path_that_cannot_be_used_names_the_key_and_a_fix(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: str, what: str, fix: str
) -> None:
    write_rows("data/train.jsonl", "data/notes.json", "data/rows.csv.gz", "assets/quickstart/train.jsonl")
    write_rows("packed/1.jsonl.gz", "secret.jsonl")
    os.symlink("gone.jsonl", "link.jsonl")
    monkeypatch.setattr(files, "ASSETS", folder / "assets")
    with pytest.raises(DataError) as caught:
        find_files(named, "data.train")
    (problem,) = caught.value.problems
    assert problem.what.startswith("data.train: ")
    assert what in problem.what
    assert problem.fix is not None and fix in problem.fix


def test_all_problems_of_the_paths_come_together(folder: Path) -> None:
    write_rows("data/train.jsonl")
    with pytest.raises(DataError) as caught:
        find_files(
            ["gone.jsonl", "data/train.jsonl", "data", "data/*.jsonl", "./data/train.jsonl"],
            "data.validation",
        )
    assert [problem.what for problem in caught.value.problems] == [
        "data.validation: no file gone.jsonl",
        "data.validation: data is a folder",
        "data.validation: data/train.jsonl is named twice",
        "data.validation: data/train.jsonl is named twice",
    ]


def test_a_file_named_by_two_links_is_named_twice(folder: Path) -> None:
    write_rows("a.jsonl")
    os.symlink("a.jsonl", "b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl is named twice \(also as a\.jsonl\)"):
        find_files(["a.jsonl", "b.jsonl"], "data.train")


def test_the_fingerprint_is_of_bytes_and_order_not_of_names(folder: Path) -> None:
    Path("a.jsonl").write_text(ROW)
    Path("b.jsonl").write_text(ROW + ROW)
    Path("c.jsonl").write_text(ROW)

    def fingerprint(*names: str) -> str:
        return scan_files([Path(name) for name in names]).fingerprint

    assert fingerprint("a.jsonl", "b.jsonl") == fingerprint("c.jsonl", "b.jsonl")
    assert fingerprint("a.jsonl", "b.jsonl") != fingerprint("b.jsonl", "a.jsonl")
    assert fingerprint("a.jsonl", "a.jsonl") != fingerprint("b.jsonl")  # the same bytes in a row
    scanned = scan_files([Path("a.jsonl"), Path("b.jsonl")], chunk_bytes=1)
    assert scanned.num_bytes == 3 * len(ROW)
    assert scanned.fingerprint == fingerprint("a.jsonl", "b.jsonl")  # whatever the chunks


line = st.binary(max_size=12).map(lambda data: data.replace(b"\n", b""))


@given(
    lines=st.lists(st.tuples(line, st.sampled_from([b"\n", b"\r\n"])), min_size=1, max_size=40),
    last=line,
    chunk_bytes=st.integers(1, 80),
    block_bytes=st.integers(1, 50),
)
def test_chunks_of_jsonl_are_the_whole_file_at_line_borders(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[bytes, bytes]],
    last: bytes,
    chunk_bytes: int,
    block_bytes: int,
) -> None:
    data = b"{" + b"".join(text + end for text, end in lines) + last  # "{": neither empty nor packed
    path = tmp_path_factory.getbasetemp() / "chunks.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block_bytes)
        chunks = scan_files([path], chunk_bytes).chunks
    assert [chunks[0].start, *(chunk.stop for chunk in chunks)] == [
        *(chunk.start for chunk in chunks),
        len(data),
    ]
    for chunk in chunks:
        assert chunk.first_row == data.count(b"\n", 0, chunk.start) + 1
        assert chunk.start == 0 or data[chunk.start - 1 : chunk.start] == b"\n"
        # No shorter than asked for, unless last, and no line longer than that.
        assert chunk.stop == len(data) or chunk.stop - chunk.start >= chunk_bytes
        assert data.find(b"\n", chunk.start + chunk_bytes - 1, chunk.stop) in (-1, chunk.stop - 1)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 1 << 20])
def test_rows_have_the_same_numbers_and_places_in_any_chunks(tmp_path: Path, chunk_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \r\n{"a": "\xc3\xa9"}\n\n{"a": 3}')
    raw = [row for chunk in scan_files([path], chunk_bytes).chunks for row in read_raw(chunk, ())]
    assert [getattr(row, "row", row) for row in raw] == [1, 4, 6]
    assert [getattr(row, "byte", row) for row in raw] == [3, 18, 31]


def test_chunks_of_parquet_are_row_groups_with_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [str(n) * 100 for n in range(10)]}), path, row_group_size=3)
    one_each = [Chunk(str(path), n, n + 1, 3 * n + 1, "parquet") for n in range(4)]
    assert scan_files([path], 1).chunks == one_each
    assert scan_files([path]).chunks == [Chunk(str(path), 0, 4, 1, "parquet")]
    raw = [row for chunk in scan_files([path], 1).chunks for row in read_raw(chunk, ("prompt",))]
    assert [getattr(row, "row", row) for row in raw] == list(range(1, 11))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz"])
def test_other_files_are_one_chunk(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(ROW.encode()) if name.endswith("gz") else b"prompt,completion\na,b\n")
    (chunk,) = scan_files([path], 1).chunks
    assert (chunk.start, chunk.stop, chunk.first_row) == (0, path.stat().st_size, 1)
    assert pickle.loads(pickle.dumps(chunk)) == chunk


def write_long_file(path: Path, num_bytes: int) -> None:
    row = ('{"prompt": "' + "x" * 20_000 + '", "completion": "y"}\n').encode()
    with path.open("wb") as stream:
        for _ in range(num_bytes // len(row)):
            stream.write(row)


def measure_peak(run: Callable[[], object]) -> int:
    """Bytes that Python held at most while it ran, beyond those before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_scanning_and_reading_hold_no_more_than_a_few_rows(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_long_file(path, 24 << 20)
    scanned = scan_files([path], chunk_bytes=64 << 20)
    assert measure_peak(lambda: scan_files([path])) < 2 << 20
    assert measure_peak(lambda: [None for chunk in scanned.chunks for _ in read_raw(chunk, ())]) < 1 << 20
