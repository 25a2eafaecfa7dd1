"""What a chat template writes around an answer, learnt by rendering chats of known words.

No template is known by name. From a few short chats follow: the header that goes before an answer, what the
generation prompt adds to it, and the special token that ends a turn. A template from which these do not follow is
refused, for what it trains would be a guess.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NoReturn

from sftray.train_fn.chat_marks import Cuts
from sftray.train_fn.chat_render import RENDER_ERRORS, Template
from sftray.train_fn.chat_tokens import SpecialTokens
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.messages import Message

_ASKED, _ANSWERED, _ASKED_AGAIN, _ANSWERED_AGAIN = _WORDS = ("qxaskone", "qxtellone", "qxasktwo", "qxtelltwo")
_CHAT: list[Message] = [
    {"role": role, "content": word}
    for role, word in zip(("user", "assistant", "user", "assistant"), _WORDS, strict=True)
]
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "qxcallone",  # Mistral's template wants nine characters
            "type": "function",
            "function": {"name": "qxname", "arguments": {"qxkey": "qxvalue"}},
        }
    ],
}
_TAG = re.compile(r"</?[a-z_]+>")
_CHATML = "model.chat_template=chatml"


@dataclass(frozen=True, slots=True)
class Frame:
    """A template and what it writes around answers.

    header: goes before an answer. Where the template has no generation prompt of its own (Mistral), it is what ends
        a question, and an answer may also go without.
    prompt_rest: what the generation prompt has after the header, such as `<think>\\n`; mostly empty.
    lead: where there is no generation prompt, the whitespace that an answer starts with; else None.
    turn_ends: special tokens that end an assistant's turn; the first is the one after a plain answer.
    """

    template: Template
    special: SpecialTokens
    header: str
    prompt_rest: str
    lead: str | None
    turn_ends: tuple[str, ...]
    cuts: Cuts

    @property
    def typable_header(self) -> str:
        """The header, if it is all ordinary text, which anybody may write."""
        return "" if self.special.pattern.search(self.header) else self.header

    def find_start(self, piece: str) -> int | None:
        """Where an answer starts in the template text before it: after the last header."""
        at = piece.rfind(self.header)
        if not self.header or at < 0:
            return None
        start = at + len(self.header)
        return start + len(self.prompt_rest) * piece.startswith(self.prompt_rest, start)

    def find_end(self, piece: str, start: int = 0) -> int | None:
        """Just after the first end of turn in the template text that follows an answer."""
        nearest: int | None = None
        for end in self.turn_ends:
            at = piece.find(end, start)
            if at >= 0 and (nearest is None or at + len(end) < nearest):
                nearest = at + len(end)
        return nearest

    def count_special(self, text: str) -> int:
        return len(self.special.pattern.findall(text))


def learn_frame(template: Template, special: SpecialTokens) -> Frame:
    """Probe a template.

    Raises:
        ConfigError: it refuses a plain chat, hides what the messages say, does not end each answer with one and
            the same special token, or has no generation prompt that its answers start with.
    """
    before, between, after, between_again, last = _split(_render(template, _CHAT), _WORDS)
    *_, asked_tail = _split(_render(template, _CHAT[:3]), _WORDS[:3])
    *_, prompt_tail = _split(_render(template, _CHAT[:3], prompt=True), _WORDS[:3])
    end = _find_turn_end(after, last, special)
    lead: str | None = None
    if prompt_tail == asked_tail:
        header, rest, lead = asked_tail, "", _find_lead(between, between_again, asked_tail)
    else:
        close = _share(special, asked_tail, prompt_tail)
        header, rest = _find_header(special, close, prompt_tail, (between, between_again))
        if header in before or header in close or header in after:
            _refuse_header(header, between)
    ends = (end, *_find_call_ends(template, special, end))
    return Frame(template, special, header, rest, lead, ends, _find_cuts(template, special, header))


def _render(template: Template, messages: Sequence[Message], *, prompt: bool = False) -> str:
    try:
        return template.render(messages, None, prompt=prompt)
    except RENDER_ERRORS as error:
        what = "the chat template cannot render a chat of user and assistant"
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(Problem(what, why=why, fix=f"correct the template, or set {_CHATML}")) from error


def _split(text: str, words: Sequence[str]) -> list[str]:
    """What stands before, between and after these words, each of which must be there once, in this order."""
    parts = re.split("|".join(words), text)
    if re.findall("|".join(words), text) == list(words):
        return parts
    raise ConfigError(
        Problem(
            "the chat template does not write each message once and in order",
            why=f"a chat of the messages {', '.join(words)} is rendered as {text!r}",
            fix=f"correct the template, or set {_CHATML}",
        )
    )


def _find_turn_end(after: str, last: str, special: SpecialTokens) -> str:
    found, found_last = special.pattern.search(after), special.pattern.search(last)
    if found and found_last and found[0] == found_last[0]:
        return found[0]
    if found_last and found:
        what = f"the chat template ends the last answer with {found_last[0]!r} but an earlier one with {found[0]!r}"
    elif found_last:
        what = f"the chat template ends only the last answer, with {found_last[0]!r}"
    else:
        what = "the chat template has no end-of-turn token"
    why = (
        f"after an answer it writes {after!r}, at the end of the chat {last!r}; a model learns to stop only from "
        "one special token of the tokenizer after every answer"
    )
    raise ConfigError(Problem(what, why=why, fix=f"end each answer with a special token, or set {_CHATML}"))


def _find_lead(between: str, between_again: str, asked_tail: str) -> str:
    lead = between_again[len(asked_tail) :]
    if between == between_again == asked_tail + lead and not lead.strip():
        return lead
    raise ConfigError(
        Problem(
            "the chat template ignores add_generation_prompt",
            why=f"it starts an answer with {lead or between_again!r}, but a prompt ends with {asked_tail!r}: "
            "the model would be asked for answers in another way than it was trained",
            fix=f"write the header under {{% if add_generation_prompt %}}, or set {_CHATML}",
        )
    )


def _find_header(special: SpecialTokens, close: str, prompt_tail: str, betweens: Sequence[str]) -> tuple[str, str]:
    """The header, and the rest of the generation prompt."""
    prompt = prompt_tail[len(close) :]
    heads = [between[len(close) :] for between in betweens]
    header = _share(special, prompt, *heads)
    if not header or not all(between.startswith(close) for between in betweens):
        _refuse_header(prompt, betweens[1])
    return header, prompt[len(header) :]


def _refuse_header(prompt: str, between: str) -> NoReturn:
    raise ConfigError(
        Problem(
            "the chat template's generation prompt is not how its answers start",
            why=f"the prompt has {prompt!r}; between a question and its answer stands {between!r}",
            fix=f"make the two alike in the template, or set {_CHATML}",
        )
    )


def _share(special: SpecialTokens, *texts: str) -> str:
    """The longest common start that cuts no added token in two."""
    shared = takewhile(lambda units: len(set(units)) == 1, zip(*map(special.units.findall, texts), strict=False))
    return "".join(units[0] for units in shared)


def _find_call_ends(template: Template, special: SpecialTokens, end: str) -> tuple[str, ...]:
    """The token after a tool call, where it is another one than after text."""
    try:
        text = template.render([_CHAT[0], _CALL], None)
    except RENDER_ERRORS:
        return ()
    tail = text.rpartition("qxvalue")[2]
    found = special.pattern.findall(tail)
    return (found[-1],) if len(tail) < len(text) and found and end not in found else ()


def _find_cuts(template: Template, special: SpecialTokens, header: str) -> Cuts:
    """Tags that the template's source names. Only an assistant's own reasoning tags may be special tokens."""
    tags = {tag for tag in _TAG.findall(template.source) if tag not in header}
    thought = tags & {"<think>", "</think>"}
    plain = tags - special.ids.keys()
    return Cuts(_build_cut(plain | thought), _build_cut(plain))


def _build_cut(tags: set[str]) -> re.Pattern[str] | None:
    return re.compile(f"({'|'.join(map(re.escape, sorted(tags)))})") if tags else None
