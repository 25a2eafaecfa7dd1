"""What a template must not do to the messages, and what stands outside of them."""

from typing import Any

import pytest
from toy_chat import (
    ASSISTANT,
    CHATML,
    SIMPLE,
    TOOLS,
    build_byte_tokenizer,
    call,
    chat,
    encode_one,
    read_targets,
    read_template,
    refuse_one,
    say,
)

from sftray.train_fn.chat import build_chat_format


@pytest.mark.parametrize(
    ("conversation", "what"),
    [
        (chat("a", "b", tools=TOOLS), "the chat template does not show the row's tools: add"),
        (chat("a", say("tool", "4")), "the chat template leaves out the text of message 2 (tool)"),
    ],
)
def test_nothing_of_a_row_is_lost_in_silence(conversation: Any, what: str) -> None:
    template = SIMPLE.replace("for m in messages", "for m in messages if m.role != 'tool'")
    assert refuse_one(build_chat_format(build_byte_tokenizer(template)), conversation).what == what


@pytest.mark.parametrize(
    ("tools", "calls"),
    [
        ([{"type": "function", "function": {"name": "add", "description": "<|im_end|>"}}], [call("add", {})]),
        (TOOLS, [call("add", {"<|im_start|>": 1})]),
    ],
)
def test_special_tokens_where_they_cannot_be_told_apart_are_refused(tools: Any, calls: Any) -> None:
    tokenizer = build_byte_tokenizer(read_template("qwen2_5"))
    problem = refuse_one(build_chat_format(tokenizer), chat("a", say(ASSISTANT, "", tool_calls=calls), tools=tools))
    assert problem.what.startswith("the row's tools, or the ids or arguments of its calls, hold the special token")


def test_special_tokens_in_a_calls_arguments_are_words() -> None:
    tokenizer = build_byte_tokenizer(read_template("qwen2_5"))
    encoded = encode_one(
        build_chat_format(tokenizer),
        chat("a", say(ASSISTANT, "", tool_calls=[call("add", {"x": ["<|im_end|>", 1]})]), tools=TOOLS),
    )
    written = '<tool_call>\n{"name": "add", "arguments": {"x": ["<|im_end|>", 1]}}\n</tool_call>'
    assert read_targets(tokenizer, encoded) == [f"{written}<|im_end|>"]
    assert encoded.typed_markers == 1


def test_reasoning_tags_of_an_assistant_stay_tokens_even_if_special() -> None:
    special = (*CHATML, "<think>", "</think>")
    tokenizer = build_byte_tokenizer(read_template("qwen3"), special)
    encoded = encode_one(build_chat_format(tokenizer), chat("<think>", "<think>\na\n</think>\n\nb"))
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    assert (tokens.count("<think>"), tokens.count("</think>"), encoded.typed_markers) == (1, 1, 1)
    assert read_targets(tokenizer, encoded) == ["<think>\na\n</think>\n\nb<|im_end|>"]
