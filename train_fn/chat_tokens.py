"""Text to token ids with the places of its characters, and special tokens that people typed kept as plain text.

A special token's text means the token wherever it stands. What a person typed must not: an answer that quotes
`<|im_end|>` does not end there. For such a chat the special tokens are renamed, both in a copy of the tokenizer
and in the text that the template wrote, to names of the same length that cannot be typed. Ids and places stay; what
was typed is then an ordinary word.
"""

import json
import re
from collections.abc import Container, Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Encoding, Tokenizer

# Names are made of noncharacters (the first three are the marks'). No name begins with a character of the tails, so
# a text made of names can be read in one way only.
_HEADS = [chr(code) for code in range(0xFDE4, 0xFDF0)]
_TAILS = [chr(code) for code in range(0xFDD3, 0xFDE4)]
RESERVED = re.compile("[\ufdd3-\ufdef]")


class SpecialTokens:
    """The special tokens of a tokenizer, as texts and as ids."""

    def __init__(self, facts: dict[str, Any]) -> None:
        added = facts["added_tokens"]
        # One of a single character, say a `!` used as padding, is an ordinary word to everybody else.
        special = [token for token in added if token["special"] and len(token["content"]) > 1]
        self.ids: dict[str, int] = {token["content"]: token["id"] for token in special}
        self.pattern = _match_any(self.ids)
        # One special or other added token, or else one character.
        self.units = re.compile(f"{_match_any(token['content'] for token in added).pattern}|.", re.DOTALL)


def _match_any(texts: Iterable[str]) -> re.Pattern[str]:
    """The longest first, as the tokenizer matches; `(?!)` matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


class TextEncoder:
    """The Rust tokenizer behind a fast tokenizer, without truncation, padding and tokens added by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._json: str = tokenizer.backend_tokenizer.to_str()
        self.special = SpecialTokens(json.loads(self._json))
        self._plain = _build_bare(self._json)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings: list[Encoding] = self._plain.encode_batch(texts, add_special_tokens=False)
        return encodings

    def encode_renamed(self, texts: Sequence[str]) -> list[Encoding]:
        """The same for texts in which `rename` was applied to the template's part."""
        if not texts:
            return []
        encodings: list[Encoding] = self._renamed.encode_batch(texts, add_special_tokens=False)
        return encodings

    def rename(self, text: str) -> str:
        """The text with every special token under its other name; its length stays."""
        return self.special.pattern.sub(lambda match: self._names[match[0]], text)

    @cached_property
    def _names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        used: dict[int, int] = {}
        for text in self.special.ids:
            length = len(text)
            names[text] = _make_name(used.get(length, 0), length)
            used[length] = used.get(length, 0) + 1
        return names

    @cached_property
    def _renamed(self) -> Tokenizer:
        facts, names = json.loads(self._json), self._names
        for token in facts["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = facts["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
        else:  # Unigram: [[word, score], …]
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not _makes_any(pair, names)]
        # The original post-processor names special tokens, and is not used.
        return _build_bare(json.dumps(facts | {"post_processor": None}))


def _makes_any(pair: str | list[str], texts: Container[str]) -> bool:
    """Whether a merge makes one of these texts, or more of one; converted vocabularies have such merges."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return left in texts or right in texts or left + right in texts


def _build_bare(facts: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(facts)
    tokenizer.post_processor = None  # it would trim the spaces off the places of byte-level tokens
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _make_name(number: int, length: int) -> str:
    """A name of this length; different for each number."""
    number, digit = divmod(number, len(_HEADS))
    name = _HEADS[digit]
    for _ in range(length - 1):
        number, digit = divmod(number, len(_TAILS))
        name += _TAILS[digit]
    assert number == 0, f"more special tokens of {length} characters than there are names"
    return name
