"""From the derivations to the answers: each fills the other's gaps, and where both speak they must agree.

The second derivation costs two renderings an answer. It is run where the first has gaps, on the first rows of every
file, on every hundredth row, and on whatever is unusual. Its choices depend on the row alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sftray.train_fn.chat_frame import Frame
from sftray.train_fn.chat_marks import MarkedChat, View
from sftray.train_fn.chat_spans import NOTHING, Reading, find_end_behind, read_by_marks, read_by_prefix
from sftray.train_fn.errors import Problem
from sftray.train_fn.rows import Conversation

FIX = "correct the row or the template, or set model.chat_template=chatml"
_FIRST_ROWS = 16
_EVERY_ROW = 100
_MOST_CHECKED = 8  # answers of one row, half of them its last: each check renders the chat before it anew
_SHOWN = 60  # characters on either side of a place

Answer = tuple[int, int]  # start and end (just after), in characters of the plain rendering


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as text. `view` is None where its marks cannot be read."""

    conversation: Conversation
    plain: str
    marked: MarkedChat
    view: View | None
    typed_markers: int


def find_answers(frame: Frame, chat: RenderedChat, counts: Counter[str]) -> list[Answer] | Problem:
    """The place of each assistant message's answer, in order; a problem where there is any doubt.

    Adds to `counts`: rows_checked, turns_checked and turns_inconclusive (the second derivation could not tell).
    """
    conversation, view = chat.conversation, chat.view
    messages = conversation.messages
    targets = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    by_marks = {} if view is None else read_by_marks(frame, messages, chat.marked, view)
    doubted = _choose_doubted(frame, chat, targets)
    checked = 0
    answers: list[Answer] = []
    for index in targets:
        one, two = by_marks.get(index, NOTHING), NOTHING
        if index in doubted or one.start is None or one.end is None:
            two = read_by_prefix(frame, messages, conversation.tools, chat.plain, index)
            checked += 1
            counts["turns_inconclusive"] += two.start is None or two.end is None
        start = two.start if one.start is None else one.start
        end = two.end if one.end is None else one.end
        if end is None and start is not None and view is not None and index not in by_marks:
            end = find_end_behind(frame, view, start)
        if start is None or end is None or (answers and start < answers[-1][1]):
            return _describe_unclear(chat, index, one)
        if two.start not in (None, start) or two.end not in (None, end):
            return _describe_conflict(chat, index, (start, end), two)
        answers.append((start, end))
    counts["turns_checked"] += checked
    counts["rows_checked"] += checked > 0
    return (_check_blocks(frame, chat, targets, answers) if checked else None) or answers


def _choose_doubted(frame: Frame, chat: RenderedChat, targets: list[int]) -> list[int]:
    """The assistant messages whose answers are to be checked although the marks may tell."""
    row = chat.conversation.row
    is_sampled = row <= _FIRST_ROWS or row % _EVERY_ROW == 0
    is_whole = is_sampled or _is_odd(frame, chat)
    odd = targets if is_whole else [index for index in targets if index in chat.marked.odd]
    half = _MOST_CHECKED // 2
    return odd if len(odd) <= _MOST_CHECKED else odd[:half] + odd[-half:]


def _is_odd(frame: Frame, chat: RenderedChat) -> bool:
    """Whether the whole row is unusual: typed markers or headers, a late system message, a role twice in a row."""
    if chat.typed_markers or chat.view is None:
        return True
    roles = [message["role"] for message in chat.conversation.messages]
    if not {"system", "developer"}.isdisjoint(roles[1:]):
        return True
    if any(role == after != "tool" for role, after in pairwise(roles)):
        return True
    header = frame.typable_header
    return bool(header) and chat.plain.count(header) != "\0".join(chat.view.pieces).count(header)


def _check_blocks(
    frame: Frame, chat: RenderedChat, targets: Sequence[int], answers: Sequence[Answer]
) -> Problem | None:
    """Compare with the template's own `{% generation %}` blocks, if it has any.

    A block may also hold the header, may leave out the end-of-turn token, and may run over whitespace behind it.
    """
    if not frame.template.has_generation_blocks:
        return None
    conversation, plain = chat.conversation, chat.plain
    _, blocks = frame.template.render_blocks(conversation.messages, conversation.tools)
    left = [block for block in blocks if plain[slice(*block)].strip()]
    for index, (start, end) in zip(targets, answers, strict=True):
        own = [block for block in left if block[0] < end and block[1] > start]
        if not own:
            return _describe_conflict(chat, index, (start, end), NOTHING)
        left = [block for block in left if block not in own]
        first, last = own[0][0], own[-1][1]
        header = frame.header + frame.prompt_rest
        is_start = first == start or plain[first:start] in (header, frame.header) or plain[start:first] == frame.lead
        gap = plain[min(last, end) : max(last, end)].strip()
        if not is_start or (gap and not (last < end and gap in frame.turn_ends)):
            return _describe_conflict(chat, index, (start, end), Reading(first, last))
    if left:
        what = f"the template's {{% generation %}} block {plain[slice(*left[0])]!r} is no answer of an assistant"
        return refuse(chat, what)
    return None


def _describe_conflict(chat: RenderedChat, index: int, answer: Answer, other: Reading) -> Problem:
    start = answer[0] if other.start is None else other.start
    end = answer[1] if other.end is None else other.end
    read = "no answer there" if other == NOTHING else _shorten(chat.plain[start:end])
    return refuse(
        chat,
        f"two readings of the answer in message {index + 1} disagree",
        why=f"by its place in the chat it is {_shorten(chat.plain[slice(*answer)])}; otherwise {read}",
    )


def _describe_unclear(chat: RenderedChat, index: int, reading: Reading) -> Problem:
    place = reading.start if reading.end is None else reading.end
    if place is None:
        spans = zip(chat.view.ends, chat.view.spans, strict=True) if chat.view else ()
        place = max((end for end, number in spans if chat.marked.leaves[number][0] < index), default=0)
    around = chat.plain[max(0, place - _SHOWN) : place + _SHOWN]
    return refuse(
        chat,
        f"it cannot be told where the answer in message {index + 1} starts and ends",
        why=f"the rendered chat has, around it, {around!r}",
    )


def _shorten(text: str) -> str:
    return repr(text) if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]!r} … {text[-_SHOWN:]!r}"


def refuse(chat: RenderedChat, what: str, why: str | None = None, fix: str = FIX) -> Problem:
    return Problem(what, chat.conversation.place, why, fix)
