"""Conversations to token ids and loss masks, for the chat template of any tokenizer.

A conversation is rendered once as it is and tokenised as one text, exactly as the tokenizer itself would. The mask
comes from the places of the answers in that text (chat_spans.py), cross-checked by a second way to find them
(chat_check.py): a row on which there is doubt is a problem, never a guess.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from sftray.train_fn.chat_check import FIX, Answer, RenderedChat, find_answers, refuse
from sftray.train_fn.chat_faults import find_fault
from sftray.train_fn.chat_frame import Frame, learn_frame
from sftray.train_fn.chat_marks import View, mark_messages, read_marks
from sftray.train_fn.chat_render import RENDER_ERRORS, Template
from sftray.train_fn.chat_tokens import RESERVED, TextEncoder
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.rows import Conversation


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens.

    input_ids: int32 [num_tokens].
    loss_mask: bool [num_tokens], unshifted: this token is a target. Targets are what the model must generate after
        the generation prompt, to the end-of-turn token; see chat_spans.py.
    turn_ends: for each assistant message in order, the index just after its end-of-turn token: a cut there keeps
        whole turns. With `train_on: last` too it has all of them.
    typed_markers: how many special tokens the messages' text spelled out; they are encoded as plain text.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    turn_ends: list[int]
    typed_markers: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A text that is ready for the tokenizer; `answers` are places in it."""

    text: str
    chat: RenderedChat
    answers: list[Answer]


class ChatFormat:
    """The chat template and tokenizer of a run, learnt; build one per process with `build_chat_format`.

    end_of_turn_id: the token that ends an assistant's turn.
    checked: counts for the data receipt: rows_checked, turns_checked, turns_inconclusive (checked, but the second
        derivation could not tell), reasoning_left_out, text_left_out (messages of which the template writes only
        the rest).
    """

    def __init__(self, encoder: TextEncoder, frames: dict[bool, Frame], train_on: Literal["all", "last"]) -> None:
        self.end_of_turn_id: int = encoder.special.ids[frames[False].turn_ends[0]]
        self.checked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._encoder = encoder
        self._frames = frames  # for rows without and with tools
        self._train_on = train_on
        self._special_texts = {number: text for text, number in encoder.special.ids.items()}

    def take_counts(self) -> Counter[str]:
        """`checked` since the last call."""
        counts, self.checked = self.checked, Counter()
        return counts

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Problem]:
        """Tokens and masks, in order; a conversation that the template refuses, or on which there is doubt, is a
        problem. A few hundred at a time keep memory flat. May be called from several threads.
        """
        counts: Counter[str] = Counter()
        rows = [self._read(conversation, counts) for conversation in conversations]
        with self._lock:
            self.checked.update(counts)
        good = [row for row in rows if isinstance(row, _Row)]
        plain = iter(self._encoder.encode([row.text for row in good if not row.chat.typed_markers]))
        renamed = iter(self._encoder.encode_renamed([row.text for row in good if row.chat.typed_markers]))
        return [
            self._mask(row, next(renamed if row.chat.typed_markers else plain)) if isinstance(row, _Row) else row
            for row in rows
        ]

    def _read(self, conversation: Conversation, counts: Counter[str]) -> _Row | Problem:
        frame = self._frames[bool(conversation.tools)]
        try:
            plain = frame.template.render(conversation.messages, conversation.tools)
        except RENDER_ERRORS as error:
            what = "the chat template refuses this conversation"
            return Problem(what, conversation.place, why=f"{type(error).__name__}: {error}", fix=FIX)
        chat = _take_apart(frame, conversation, plain)
        fault = find_fault(frame, chat, counts)
        answers = fault or find_answers(frame, chat, counts)
        if isinstance(answers, Problem):
            return answers
        if not chat.typed_markers:
            return _Row(plain, chat, answers)
        if chat.view is None or RESERVED.search(plain):
            what = "a message spells out a special token, and it cannot be told from the chat template's own"
            return refuse(chat, what, fix="take the special tokens, or noncharacters such as U+FDD0, out of the text")
        return _Row(self._rename(chat, chat.view), chat, answers)

    def _rename(self, chat: RenderedChat, view: View) -> str:
        """The text with the special tokens of the template, and only these, renamed."""
        parts = [self._encoder.rename(view.pieces[0])]
        for start, end, piece in zip(view.starts, view.ends, view.pieces[1:], strict=True):
            parts += chat.plain[start:end], self._encoder.rename(piece)
        return "".join(parts)

    def _mask(self, row: _Row, encoding: Encoding) -> Encoded | Problem:
        ids: list[int] = encoding.ids
        mask = np.zeros(len(ids), dtype=np.bool_)
        turn_ends: list[int] = []
        for start, end in row.answers:
            last = encoding.char_to_token(end - 1)
            if last is None or ids[last] not in self._special_texts:
                what = "the tokenizer does not read the end of an answer as one special token"
                around = row.chat.plain[max(0, end - 20) : end + 20]
                return refuse(row.chat, what, why=f"the rendered chat has {around!r}")
            mask[self._find_first(row, encoding, ids, start) : last + 1] = True
            turn_ends.append(last + 1)
        if self._train_on == "last" and len(turn_ends) > 1:
            mask[: turn_ends[-2]] = False
        return Encoded(np.array(ids, dtype=np.int32), mask, turn_ends, row.chat.typed_markers)

    def _find_first(self, row: _Row, encoding: Encoding, ids: list[int], start: int) -> int:
        """The first token of an answer that starts at this character: the first that overlaps it.

        A special token of the header may have swallowed whitespace behind it, into the answer; it stays outside.
        """
        places: Callable[[int], Any] = encoding.token_to_chars  # a pair; None only out of range
        while (first := encoding.char_to_token(start)) is None:
            start += 1  # characters that the tokenizer drops
        left, right = places(first)
        if left < start and ids[first] in self._special_texts:
            text = self._special_texts[ids[first]]
            return first + int(row.chat.plain.find(text, left, right) < start)
        return first


def _take_apart(frame: Frame, conversation: Conversation, plain: str) -> RenderedChat:
    """Tell the template's text from the messages'."""
    marked = mark_messages(conversation.messages, frame.cuts)
    try:
        view = read_marks(frame.template.render(marked.messages, conversation.tools), plain)
    except RENDER_ERRORS:
        view = None  # it looks into the text; the plain text it did accept
    if view is None:
        typed = frame.count_special(json.dumps(conversation.messages, ensure_ascii=False))
    else:
        typed = frame.count_special(plain) - frame.count_special("\0".join(view.pieces))
    return RenderedChat(conversation, plain, marked, view, typed)


def build_chat_format(tokenizer: Any, *, train_on: Literal["all", "last"] = "all") -> ChatFormat:
    """Learn the chat format of a fast tokenizer of transformers.

    Raises:
        ConfigError: the tokenizer is slow or has no template, or the template is not one from which answers can be
            learnt: see `learn_frame`.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            Problem(
                "the tokenizer has no fast version",
                why="targets are found by the places of characters, which only a tokenizer.json gives",
                fix="set model.tokenizer to a folder with a tokenizer.json",
            )
        )
    encoder = TextEncoder(tokenizer)
    try:
        sources = {False: tokenizer.get_chat_template(), True: tokenizer.get_chat_template(tools=[])}
    except ValueError as error:
        raise ConfigError(Problem("the tokenizer has no chat template", why=str(error), fix=FIX)) from error
    learnt = {source: learn_frame(Template(tokenizer, source), encoder.special) for source in set(sources.values())}
    return ChatFormat(encoder, {has_tools: learnt[source] for has_tools, source in sources.items()}, train_on)
