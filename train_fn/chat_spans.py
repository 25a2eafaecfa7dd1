"""Where in a rendered chat each answer stands: two derivations that know nothing of each other.

An answer is all that the model must generate after the generation prompt: reasoning where the template writes it,
text, tool calls, and the token that ends the turn. Headers are not part of it, nor is what the template writes after
the end-of-turn token. What it puts by itself between generation prompt and text, such as the empty
`<think>\\n\\n</think>\\n\\n` of Qwen 3, stands after the prompt, so the model must generate it and it counts.

Places are characters of the plain rendering.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sftray.train_fn.chat_frame import Frame
from sftray.train_fn.chat_marks import OPEN, MarkedChat, View
from sftray.train_fn.chat_render import RENDER_ERRORS
from sftray.train_fn.messages import Message, Tool


class Reading(NamedTuple):
    """Start and end (just after) of one answer; None where a derivation cannot tell."""

    start: int | None = None
    end: int | None = None


NOTHING = Reading()


def read_by_marks(frame: Frame, messages: Sequence[Message], marked: MarkedChat, view: View) -> dict[int, Reading]:
    """Derivation 1: after the last header before a message's marks, to the first end of turn behind them.

    Both are looked for in the template's own text alone, so nothing that a message says can be taken for them.
    Gives a reading for each assistant message that has marks.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for span, number in enumerate(view.spans):
        owner, _ = marked.leaves[number]
        if owner not in first:
            first[owner] = span
        last[owner] = span
    readings = {}
    for index, span in first.items():
        if messages[index]["role"] == "assistant":
            behind = view.ends[last[index]]
            end = frame.find_end(view.pieces[last[index] + 1])
            start = _find_start(frame, marked.messages[index], view, span)
            readings[index] = Reading(start, None if end is None else behind + end)
    return readings


def _find_start(frame: Frame, marked: Message, view: View, span: int) -> int | None:
    piece, place = view.pieces[span], view.starts[span]
    start = frame.find_start(piece)
    if start is not None:
        return place - len(piece) + start
    # With no header the first mark is the only hold: it must stand at the very start of a plain answer.
    if frame.lead is None or marked.keys() != {"role", "content"} or not marked["content"].startswith(OPEN):
        return None
    return place - len(frame.lead) if piece.endswith(frame.lead) else None


def find_end_behind(frame: Frame, view: View, place: int) -> int | None:
    """The first end of turn behind a place in the template's own text, if no span stands between."""
    behind = bisect_right(view.ends, place)
    piece_start = view.ends[behind - 1] if behind else 0
    piece = view.pieces[behind]
    if place > piece_start + len(piece):
        return None  # the place is inside a span
    end = frame.find_end(piece, place - piece_start)
    return None if end is None else piece_start + end


def read_by_prefix(
    frame: Frame, messages: Sequence[Message], tools: list[Tool] | None, plain: str, index: int
) -> Reading:
    """Derivation 2: what the chat up to message `index` has beyond the prompt for it, to its last end of turn.

    It cannot tell where the template writes the past otherwise than the present, as Qwen 3 does with reasoning, or
    refuses the shorter chat.
    """
    try:
        prompt = frame.template.render(messages[:index], tools, prompt=True)
        answered = frame.template.render(messages[: index + 1], tools)
    except RENDER_ERRORS:
        return NOTHING
    if not plain.startswith(prompt):
        return NOTHING
    ends = [at + len(end) for end in frame.turn_ends if (at := answered.rfind(end, len(prompt))) >= 0]
    end = max(ends, default=None)
    agrees = end is not None and plain.startswith(answered[:end])
    return Reading(len(prompt), end if agrees else None)
