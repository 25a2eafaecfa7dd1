"""One line of JSONL: its row, or what is wrong with it, where, and how to mend it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftray.train_fn.errors import Problem
from sftray.train_fn.json_text import DuplicateKeyError, find_duplicate_key, locate, parse_json

_JSON_TYPES = {
    dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number",
    float: "a number", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in the file. `text` is its JSON and `byte` where that begins, if it has these."""

    file: str
    row: int
    value: dict[str, Any]
    text: str | None = None
    byte: int = 0

    def find_place(self, path: Sequence[str | int]) -> str:
        """`file:line:byte` of the value at `path`; `file:row` where rows are no text."""
        if self.text is None:
            return f"{self.file}:{self.row}"
        before = self.text[: locate(self.text, path)]
        return f"{self.file}:{self.row}:{self.byte + len(before.encode())}"


def name_type(value: Any) -> str:
    """What JSON calls the type of a value: `a list`."""
    return _JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def parse_line(file: str, row: int, byte: int, line: bytes) -> RawRow | Problem:
    """The row that a line of JSONL holds; `byte` is where the line begins."""
    try:
        text = line.decode()
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        return _explain_bad_line(f"{file}:{row}", byte, line, error)
    if isinstance(value, dict):
        return RawRow(file, row, value, text, byte)
    return Problem(
        f"a row must be a JSON object, found {name_type(value)}",
        f"{file}:{row}:{byte + locate(text, ())}",
        fix='write each row as {"messages": [...]} on a line of its own',
    )


def _explain_bad_line(place: str, byte: int, line: bytes, error: ValueError | RecursionError) -> Problem:
    """The problem of a line that is no JSON; `byte` is where it begins."""
    if b"\0" in line:
        return Problem(
            "the line holds NUL bytes",
            f"{place}:{byte + line.index(0)}",
            why="a write that was interrupted leaves them, and so does text in UTF-16",
            fix="write the file again, as UTF-8",
        )
    if _is_cut_off(line, error):
        return Problem(
            "the last line looks cut off",
            f"{place}:{byte + len(line)}",
            why="the file ends in the middle of a row, with no line end",
            fix="write or copy the file again, or delete its last line",
        )
    if isinstance(error, UnicodeDecodeError):
        return Problem(
            f"the line is not UTF-8: byte 0x{line[error.start]:02x}",
            f"{place}:{byte + error.start}",
            why=error.reason,
            fix="write the file as UTF-8: iconv -f THE_ENCODING -t UTF-8",
        )
    text = line.decode()
    if isinstance(error, json.JSONDecodeError):
        what, fix = _explain_syntax(text, error)
        position = min(error.pos, len(text.rstrip()))
        return Problem(what, f"{place}:{byte + len(text[:position].encode())}", why=error.msg, fix=fix)
    if isinstance(error, DuplicateKeyError):
        key, position = find_duplicate_key(text)
        return Problem(
            f"the key {key} stands twice in one object",
            f"{place}:{byte + len(text[:position].encode())}",
            why="one of its two values would be lost",
            fix="keep one of them",
        )
    why = "lists and objects are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Problem("the line cannot be read as JSON", f"{place}:{byte}", why=why, fix="correct or delete the row")


def _is_cut_off(line: bytes, error: ValueError | RecursionError) -> bool:
    """Whether this can only be a last line whose rest is missing."""
    text = line.strip()
    if line.endswith(b"\n") or not text.startswith(b"{"):
        return False
    if not text.endswith(b"}"):
        return True
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(line.decode().rstrip())


def _explain_syntax(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong, and its fix."""
    rest = text[error.pos :].rstrip()
    if not rest and error.msg.startswith("Invalid control character"):
        return "a text is not closed by the end of its line", r"write a line end inside text as \n"
    if not rest:
        return "the row goes on after its line", "write each row on one line: jq -c . FILE"
    shown = f"the line is not JSON from here: {rest[:20]!a}"
    if rest.startswith("'"):
        return shown, "this is Python's notation: write rows with json.dumps"
    if error.msg == "Extra data":
        return shown, "write each row on a line of its own"
    if error.msg.startswith("Invalid control character"):
        return shown, r"inside text, write a tab as \t and a line end as \n"
    if error.msg.startswith("Invalid \\"):
        return shown, r"inside text, write a backslash as \\"
    return shown, r"correct the line: inside text, write a quote as \" and see that commas and brackets match"
