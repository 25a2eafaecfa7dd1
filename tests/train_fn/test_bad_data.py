"""Rows with planted faults: each is named by line and byte with a fix, and hides no good row around it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sftray.train_fn.errors import Problem
from sftray.train_fn.files import scan_files
from sftray.train_fn.rows import Conversation, read_chunk

GOOD = b'{"prompt": "a", "completion": "b"}'
USER = {"role": "user", "content": "hi"}


def chat(*messages: Any) -> bytes:
    """A row of these messages; bytes stand for themselves."""
    texts = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
    return b'{"messages": [' + b", ".join(texts) + b"]}"


def say(**fields: Any) -> bytes:
    return chat(USER, {"role": "assistant", **fields})


def ask(content: Any) -> bytes:
    return chat({"role": "user", "content": content})


def tools(text: bytes) -> bytes:
    return b'{"tools": ' + text + b", " + chat(USER)[1:]


# A line that stands between two good ones; the fault in it, by the bytes that stand there (once) or their offset;
# words of what is said; words of the fix.
BAD_LINES: list[tuple[bytes, bytes | int, str, str]] = [
    # Not JSON.
    (b'{"prompt": "a" "completion": "b"}', 15, 'not JSON from here: \'"completion"', "commas"),
    (b'{"prompt": "a", "completion": "b",}', 34, "not JSON from here: '}'", "commas"),
    (b"{'prompt': 'a'}", 1, "not JSON from here: \"'prompt'", "json.dumps"),
    (GOOD + b" " + GOOD, 35, "not JSON from here", "a line of its own"),
    (b'{"prompt": "a\tb"}', b"\t", "not JSON from here", r"a tab as \t"),
    (b'{"prompt": "C:\\x"}', b"\\x", "not JSON from here", r"a backslash as \\"),
    (b"nothing", b"nothing", "not JSON from here: 'nothing'", "correct the line"),
    (b'{"prompt": "a', 13, "a text is not closed by the end of its line", r"a line end inside text as \n"),
    (b'{"prompt": "a"', 14, "goes on after its line", "jq -c"),
    (b'{"a": ' + b"9" * 5000 + b"}", 0, "cannot be read as JSON", "correct or delete"),
    (b"[" * 100_000 + b"]" * 100_000, 0, "cannot be read as JSON", "correct or delete"),
    (b"\xef\xbb\xbf" + GOOD, 0, r"not JSON from here: '\ufeff{", "correct the line"),
    # Not text.
    (b'{"prompt": "caf\xe9"}', b"\xe9", "not UTF-8: byte 0xe9", "iconv"),
    (b'{"prompt": "a\0b"}', b"\0", "NUL bytes", "write the file again"),
    (b"\0" * 20, 0, "NUL bytes", "write the file again"),
    (chat(b'{"role": "user", "content": "a\\u0000"}'), b'"a\\u', "a NUL character", "delete it"),
    (b'{"prompt": "x", "completion": "\\ud83d"}', b'"\\ud83d', "half of a character", "write the whole"),
    (say(tool_calls='[{"name": "\\u0000"}]'), 0, "a NUL character", "delete it"),
    (say(tool_calls='[{"name": "\\udead"}]'), 0, "half of a character", "write the whole"),
    (say(tool_calls=[{"name": "f", "arguments": {"\0": 1}}]), b'{"\\u0000', "a NUL character", "delete it"),
    # The byte is counted in bytes, not in characters.
    ('{"é한😀": 1, "messages": 5}'.encode(), b"5}", "messages must be a list, found a number", "as a list"),
    # Not an object, or one that loses values.
    (b'["a", "b"]', 0, "must be a JSON object, found a list", '{"messages":'),
    (b'  "a"', 2, "must be a JSON object, found a string", '{"messages":'),
    (b"null", 0, "must be a JSON object, found null", '{"messages":'),
    (b'{"prompt": "a", "prompt" : "b"}', b'"prompt" :', "the key prompt stands twice", "keep one"),
    (chat(b'{"role": "user", "role" : "x"}'), b'"role" :', "the key role stands twice", "keep one"),
    # Shapes.
    (b'{"text": "a"}', 0, "no shape that is known", '{"messages":'),
    (b'{"message": []}', 0, "Did you mean messages?", '{"messages":'),
    (b'{"instruction": "a", "response": "b"}', 0, "no shape that is known", '{"messages":'),
    (b'{"instruction": "a", "output": null}', 0, "no shape that is known", '{"messages":'),
    (b"{}", 0, "no shape that is known", '{"messages":'),
    (b'{"prompt": "a", "completion": "b", "messages": []}', 0, "two shapes: messages and prompt", "of one shape"),
    (b'{"messages": []}', b"[]", "the row has no messages", "at least a user's"),
    (b'{"messages": {}}', b"{}", "messages must be a list, found an object", "as a list"),
    (b'{"messages": "hi"}', b'"hi"', "the text of messages is not JSON", "as a list"),
    (b'{"prompt": "a", "completion": 7}', b"7", "completion must be a list, found a number", "as a list"),
    (b'{"instruction": "a", "input": 7, "output": "b"}', b"7", "input must be text", "as a string"),
    (b'{"system": 7, "prompt": "a", "completion": "b"}', b"7", "system must be text", "as a string"),
    (b'{"system": "s", "messages": [{"role": "system", "content": ""}]}', b'"s"', "two system texts", "keep system"),
    # Messages and roles.
    (chat(USER, "hello"), b'"hello"', "a message must be an object, found a string", '{"role":'),
    (chat({"role": "asistant", "content": "x"}), b'"asistant"', "Did you mean assistant?", "roles are"),
    (chat({"role": "human", "content": "x"}), b'"human"', "'human' is not a role. Did you mean user?", "roles are"),
    (chat({"role": "USER", "content": "x"}), b'"USER"', "Did you mean user?", "roles are assistant, developer"),
    (chat({"role": 1, "content": "x"}), b'1, "con', "role must be text, found a number", "as a string"),
    (chat({"content": "x"}), b'{"content"', "the message has no role", "roles are"),
    (chat({"Role": "user", "content": "x"}), b'{"Role"', "Did you mean role?", "roles are"),
    (b'{"conversations": [{"from": "bot", "value": "x"}]}', b'"bot"', "'bot' is not a role", "gpt, human"),
    (b'{"conversations": [{"from": "gpt", "values": "x"}]}', b'{"from"', "Did you mean value?", "give it value"),
    # Content.
    (say(content=4), b"4}", "content must be text, found a number", "as a string"),
    (say(content={"text": "x"}), b'{"text"', "content must be text, found an object", "as a string"),
    (say(content=True), b"true", "content must be text, found true or false", "as a string"),
    (say(content=None), b'{"role": "a', "the message has no content", "only an assistant with tool_calls"),
    (chat({"role": "user", "contents": "x"}), b'{"role"', "Did you mean content?", "give it content"),
    (ask([{"type": "image"}]), b'{"type"', "a part of content is not text, but image", "keep only parts"),
    (ask([{"type": "text"}]), b'{"type"', "text must be text, found null", "as a string"),
    (ask(["x"]), b'"x"', "not text, but a string", "keep only parts"),
    (say(content="x", name=7), b"7}", "name must be text, found a number", "as a string"),
    (say(content="x", reasoning_content=["y"]), b'["y"]', "reasoning_content must be text", "as a string"),
    # Tools and calls.
    (tools(b"{}"), b"{}", "tools must be a list, found an object", "as a list"),
    (tools(b'"add"'), b'"add"', "the text of tools is not JSON", "as a list"),
    (tools(b'["add"]'), b'"add"', "a tool must be an object, found a string", '"function"'),
    (chat({**USER, "tool_calls": [{}]}), b"[{}]", "a user cannot call tools", "move tool_calls"),
    (say(tool_calls=[{"id": "c"}]), b'{"id"', "a tool call must name its function", '"arguments"'),
    (say(tool_calls=["add"]), b'"add"', "a tool call must name its function", '"arguments"'),
    (say(tool_calls="add"), b'"add"', "the text of tool_calls is not JSON", '"arguments"'),
    (say(tool_calls=[{"name": "f", "arguments": [1]}]), b'{"name"', "arguments must be an object", '"arguments"'),
    (say(tool_calls=[{"name": "f", "arguments": {"a": float("nan")}}]), 0, "cannot be written as JSON", "no NaN"),
    (b'{"conversations": [{"from": "function_call", "value": "f()"}]}', b'"f()"', "value is not JSON", '"arguments"'),
]

# Whole files: the data, good rows before the fault, its line and byte, words of what is said and of the fix.
BAD_ENDS: list[tuple[bytes, int, int, int, str, str]] = [
    (GOOD + b'\n{"prompt": "a", "comp', 1, 2, 56, "the last line looks cut off", "write or copy the file again"),
    (b'{"messages": [{"role": "user", "content": "x"}', 0, 1, 46, "looks cut off", "delete its last line"),
    (b'{"prompt": "int main() {}', 0, 1, 25, "looks cut off", "delete its last line"),
    (b'{"prompt": "caf\xc3', 0, 1, 16, "looks cut off", "delete its last line"),
    (b'{"prompt": "caf\\u00', 0, 1, 19, "looks cut off", "delete its last line"),
    (b'{"prompt": tr', 0, 1, 13, "looks cut off", "delete its last line"),
    (GOOD + b'\n{"prompt" "a"}', 1, 2, 45, "not JSON from here", "commas"),  # wrong, but whole
    (b"\xef\xbb\xbf" + GOOD + b"\nno", 1, 2, 38, "not JSON from here", "correct the line"),
    (b"\n \r\n\n" + GOOD + b"\r\n\r\nno", 1, 6, 43, "not JSON from here", "correct the line"),
]


def read_file(path: Path, data: bytes) -> tuple[list[Conversation], list[Problem]]:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    rows = [row for chunk in scan_files([path]).chunks for row in read_chunk(chunk)]
    good = [row for row in rows if isinstance(row, Conversation)]
    return good, [row for row in rows if isinstance(row, Problem)]


def check_problem(problem: Problem, where: str, what: str, fix: str) -> None:
    assert problem.where == where
    assert what in problem.what
    assert problem.fix is not None
    assert fix in problem.fix


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("line", "at", "what", "fix"), BAD_LINES, ids=lambda value: str(value)[:40])
def test_a_bad_row_is_named_by_line_and_byte(
    tmp_path: Path, line: bytes, at: bytes | int, what: str, fix: str, end: bytes, name: str
) -> None:
    path = tmp_path / name
    good, problems = read_file(path, GOOD + end + line + end + GOOD + end)
    byte = len(GOOD + end) + (at if isinstance(at, int) else line.index(at))
    assert isinstance(at, int) or line.count(at) == 1
    assert [row.row for row in good] == [1, 3]
    assert len(problems) == 1
    check_problem(problems[0], f"{path}:2:{byte}", what, fix)


@pytest.mark.parametrize(("data", "num_good", "line", "byte", "what", "fix"), BAD_ENDS)
def test_a_file_that_ends_badly_is_named_by_line_and_byte(
    tmp_path: Path, data: bytes, num_good: int, line: int, byte: int, what: str, fix: str
) -> None:
    path = tmp_path / "a.jsonl"
    good, problems = read_file(path, data)
    assert (len(good), len(problems)) == (num_good, 1)
    check_problem(problems[0], f"{path}:{line}:{byte}", what, fix)


def test_the_problem_of_a_row_says_which_keys_it_has_and_which_shapes_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _, problems = read_file(path, b'{"id": 1, "message": [], "output": null}')
    assert str(problems[0]) == (
        f"error  {path}:1:0: the row has no shape that is known. Did you mean messages?\n"
        "  why  keys found: id, message (empty), output (empty); "
        "known shapes: messages, conversations, prompt + completion, instruction + output\n"
        '  fix  write rows such as {"messages": [{"role": "user", "content": "…"}, '
        '{"role": "assistant", "content": "…"}]}'
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD,
        b"\n\n" + GOOD + b"\n \t\r\n" + GOOD + b"\n\n",
        b'{"score": NaN, "loss": -Infinity, "prompt": "a", "completion": "b"}\n' + GOOD,
        b'{"id": "\\u0000\\ud83d", "prompt": "a", "completion": "b"}\n' + GOOD,
        b'{"prompt": "a", "completion": "b \\\\u0000"}\n' + GOOD,
        b'{"prompt": "a", "completion": "\\ud83d\\ude00"}\n' + GOOD,
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b', "prompt": "a", "completion": "b"}\n' + GOOD,
    ],
)
def test_what_only_looks_odd_is_accepted(tmp_path: Path, data: bytes) -> None:
    good, problems = read_file(tmp_path / "a.jsonl", data)
    assert problems == []
    assert len(good) == 2


@pytest.mark.slow
@pytest.mark.parametrize("inside", [b"1", b'"\\ud83d"', b'{"a": 1, "a": 2}', b"NaN", b"oh"])
@pytest.mark.parametrize("opening", [b"[", b'{"a": '])
def test_nesting_of_any_depth_is_a_row_or_a_problem(tmp_path: Path, opening: bytes, inside: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    depths = range(900, 1000)  # about Python's own limit, to which the frames of the caller count
    data = b"\n".join(tools(b'[{"x": ' + opening * n + inside + closing * n + b"}]") for n in depths)
    good, problems = read_file(tmp_path / "a.jsonl", data)
    assert len(good) + len(problems) == len(depths)
    assert bool(good) == (inside == b"1")
    assert all(problem.fix for problem in problems)
