"""A tokenizer's chat template as a function from messages to text."""

import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from sftray.train_fn.messages import Message, Tool

# A template is foreign code in a sandbox: what it can raise is what its expressions can raise on odd messages.
RENDER_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)

# The date that Llama 3.1 and 3.2 write where no clock is at hand.
PINNED_DATE = date(2024, 7, 26)
_CLOCK_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Template:
    """One chat template with the special tokens it writes.

    It always says the same day, `PINNED_DATE`: tokens prepared tomorrow must be those prepared today.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self.source = source
        self.has_generation_blocks = bool(_GENERATION.search(source))
        self._text = pin_date(source)
        self._words: dict[str, Any] = tokenizer.special_tokens_map

    def render(self, messages: Sequence[Message], tools: list[Tool] | None, *, prompt: bool = False) -> str:
        """The chat as text, with the generation prompt at its end if asked for.

        Raises one of `RENDER_ERRORS` where the template does not accept the messages.
        """
        texts, _ = self._render(messages, tools, {"add_generation_prompt": prompt})
        return str(texts[0])

    def render_blocks(
        self, messages: Sequence[Message], tools: list[Tool] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The chat, and the start and end (in characters) of each of its `{% generation %}` blocks."""
        texts, blocks = self._render(messages, tools, {"return_assistant_tokens_mask": True})
        return texts[0], blocks[0]

    def _render(
        self, messages: Sequence[Message], tools: list[Tool] | None, settings: dict[str, bool]
    ) -> Any:  # two lists; annotated in transformers as something else
        # Many templates would write a key that is None as "None". With two keys, there is none.
        given = [
            m if len(m) == 2 else {key: value for key, value in m.items() if value is not None} for m in messages
        ]
        options: dict[str, Any] = {"tools": tools, **self._words, **settings}
        return render_jinja_template([given], chat_template=self._text, **options)


def pin_date(source: str) -> str:
    """The same template with `PINNED_DATE` written out for every call of `strftime_now("…")`."""
    return _CLOCK_CALL.sub(lambda call: json.dumps(PINNED_DATE.strftime(call[2]), ensure_ascii=False), source)
