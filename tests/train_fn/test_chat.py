"""Masks, token by token, in the plainest format."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from toy_chat import (
    ASSISTANT,
    CHATML,
    LATE_ROW,
    SIMPLE,
    SYSTEM,
    TOOLS,
    USER,
    build_byte_tokenizer,
    build_unigram_tokenizer,
    call,
    chat,
    encode_one,
    finish_tokenizer,
    read_targets,
    read_template,
    refuse_one,
    say,
    train_text,
)

from sftray.train_fn.chat import ChatFormat, Encoded, build_chat_format
from sftray.train_fn.errors import ConfigError, Problem


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_byte_tokenizer(SIMPLE, eos_token="<|im_end|>", pad_token="<|im_end|>")


@pytest.fixture(scope="module")
def chat_format(tokenizer: Any) -> ChatFormat:
    return build_chat_format(tokenizer)


def test_mask_token_by_token() -> None:
    """One word, one token: the mask as a list. Padding by the end-of-turn token hides no target."""
    words = ["<unk>", "user", "assistant", "Hi", "Hello", "there", "Bye", "\n"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    template = SIMPLE.replace("+ m.content +", "+ m.content | replace(' ', '\n') +")
    tokenizer = finish_tokenizer(backend, template, CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")
    chat_format = build_chat_format(tokenizer)
    start, end, user, assistant, newline = tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>", "user", "assistant", "\n"]
    )

    encoded = encode_one(chat_format, chat("Hi", "Hello", "Bye", "Bye"))

    hi, hello, bye = tokenizer.convert_tokens_to_ids(["Hi", "Hello", "Bye"])
    assert encoded.input_ids.tolist() == [
        *(start, user, newline, hi, end, newline, start, assistant, newline, hello, end, newline),
        *(start, user, newline, bye, end, newline, start, assistant, newline, bye, end, newline),
    ]
    assert encoded.loss_mask.tolist() == [*([False] * 9), True, True, *([False] * 10), True, True, False]
    assert encoded.turn_ends == [11, 23]
    assert (encoded.input_ids.dtype, encoded.loss_mask.dtype) == (np.int32, np.bool_)
    assert chat_format.end_of_turn_id == end


@pytest.mark.parametrize("row", [1, LATE_ROW])
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["a", "b", "c"], ["b<|im_end|>"]),  # ends on a question
        (["a"], []),
        ([say(SYSTEM, "s")], []),
        ([say(ASSISTANT, "b"), say(ASSISTANT, "c")], ["b<|im_end|>", "c<|im_end|>"]),
        (["a", "", "c", " \n"], ["<|im_end|>", " \n<|im_end|>"]),
        (["a", "\n\n b\t\n", "c", "d"], ["\n\n b\t\n<|im_end|>", "d<|im_end|>"]),
        (["a ", " b"], [" b<|im_end|>"]),
        (["a", "b", say(SYSTEM, "s"), say(ASSISTANT, "c")], ["b<|im_end|>", "c<|im_end|>"]),
        (["a", "b<|im_end|>\n<|im_start|>user\nc"], ["b<|im_end|>\n<|im_start|>user\nc<|im_end|>"]),
        (["a<|im_end|>\n<|im_start|>assistant\nx<|im_end|>", "b"], ["b<|im_end|>"]),
        (["<|im_start|>assistant\n", "<|im_start|>assistant\n"], ["<|im_start|>assistant\n<|im_end|>"]),
        (["", "<|im_end|>"], ["<|im_end|><|im_end|>"]),
        (["🦙", "🦙é", "你", "你好"], ["🦙é<|im_end|>", "你好<|im_end|>"]),
        (["a", "\ufdd0b\ufdd2", "c", "d"], ["\ufdd0b\ufdd2<|im_end|>", "d<|im_end|>"]),
        (
            ["a", "<think>x</think>", "\x1c", "\x85b\u3000"],
            ["<think>x</think><|im_end|>", "\x85b\u3000<|im_end|>"],
        ),
    ],
)
def test_targets(tokenizer: Any, chat_format: ChatFormat, messages: Any, expected: list[str], row: int) -> None:
    assert read_targets(tokenizer, encode_one(chat_format, chat(*messages, row=row))) == expected


def test_a_token_that_begins_in_the_header_and_ends_in_the_answer_is_a_target() -> None:
    tokenizer = build_byte_tokenizer(SIMPLE, merges=[("Ċ", "Ċ")])
    assert train_text(tokenizer, chat("a", "\n\nb\n", "c", " d")) == ["\n\n\nb\n<|im_end|>", " d<|im_end|>"]


def test_typed_markers_are_words_and_counted(tokenizer: Any, chat_format: ChatFormat) -> None:
    encoded = encode_one(chat_format, chat("<|im_start|>", "x<|im_end|><|endoftext|>"))
    clean = encode_one(chat_format, chat("Q", "x"))
    special = tokenizer.convert_tokens_to_ids(list(CHATML))
    assert encoded.typed_markers == 3
    assert [i for i in encoded.input_ids if i in special] == [i for i in clean.input_ids if i in special]
    assert read_targets(tokenizer, encoded) == ["x<|im_end|><|endoftext|><|im_end|>"]
    assert len(read_targets(tokenizer, encoded)[0]) == encoded.loss_mask.sum() + len("<|im_end|>") - 1


def test_typed_markers_in_a_vocabulary_that_has_them_as_pieces() -> None:
    template = read_template("minimind_old")
    tokenizer = build_unigram_tokenizer(template, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    encoded = encode_one(build_chat_format(tokenizer), chat("a", "b</s>c<s>"))
    targets = tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.loss_mask].tolist())
    assert targets == ["b", "<", "/", "s", ">", "c", "<", "s", ">", "</s>"]
    assert encoded.typed_markers == 2


def test_typed_markers_beside_noncharacters_are_refused(chat_format: ChatFormat) -> None:
    problem = refuse_one(chat_format, chat("\ufdef", "<|im_end|>"))
    assert problem.what.startswith("a message spells out a special token")
    assert problem.fix == "take the special tokens, or noncharacters such as U+FDD0, out of the text"


def test_an_end_of_turn_that_takes_whitespace_along_is_still_trained() -> None:
    special = ("<|endoftext|>", "<|im_start|>", AddedToken("<|im_end|>", lstrip=True))
    assert train_text(build_byte_tokenizer(SIMPLE, special), chat("a", "")) == ["<|im_end|>"]


def test_an_end_of_turn_that_the_tokenizer_reads_as_text_is_refused() -> None:
    special = ("<|endoftext|>", "<|im_start|>", AddedToken("<|im_end|>", single_word=True))
    problem = refuse_one(build_chat_format(build_byte_tokenizer(SIMPLE, special)), chat("a", "b"))
    assert problem.what == "the tokenizer does not read the end of an answer as one special token"
    assert problem.why == r"the rendered chat has 'ssistant\nb<|im_end|>\n'"


def test_characters_that_the_tokenizer_drops_are_passed_over() -> None:
    backend = Tokenizer(models.WordLevel({"user": 0, "assistant": 1, "Hi": 2, "<unk>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = finish_tokenizer(backend, SIMPLE, CHATML)
    encoded = encode_one(build_chat_format(tokenizer), chat("Hi", " \n Hi \n"))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.loss_mask].tolist()) == [
        "Hi",
        "<|im_end|>",
    ]


def test_a_row_with_typed_markers_is_otherwise_tokenised_as_ever(tokenizer: Any, chat_format: ChatFormat) -> None:
    text = "ass ass\n\nee 🦙"
    clean, typed = (encode_one(chat_format, chat(text, answer)) for answer in (text, f"{text} <|im_end|>"))
    tail = typed.input_ids.tolist()[len(clean.input_ids) - 2 :]
    assert typed.input_ids.tolist()[: len(clean.input_ids) - 2] == clean.input_ids.tolist()[:-2]
    assert tokenizer.backend_tokenizer.decode(tail, skip_special_tokens=False) == " <|im_end|><|im_end|>\n"


def test_only_the_last_answer(tokenizer: Any) -> None:
    conversation = chat("a", "b", "c", "d", "e")
    chat_format = build_chat_format(tokenizer, train_on="last")
    encoded = encode_one(chat_format, conversation)
    assert read_targets(tokenizer, encoded) == ["d<|im_end|>"]
    assert encoded.turn_ends == encode_one(build_chat_format(tokenizer), conversation).turn_ends
    assert train_text(tokenizer, chat("a", "b"), train_on="last") == ["b<|im_end|>"]


def test_a_batch_keeps_its_order_and_its_problems_in_place(tokenizer: Any) -> None:
    chat_format = build_chat_format(tokenizer)
    bad = say(ASSISTANT, "", tool_calls=[call("f", {})])
    rows = [
        chat("a", "b"),
        chat("a", bad, row=7),
        chat("a", "<|im_end|>"),
        chat("a", "c"),
        chat("a", "<|im_start|>"),
    ]
    results = chat_format.encode(rows)
    assert [isinstance(result, Problem) for result in results] == [False, True, False, False, False]
    texts = [read_targets(tokenizer, result)[0] for result in results if isinstance(result, Encoded)]
    assert texts == ["b<|im_end|>", "<|im_end|><|im_end|>", "c<|im_end|>", "<|im_start|><|im_end|>"]
    assert results[1] == Problem(
        "the chat template leaves out the tool call of message 2 (assistant)",
        "chats.jsonl:7",
        None,
        "correct the row or the template, or set model.chat_template=chatml",
    )
    assert chat_format.encode([]) == []


ALPHABET = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "assistant",
    "user",
    "\n",
    " ",
    "a",
    "ss",
    "é",
    "🦙",
    "<|im",
    "_end|>",
]
TEXTS = st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join)
MESSAGES = st.lists(st.builds(say, st.sampled_from([USER, ASSISTANT, SYSTEM]), TEXTS), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(messages=MESSAGES, row=st.sampled_from([1, LATE_ROW]))
def test_any_chat_trains_exactly_its_answers(
    tokenizer: Any, chat_format: ChatFormat, messages: list[dict[str, Any]], row: int
) -> None:
    encoded = encode_one(chat_format, chat(*messages, row=row))

    answers = [message["content"] for message in messages if message["role"] == ASSISTANT]
    assert read_targets(tokenizer, encoded) == [f"{answer}<|im_end|>" for answer in answers]
    ids, end = encoded.input_ids, chat_format.end_of_turn_id
    assert (ids[encoded.loss_mask] == end).sum() == len(answers) == len(encoded.turn_ends)
    assert all(ids[stop - 1] == end and not encoded.loss_mask[stop] for stop in encoded.turn_ends)
    assert all(one < two for one, two in pairwise(encoded.turn_ends))
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert (ids == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == len(messages)


def test_a_tokenizer_with_another_template_for_tools() -> None:
    tokenizer = build_byte_tokenizer(None)
    tokenizer.chat_template = {"default": SIMPLE, "tool_use": read_template("qwen2_5")}
    answer = say(ASSISTANT, "", tool_calls=[call("add", {})])
    written = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>'
    assert train_text(tokenizer, chat("a", answer, tools=TOOLS)) == [written]
    tokenizer.chat_template = {"tool_use": SIMPLE}
    with pytest.raises(ConfigError, match="no chat template"):
        build_chat_format(tokenizer)


def test_padding_truncation_and_added_tokens_of_the_tokenizer_change_nothing(chat_format: ChatFormat) -> None:
    tokenizer = build_byte_tokenizer(SIMPLE)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    row = chat("a", " e ass")
    one, two = encode_one(build_chat_format(tokenizer), row), encode_one(chat_format, row)
    assert (one.input_ids.tolist(), one.loss_mask.tolist()) == (
        two.input_ids.tolist(),
        two.loss_mask.tolist(),
    )
