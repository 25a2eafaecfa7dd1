"""From rows of any known shape to conversations.

A row's shape is recognised by its own keys:

- `messages`: role and content; tool_calls, tool_call_id, name, reasoning_content.
- `conversations`: the same (MiniMind), or from and value (ShareGPT).
- `prompt` + `completion`: texts, or lists of messages.
- `instruction` (+ `input`) + `output`: texts (Alpaca); the input stands on a line below the instruction.

Each may have `system`, a text that goes first, and `tools`; other keys are ignored. A list of messages or tools
may also be the JSON text of one, as in CSV and often in Parquet.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from sftray.train_fn.errors import Problem
from sftray.train_fn.files import Chunk
from sftray.train_fn.json_lines import RawRow
from sftray.train_fn.messages import (
    Message,
    Path,
    RowFault,
    Tool,
    find_near,
    is_given,
    read_content,
    read_messages,
    read_tools,
)
from sftray.train_fn.raw_rows import read_raw

_SHAPES = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt + completion": ("prompt", "completion"),
    "instruction + output": ("instruction", "output"),
}
_KEYS = frozenset({key for keys in _SHAPES.values() for key in keys} | {"input", "system", "tools"})
_EXAMPLE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
_CANONICAL = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row. `row` is its number in the file, from 1: the line on which it starts (Parquet: the row).

    A message has role, content (None only beside tool_calls), and those of tool_calls, tool_call_id, name and
    reasoning_content that were given and not empty. `digest` is 8 bytes of BLAKE2b over the canonical JSON of
    [messages, tools]: the same for equal conversations, whatever their file and shape.
    """

    messages: list[Message]
    tools: list[Tool] | None
    file: str
    row: int
    digest: bytes

    @property
    def place(self) -> str:
        return f"{self.file}:{self.row}"


def read_chunk(chunk: Chunk) -> Iterator[Conversation | Problem]:
    """The conversations of a chunk, in order; a bad row is a `Problem`, and reading goes on with the next.

    A problem's place is `file:line:byte` for JSONL (the byte, from 0, in the unpacked file), `file:line` for
    CSV and `file:row` for Parquet. Raises `DataError` if the file cannot be read at all.
    """
    is_table = chunk.format in ("csv", "parquet")
    for raw in read_raw(chunk, _KEYS):
        if isinstance(raw, Problem):
            yield raw
        elif is_table and not any(raw.value.keys() >= set(keys) for keys in _SHAPES.values()):
            fault = _explain_no_shape(raw.value, "the table's columns have")
            yield Problem(fault.what, f"{chunk.file}:1", fault.why, fault.fix)
            return
        else:
            yield _convert(raw)


def _convert(raw: RawRow) -> Conversation | Problem:
    try:
        messages, tools = to_conversation(raw.value)
        digest = _compute_digest(messages, tools, raw.value)
    except RowFault as fault:
        return Problem(fault.what, raw.find_place(fault.path), fault.why, fault.fix)
    except RecursionError:
        fix = "keep it to fewer than a hundred levels"
        return Problem("the row is nested too deeply", raw.find_place(()), fix=fix)
    return Conversation(messages, tools, raw.file, raw.row, digest)


def to_conversation(row: Mapping[str, Any]) -> tuple[list[Message], list[Tool] | None]:
    """The messages and tools of a row, as in `Conversation`; a plain message is the row's own object.

    Raises `RowFault` for the first thing that is wrong with it.
    """
    shape = _recognise(row)
    messages = _read_shape(row, shape)
    tools = _take_tools(row, shape, messages)
    if not is_given(row.get("system")):
        return messages, tools
    if messages[0]["role"] == "system":
        raise RowFault("the row has two system texts", ("system",), fix="keep system, or the first message")
    return [{"role": "system", "content": read_content(row["system"], ("system",))}, *messages], tools


def _recognise(row: Mapping[str, Any]) -> str:
    shapes = [shape for shape, keys in _SHAPES.items() if _has(row, keys)]
    if len(shapes) == 1:
        return shapes[0]
    if shapes:
        fix = "keep the keys of one shape"
        raise RowFault(f"the row has two shapes: {' and '.join(shapes)}", why=_list_keys(row), fix=fix)
    raise _explain_no_shape(row, "the row has")


