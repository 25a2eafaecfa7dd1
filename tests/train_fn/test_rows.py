import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftray.train_fn.errors import Problem
from sftray.train_fn.files import scan_files
from sftray.train_fn.messages import RowFault
from sftray.train_fn.rows import Conversation, read_chunk, to_conversation

Row = dict[str, Any]

CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOL_CHAT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4."},
]


def read_rows(path: Path, chunk_bytes: int = 8 << 20) -> list[Conversation | Problem]:
    return [row for chunk in scan_files([path], chunk_bytes).chunks for row in read_chunk(chunk)]


def read_good(path: Path) -> list[Conversation]:
    rows = read_rows(path)
    assert [row for row in rows if isinstance(row, Problem)] == []
    return [row for row in rows if isinstance(row, Conversation)]


def write_jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"messages": CHAT, "id": 7, "source": None, "prompt": "2+2?"},  # a prompt alone is no shape
        {"messages": CHAT, "system": "", "tools": [], "conversations": None},
        {
            "messages": [
                {**CHAT[0], "name": None, "weight": 1},
                {**CHAT[1], "tool_calls": [], "reasoning_content": ""},
            ]
        },
        {"messages": json.dumps(CHAT)},
        {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "4"}]}]},
        {"conversations": CHAT},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, CHAT[1]]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": CHAT[:1], "completion": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": "", "output": "4", "history": []},
    ],
)
def test_one_chat_in_many_shapes_is_one_chat(row: Row) -> None:
    assert to_conversation(row) == (CHAT, None)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, *CHAT]},
        {"messages": CHAT, "system": "Be brief."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *CHAT]},
        {"prompt": "2+2?", "completion": "4", "system": "Be brief."},
        {"instruction": "2+2?", "output": "4", "system": "Be brief."},
    ],
)
def test_system_texts_go_first(row: Row) -> None:
    assert to_conversation(row) == ([SYSTEM, *CHAT], None)


def test_the_input_of_an_instruction_stands_on_a_line_below_it() -> None:
    messages, _ = to_conversation({"instruction": "Add.", "input": "2 2", "output": "4"})
    assert messages == [{"role": "user", "content": "Add.\n2 2"}, {"role": "assistant", "content": "4"}]


def test_system_and_developer_may_stand_anywhere_and_empty_text_is_text() -> None:
    chat = [{"role": "developer", "content": "Hi"}, *CHAT, SYSTEM, {"role": "assistant", "content": ""}]
    assert to_conversation({"messages": chat}) == (chat, None)


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        json.dumps([CALL]),
        [{"function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}],
        [{"name": "add", "arguments": {"a": 2, "b": 2}}],
        {"name": "add", "arguments": '{"a": 2, "b": 2}'},
    ],
)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_and_their_calls_in_many_forms_are_the_same(calls: Any, tools: Any) -> None:
    chat = [TOOL_CHAT[0], {"role": "assistant", "tool_calls": calls}, *TOOL_CHAT[2:]]
    assert to_conversation({"messages": chat, "tools": tools}) == (TOOL_CHAT, [TOOL])


def test_sharegpt_calls_become_tool_calls() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4."},
        ],
        "tools": json.dumps([TOOL["function"]]),
    }
    assert to_conversation(row) == (TOOL_CHAT, [TOOL])


def test_tools_of_minimind_stand_in_the_system_message() -> None:
    row = {
        "conversations": [
            {**SYSTEM, "tools": json.dumps([TOOL]), "tool_calls": "", "reasoning_content": ""},
            {"role": "user", "content": "2+2?", "tools": "", "tool_calls": ""},
            {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL["function"]]), "tools": ""},
        ]
    }
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert to_conversation(row) == ([SYSTEM, CHAT[0], call], [TOOL])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": null}', {"a": None}),
        ({"a": None}, {"a": None}),
        ("", {}),
        (None, {}),
        ("2, 2", "2, 2"),
        ("[2, 2]", "[2, 2]"),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
    ],
)
def test_arguments_are_parsed_where_they_are_an_object(arguments: Any, expected: Any) -> None:
    call = {"id": "c1", "function": {"name": "add", "arguments": arguments}}
    messages, _ = to_conversation({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}]})
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": expected}}
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": [called]}


def test_optional_fields_are_kept() -> None:
    chat = [
        {"role": "user", "content": "2+2?", "name": "eve"},
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
        {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "add"},
    ]
    assert to_conversation({"messages": chat}) == (chat, None)


def write_parquet(path: Path, rows: list[Row]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path, row_group_size=2)
    return path


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["messages", "tools", "prompt", "completion", "id"])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
            )
    return path


