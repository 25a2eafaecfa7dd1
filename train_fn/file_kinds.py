"""What kind of file it is: by its name, and whether its first bytes agree."""

import re
from pathlib import Path
from typing import Literal

from sftray.train_fn.errors import Problem

Format = Literal["jsonl", "jsonl.gz", "parquet", "csv"]

FORMATS: tuple[Format, ...] = ("jsonl", "jsonl.gz", "parquet", "csv")
BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16

_EXPECTED: dict[Format, str] = {"jsonl": "text", "csv": "text", "jsonl.gz": "gzip", "parquet": "Parquet"}
_JQ = "jq -c '.[]' {file} > new.jsonl"
_TEXT = ("text", "rename it to end in .jsonl or .csv")
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), kind, fix)
    for pattern, kind, fix in (
        (rb"\x1f\x8b", "gzip", "if it is packed JSONL, rename it to end in .jsonl.gz"),
        (rb"PAR1", "Parquet", "rename it to end in .parquet"),
        (rb"ARROW1", "Arrow", "write it as Parquet: pyarrow.parquet.write_table"),
        (rb"PK\x03\x04", "a ZIP archive", "unpack it: unzip {file}"),
        (rb"\x28\xb5\x2f\xfd", "zstd", "unpack it: zstd -d {file}"),
        (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "write it as UTF-8: iconv -f UTF-16 -t UTF-8 {file} > new"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the data", "fetch the data: git lfs pull"),
        (rb"\s*<(!doctype|html|\?xml)", "a web page", "download the file itself"),
        # Rows that are arrays, one per line, are left to the reader, which names them.
        (rb"(\xef\xbb\xbf)?\s*\[(?!.*\]\s*\n\s*\[)", "one JSON array", "write one object per line: " + _JQ),
    )
)  # fmt: skip


def get_format(path: Path) -> Format | None:
    """How a file is read, by the end of its name; `None` if that is not known."""
    return next((name for name in FORMATS if path.name.lower().endswith(f".{name}")), None)


def check_content(path: Path, format: Format) -> Problem | None:
    """The problem of a file that is empty, or whose first bytes are not what its name says.

    Raises `OSError` if it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES and not head.removeprefix(BOM).strip():
        return explain_empty(path)
    kind, fix = next(((kind, fix) for pattern, kind, fix in _KINDS if pattern.match(head)), _TEXT)
    if kind == _EXPECTED[format]:
        return None
    return Problem(f"the file is named .{format}, but is {kind}", str(path), fix=fix.format(file=path))


def explain_empty(path: Path) -> Problem:
    return Problem("the file is empty", str(path), fix="write at least one row, or leave the file out")