def _has(row: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Whether all these keys are there and not all are empty, as they are in a table of mixed rows."""
    values = [row.get(key) for key in keys]
    return None not in values and any(value != "" for value in values)


def _explain_no_shape(row: Mapping[str, Any], subject: str) -> RowFault:
    near = find_near([key for key in row if key not in _KEYS], _KEYS - row.keys())
    why = f"{_list_keys(row)}; known shapes: {', '.join(_SHAPES)}"
    return RowFault(f"{subject} no shape that is known{near}", why=why, fix=f"write rows such as {_EXAMPLE}")


def _list_keys(row: Mapping[str, Any]) -> str:
    keys = [key if is_given(value) else f"{key} (empty)" for key, value in row.items()]
    return f"keys found: {', '.join(keys) or 'none'}"


def _read_shape(row: Mapping[str, Any], shape: str) -> list[Message]:
    if shape in ("messages", "conversations"):
        return read_messages(row[shape], (shape,))
    if shape == "prompt + completion":
        return _read_turns(row, "prompt", "user") + _read_turns(row, "completion", "assistant")
    asked = read_content(row["instruction"], ("instruction",))
    if is_given(row.get("input")):
        asked += "\n" + read_content(row["input"], ("input",))
    answered = read_content(row["output"], ("output",))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _read_turns(row: Mapping[str, Any], key: str, role: str) -> list[Message]:
    """A text is one turn of this role; a list is messages."""
    if isinstance(row[key], str):
        return [{"role": role, "content": row[key]}]
    return read_messages(row[key], (key,))


def _take_tools(row: Mapping[str, Any], shape: str, messages: list[Message]) -> list[Tool] | None:
    """The row's tools, or those that a system message carries, out of which they are taken."""
    given: list[tuple[Path, Any]] = [(("tools",), row["tools"])] if is_given(row.get("tools")) else []
    for index, message in enumerate(messages):
        if "tools" in message:
            given.append(((shape, index, "tools"), message.pop("tools")))
    if len(given) > 1:
        raise RowFault("the row has tools in two places", given[1][0], fix="keep them in one place")
    return read_tools(given[0][1], given[0][0]) if given else None


def _compute_digest(messages: list[Message], tools: list[Tool] | None, row: Mapping[str, Any]) -> bytes:
    """The digest. Raises `RowFault` for what no text can hold, which writing it as JSON brings to light."""
    try:
        text = _write_canonical(messages, tools)
        if "\\u0000" in text:  # a NUL, or a backslash before u0000
            _refuse_no_text(messages, tools, row)
        return hashlib.blake2b(text.encode(), digest_size=8).digest()
    except UnicodeEncodeError:  # a lone surrogate
        _refuse_no_text(messages, tools, row)
        raise
    except RowFault:
        raise
    except (ValueError, TypeError) as error:
        fix = "keep to what JSON can hold: no NaN, no infinity, no dates"
        raise RowFault("tools or tool_calls cannot be written as JSON", why=str(error), fix=fix) from None


def _write_canonical(messages: list[Message], tools: list[Tool] | None) -> str:
    """`json.dumps` of [messages, tools] with sorted keys and no spaces, written out for plain messages (faster)."""
    pieces = [
        f'{{"content":{encode_basestring(message["content"])},"role":"{message["role"]}"}}'
        if len(message) == 2
        else _CANONICAL.encode(message)
        for message in messages
    ]
    return f"[[{','.join(pieces)}],{_CANONICAL.encode(tools)}]"


def _refuse_no_text(messages: list[Message], tools: list[Tool] | None, row: Mapping[str, Any]) -> None:
    """Raises `RowFault` if there is a character that is no text, with its place in the row if it has one."""
    found = _find_no_text([messages, tools])
    if found is None:
        return
    # In the row it may hide in a string of JSON, and then the row is its place.
    in_row = _find_no_text({key: row[key] for key in row if key in _KEYS})
    path = in_row[0] if in_row else ()
    code = ord(found[1])
    what, fix = ("half of a character", "write the whole one") if code else ("a NUL character", "delete it")
    raise RowFault(f"the text holds {what}", path, why=f"U+{code:04X} is no text that a tokenizer can take", fix=fix)


def _find_no_text(value: Any, path: Path = ()) -> tuple[Path, str] | None:
    """Where a string (or a key) holds what is no text, and that character."""
    if isinstance(value, str):
        match = _NO_TEXT.search(value)
        return (path, match[0]) if match else None
    if not isinstance(value, dict | list):
        return None
    for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found = _find_no_text(step, path) or _find_no_text(inner, (*path, step))
        if found:
            return found
    return None
