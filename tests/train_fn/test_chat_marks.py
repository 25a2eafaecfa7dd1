"""Marks are put around what messages say, and taken off again."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_chat import ASSISTANT, USER, call, say

from sftray.train_fn.chat_marks import CLOSE, OPEN, SEPARATOR, Cuts, mark_messages, read_marks

CUTS = Cuts(re.compile("(</?think>)"), re.compile("(<tag>)"))


def mark(number: int, text: str) -> str:
    return f"{OPEN}{number}{SEPARATOR}{text}{CLOSE}"


@pytest.mark.parametrize(
    ("message", "content", "is_odd"),
    [
        (say(USER, "a b"), mark(0, "a b"), False),
        (say(USER, "\n a\t"), f"\n {mark(0, 'a')}\t", True),
        (say(USER, ""), "", True),
        (say(USER, " \n"), " \n", True),
        (say(USER, "<b"), mark(0, "<b"), False),
        (say(USER, "<think>a"), mark(0, "<think>a"), False),
        (say(USER, "<tag>a"), f"<tag>{mark(0, 'a')}", True),
        (
            say(ASSISTANT, "<think>\na\n</think>\n\nb"),
            f"<think>\n{mark(0, 'a')}\n</think>\n\n{mark(1, 'b')}",
            True,
        ),
    ],
)
def test_marks_stand_inside_whitespace_and_tags_stay_bare(message: Any, content: str, is_odd: bool) -> None:
    given_message = dict(message)
    marked = mark_messages([message], CUTS)
    assert marked.messages == [{**message, "content": content}]
    assert marked.odd == ({0} if is_odd else set())
    assert message == given_message


def test_every_string_but_keys_ids_and_roles_is_marked() -> None:
    message = {
        **say(ASSISTANT, "t", reasoning_content="r", name="n"),
        "tool_calls": [call("f", {"x": ["a", {"y": " b"}], "n": 1}), call("g", "raw")],
    }
    marked = mark_messages([say(USER, "u"), message], CUTS)
    assert marked.messages[1] == {
        **say(ASSISTANT, mark(1, "t"), reasoning_content=mark(2, "r"), name=mark(3, "n")),
        "tool_calls": [
            call(mark(4, "f"), {"x": [mark(5, "a"), {"y": f" {mark(6, 'b')}"}], "n": 1}),
            call(mark(7, "g"), mark(8, "raw")),
        ],
    }
    assert marked.leaves == [
        *((0, "text"), (1, "text"), (1, "reasoning"), (1, "name")),
        *[(1, "tool call")] * 5,
    ]


PARTS = st.lists(st.tuples(st.text("ab \n", max_size=3), st.text("xyz", min_size=1, max_size=3)), max_size=5)


@given(parts=PARTS, tail=st.text("ab", max_size=2))
def test_a_marked_text_is_read_back(parts: list[tuple[str, str]], tail: str) -> None:
    marked = "".join(piece + mark(number, text) for number, (piece, text) in enumerate(parts)) + tail
    plain = "".join(piece + text for piece, text in parts) + tail
    view = read_marks(marked, plain)
    assert view is not None
    assert view.pieces == [*(piece for piece, _ in parts), tail]
    assert view.spans == list(range(len(parts)))
    assert [plain[a:b] for a, b in zip(view.starts, view.ends, strict=True)] == [text for _, text in parts]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        (f"{OPEN}0{SEPARATOR}abc", "abc"),
        (f"{OPEN}0{SEPARATOR}abc{CLOSE}d", "abc"),
        (f"a{CLOSE}", "a"),
        (f"{OPEN}0abc{CLOSE}", ""),
        (f"{OPEN}{SEPARATOR}abc{CLOSE}", "abc"),
        (f"{mark(0, 'a')}{CLOSE}", f"a{CLOSE}"),
        (mark(0, f"a{OPEN}").replace(OPEN, "", 1), f"a{OPEN}"),
    ],
)
def test_torn_marks_are_not_read(marked: str, plain: str) -> None:
    assert read_marks(marked, plain) is None
