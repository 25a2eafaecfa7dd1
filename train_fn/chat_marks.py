"""Marks around what people wrote, so that after rendering it can be told from what the template wrote.

A leaf is a string of a message: its text, its reasoning, a name, a name or argument of a tool call. Each is wrapped,
inside its outer whitespace, as `U+FDD0 number U+FDD1 text U+FDD2`: noncharacters, which no text for interchange
holds. Templates trim, join and encode as JSON without touching them. Where one does not, a mark is torn or the text
without marks differs from the plain rendering, and `read_marks` gives None.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sftray.train_fn.messages import Message

OPEN, SEPARATOR, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
Kind = Literal["text", "reasoning", "tool call", "name"]
Leaf = tuple[int, Kind]  # index of its message, and what it is there


@dataclass(frozen=True, slots=True)
class Cuts:
    """Tags such as `</think>`, by which a template may take a text apart: left bare, the text around is marked."""

    assistant: re.Pattern[str] | None = None
    other: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class MarkedChat:
    """`odd` holds the indices of messages that deserve a second look: marks do not sit right at their ends."""

    messages: list[Message]
    leaves: list[Leaf]
    odd: set[int]


@dataclass(frozen=True, slots=True)
class View:
    """A rendered chat taken apart: `pieces[0]`, span 0, `pieces[1]`, span 1, …, `pieces[-1]`.

    Pieces are the template's own text. `starts[k]` and `ends[k]` are the place of span k in the plain text, and
    `spans[k]` the number of its leaf.
    """

    pieces: list[str]
    starts: list[int]
    ends: list[int]
    spans: list[int]


def mark_messages(messages: Sequence[Message], cuts: Cuts) -> MarkedChat:
    """Copies of the messages with every leaf marked; numbers count up from 0."""
    marker = _Marker()
    marked = [
        marker.mark(index, message, cuts.assistant if message["role"] == "assistant" else cuts.other)
        for index, message in enumerate(messages)
    ]
    return MarkedChat(marked, marker.leaves, marker.odd)


class _Marker:
    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.odd: set[int] = set()

    def mark(self, index: int, message: Message, cut: re.Pattern[str] | None) -> Message:
        copy = dict(message)
        content = message.get("content")
        if content and len(message) == 2 and "<" not in content and content == content.strip():
            copy["content"] = f"{OPEN}{len(self.leaves)}{SEPARATOR}{content}{CLOSE}"
            self.leaves.append((index, "text"))
            return copy  # the common case, whose speed counts
        if content:
            copy["content"] = self._wrap_parts(content, index, "text", cut)
        if reasoning := message.get("reasoning_content"):
            copy["reasoning_content"] = self._wrap_parts(reasoning, index, "reasoning", cut)
        if name := message.get("name"):
            copy["name"] = self._wrap(name, index, "name")
        if calls := message.get("tool_calls"):
            copy["tool_calls"] = [self._mark_call(call, index) for call in calls]
        if not content or content != content.strip() or reasoning or calls:
            self.odd.add(index)
        return copy

    def _wrap_parts(self, text: str, index: int, kind: Kind, cut: re.Pattern[str] | None) -> str:
        if cut is None or "<" not in text:
            return self._wrap(text, index, kind)
        parts = cut.split(text)  # text, tag, text, tag, …, text
        if len(parts) > 1:
            self.odd.add(index)
        parts[::2] = [self._wrap(part, index, kind) for part in parts[::2]]
        return "".join(parts)

    def _wrap(self, text: str, index: int, kind: Kind) -> str:
        inner = text.strip()
        if not inner:
            return text
        number = len(self.leaves)
        self.leaves.append((index, kind))
        start = len(text) - len(text.lstrip())
        return f"{text[:start]}{OPEN}{number}{SEPARATOR}{inner}{CLOSE}{text[start + len(inner) :]}"

    def _mark_call(self, call: dict[str, Any], index: int) -> dict[str, Any]:
        function = call["function"]
        marked = {key: self._mark_value(function[key], index) for key in ("name", "arguments")}
        return {**call, "function": {**function, **marked}}

    def _mark_value(self, value: Any, index: int) -> Any:
        if isinstance(value, str):
            return self._wrap(value, index, "tool call")
        if isinstance(value, dict):
            return {key: self._mark_value(item, index) for key, item in value.items()}
        if isinstance(value, list):
            return [self._mark_value(item, index) for item in value]
        return value


def read_marks(marked: str, plain: str) -> View | None:
    """Take a marked rendering apart; None if a mark is torn, or if the rest is not the plain rendering."""
    if OPEN in plain or SEPARATOR in plain or CLOSE in plain:
        return None
    head, *rest = marked.split(OPEN)
    view = View([head], [], [], [])
    texts = [head]
    place = len(head)
    for part in rest:
        number, separator, tail = part.partition(SEPARATOR)
        text, close, piece = tail.partition(CLOSE)
        if not (separator and close and number.isdecimal()):
            return None
        view.spans.append(int(number))
        view.starts.append(place)
        view.ends.append(place + len(text))
        view.pieces.append(piece)
        texts += text, piece
        place += len(text) + len(piece)
    return view if "".join(texts) == plain else None
