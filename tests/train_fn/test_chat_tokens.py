"""Special tokens under names that nobody can type."""

from itertools import product
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from toy_chat import (
    build_byte_tokenizer,
    build_metaspace_tokenizer,
    build_unigram_tokenizer,
    finish_tokenizer,
)

from sftray.train_fn.chat_tokens import TextEncoder

LLAMA = [f"<|reserved_special_token_{number}|>" for number in range(250)] + ["<s>", "</s>", "<a>", "<b>"]
OVERLAPPING = ["<a>", "<a>b", "<a>bc"]


def _build_wordpiece() -> Any:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "[": 3, "##s": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return finish_tokenizer(backend, None, ("[UNK]", "[SEP]"))


TOKENIZERS = {
    "bytes": lambda: build_byte_tokenizer(None, LLAMA),
    "overlapping": lambda: build_byte_tokenizer(None, OVERLAPPING),
    "metaspace": lambda: build_metaspace_tokenizer(
        None, "first", ["[INST]", AddedToken("<x>", rstrip=True, lstrip=True)]
    ),
    "unigram": lambda: build_unigram_tokenizer(None, ["<s>", "</s>"]),
    "wordpiece": _build_wordpiece,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_renamed_text_has_the_same_ids_and_places(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = TextEncoder(tokenizer)
    special = list(encoder.special.ids)[:8]
    texts = ["".join(parts) for parts in product(special, ["a a", "", " \n a"], special[:4], ["é 🦙 a", ""])]

    plain, renamed = encoder.encode(texts), encoder.encode_renamed([encoder.rename(text) for text in texts])

    assert [e.ids for e in plain] == [e.ids for e in renamed]
    assert [e.offsets for e in plain] == [e.offsets for e in renamed]
    assert [e.ids for e in plain] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_typed_names_of_special_tokens_are_ordinary_text(name: str) -> None:
    encoder = TextEncoder(TOKENIZERS[name]())
    unknown = {0} if name in ("unigram", "wordpiece") else set()
    for text in encoder.special.ids:
        (encoding,) = encoder.encode_renamed([f"a{text}a"])
        assert not (set(encoding.ids) - unknown) & set(encoder.special.ids.values())
        assert encoder.encode([text])[0].ids == [encoder.special.ids[text]]


def test_names_are_of_the_same_length_and_all_different() -> None:
    encoder = TextEncoder(build_byte_tokenizer(None, LLAMA))
    names = [encoder.rename(text) for text in LLAMA]
    assert len(set(names)) == len(LLAMA)
    assert [len(name) for name in names] == [len(text) for text in LLAMA]


def test_a_single_character_is_what_it_looks_like() -> None:
    encoder = TextEncoder(build_byte_tokenizer(None, ["<s>", "!"]))
    assert list(encoder.special.ids) == ["<s>"]
    assert encoder.rename("!<s>")[0] == "!"


def test_places_keep_the_spaces_of_their_tokens() -> None:
    (encoding,) = TextEncoder(build_byte_tokenizer(None)).encode(["a e"])
    assert encoding.offsets == [(0, 1), (1, 3)]
    assert encoding.tokens == ["a", "Ġe"]