def test_equal_rows_have_equal_digests_in_every_format_and_shape(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"messages": CHAT},
        {"messages": TOOL_CHAT, "tools": [TOOL]},
        {"prompt": "2+2?", "completion": "4"},
        {"messages": [{"role": "user", "content": 'é "q"\n\\u0000 😀 한'}, CHAT[1]]},
    ]
    paths = [
        write_jsonl(tmp_path / "a.jsonl", *rows),
        write_parquet(tmp_path / "a.parquet", [{"extra": 1, **row} for row in rows]),
        write_csv(tmp_path / "a.csv", rows),
    ]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(paths[0].read_bytes()))
    columns = [read_good(path) for path in [*paths, packed]]
    for column in columns:
        assert [(row.messages, row.tools) for row in column] == [(row.messages, row.tools) for row in columns[0]]
        assert [row.digest for row in column] == [row.digest for row in columns[0]]
    digests = [row.digest for row in columns[0]]
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3
    assert [len(digest) for digest in digests] == [8] * 4
    assert [row.row for row in columns[1]] == [1, 2, 3, 4]
    assert columns[1][2].place == f"{paths[1]}:3"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), texts, st.none() | texts), min_size=1))
def test_the_digest_is_of_the_canonical_json(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str, str | None]]
) -> None:
    chat = [{"role": role, "content": text} | ({"name": name} if name else {}) for role, text, name in turns]
    (row,) = read_good(write_jsonl(tmp_path_factory.getbasetemp() / "digest.jsonl", {"messages": chat}))
    canonical = json.dumps([chat, None], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert row.digest == hashlib.blake2b(canonical.encode(), digest_size=8).digest()


def test_order_of_keys_is_no_difference_and_text_is(tmp_path: Path) -> None:
    turned = [dict(reversed(list(message.items()))) for message in CHAT]
    other = [CHAT[0], {"role": "assistant", "content": "4."}]
    rows = [{"messages": chat} for chat in (CHAT, turned, other, CHAT[:1])]
    digests = [row.digest for row in read_good(write_jsonl(tmp_path / "a.jsonl", *rows))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_parquet_fills_in_nothing(tmp_path: Path) -> None:
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {"text": "hi"}}]
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}]
    (row,) = read_good(write_parquet(tmp_path / "a.parquet", [{"messages": chat}]))
    functions = [call["function"] for call in row.messages[1]["tool_calls"]]
    assert functions == calls
    assert row.messages[0] == {"role": "user", "content": "?"}


def test_a_table_may_mix_shapes(tmp_path: Path) -> None:
    rows: list[Row] = [{"messages": CHAT}, {"prompt": "2+2?", "completion": "4"}, {"prompt": "", "completion": "4"}]
    for path in (write_csv(tmp_path / "a.csv", rows), write_parquet(tmp_path / "a.parquet", rows)):
        asked = [row.messages[0]["content"] for row in read_good(path)]
        assert asked == ["2+2?", "2+2?", ""]


def test_csv_rows_are_named_by_the_line_on_which_they_start(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\r\n"two\r\nlines","a ""quote"""\r\n\r\nb,c\r\n')
    rows = read_good(path)
    assert [(row.row, row.messages[0]["content"], row.messages[1]["content"]) for row in rows] == [
        (2, "two\r\nlines", 'a "quote"'),
        (5, "b", "c"),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 60, 1 << 20])
def test_reading_goes_on_after_a_bad_row_whatever_the_chunks(tmp_path: Path, chunk_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"messages": CHAT})
    path.write_text(f'\ufeff{good}\r\n\r\n{{"text": "x"}}\n{good}\n[]\nnonsense\n{good}', encoding="utf-8")
    rows = read_rows(path, chunk_bytes)
    assert [row.place if isinstance(row, Conversation) else row.where for row in rows] == [
        f"{path}:1",
        f"{path}:3:{3 + len(good) + 4}",
        f"{path}:4",
        f"{path}:5:{3 + 2 * len(good) + 4 + 15}",
        f"{path}:6:{3 + 2 * len(good) + 4 + 18}",
        f"{path}:7",
    ]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"message": CHAT}, "no shape that is known. Did you mean messages?"),
        ({"instruction": "a", "ouput": "b"}, "no shape that is known. Did you mean output?"),
        ({"messages": CHAT, "conversations": CHAT}, "two shapes: messages and conversations"),
        ({"messages": CHAT, "prompt": "a", "completion": "b"}, "two shapes: messages and prompt"),
        ({"messages": [SYSTEM, *CHAT], "system": "x"}, "two system texts"),
        ({"messages": [{**SYSTEM, "tools": [TOOL]}, *CHAT], "tools": [TOOL]}, "tools in two places"),
    ],
)
def test_unclear_rows_are_refused(row: Row, what: str) -> None:
    with pytest.raises(RowFault) as caught:
        to_conversation(row)
    assert what in caught.value.what
