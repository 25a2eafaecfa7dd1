"""Tools, calls and reasoning in the published chat formats."""

import pytest
from chat_families import BY_NAME, DEEPSEEK, WEATHER, train
from toy_chat import build_byte_tokenizer, call, chat, encode_one, read_targets, read_template

from sftray.train_fn.chat import build_chat_format

TOOL_CHAT = (
    "How is it in Zürich?",
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("get_weather", {"city": "Zürich", "days": 1})],
    },
    {"role": "tool", "content": '{"sun": "yes"}\n', "name": "get_weather", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Sunny."},
)
CALLED = '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 1}}'


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("llama3_1", CALLED.replace("arguments", "parameters"), "Sunny."),
        ("qwen2_5", f"<tool_call>\n{CALLED}\n</tool_call>", "Sunny."),
        ("qwen3", f"<tool_call>\n{CALLED}\n</tool_call>", "<think>\n\n</think>\n\nSunny."),
        ("mistral_v3", f'[TOOL_CALLS] [{CALLED[:-1]}, "id": "abcdefghi"}}]', " Sunny."),
    ],
)
def test_calls_are_trained_and_results_and_tools_are_not(name: str, first: str, last: str) -> None:
    end = BY_NAME[name].end
    assert train(name, chat(*TOOL_CHAT, tools=WEATHER)) == [first + end, last + end]


def test_mistrals_calls_before_another_question_which_moves_the_tools() -> None:
    end = BY_NAME["mistral_v3"].end
    called = f'[TOOL_CALLS] [{CALLED[:-1]}, "id": "abcdefghi"}}]{end}'
    expected = [called, f" Sunny.{end}", f" Yes.{end}"]
    later = ({"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."})
    assert train("mistral_v3", chat(*TOOL_CHAT, *later, tools=WEATHER)) == expected


def test_a_call_may_end_with_another_token_than_text() -> None:
    source = read_template("llama3_1").replace("}<|eot_id|>", "}<|eom_id|>")
    tokenizer = build_byte_tokenizer(source, BY_NAME["llama3_1"].special, **BY_NAME["llama3_1"].named)
    chat_format = build_chat_format(tokenizer)
    encoded = encode_one(chat_format, chat(*TOOL_CHAT, tools=WEATHER))
    called = CALLED.replace("arguments", "parameters")
    assert read_targets(tokenizer, encoded) == [f"{called}<|eom_id|>", "Sunny.<|eot_id|>"]
    assert tokenizer.convert_ids_to_tokens(chat_format.end_of_turn_id) == "<|eot_id|>"


def test_several_calls_and_text_beside_them() -> None:
    calls = [call("get_weather", {"city": "</tool_call>"}), call("get_weather", {})]
    answer = {"role": "assistant", "content": "I look. ", "tool_calls": calls}
    assert train("qwen2_5", chat("?", answer, tools=WEATHER)) == [
        'I look. \n<tool_call>\n{"name": "get_weather", "arguments": {"city": "</tool_call>"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call><|im_end|>'
    ]


def test_mistral_writes_only_the_calls_and_the_text_beside_them_is_counted_as_left_out() -> None:
    chat_format = build_chat_format(BY_NAME["mistral_v3"].build())
    answer = {"role": "assistant", "content": "I look.", "tool_calls": [call("get_weather", {})]}
    encode_one(chat_format, chat("?", answer, tools=WEATHER))
    assert chat_format.take_counts()["text_left_out"] == 1
    assert not chat_format.checked


THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}


def test_qwen_3_writes_only_the_last_reasoning() -> None:
    tokenizer = BY_NAME["qwen3"].build()
    chat_format = build_chat_format(tokenizer)
    encoded = encode_one(chat_format, chat("2+2?", THOUGHT, "again", THOUGHT))
    assert read_targets(tokenizer, encoded) == ["4<|im_end|>", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"]
    counts = {"rows_checked": 1, "turns_checked": 2, "turns_inconclusive": 1, "reasoning_left_out": 1}
    assert chat_format.take_counts() == counts
    encode_one(chat_format, chat("2+2?", "<think>2 and 2</think>4", "again", "4"))
    assert chat_format.take_counts()["reasoning_left_out"] == 1


@pytest.mark.parametrize(
    "text", ["<think>\n2 and 2\n</think>\n\n4", "<think>2 and 2</think>4", "\n2 and 2\n</think>4"]
)
def test_qwen_3_takes_reasoning_out_of_the_text(text: str) -> None:
    expected = ["4<|im_end|>", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"]
    assert train("qwen3", chat("2+2?", text, "again", text)) == expected


def test_qwen_3_tells_a_tool_result_in_a_users_message_from_a_question() -> None:
    result = "<tool_response>\n4\n</tool_response>"
    expected = ["<think>\n2 and 2\n</think>\n\n4<|im_end|>", "<think>\n\n</think>\n\nok<|im_end|>"]
    assert train("qwen3", chat("2+2?", THOUGHT, result, "ok")) == expected


def test_qwen_3_an_empty_answer_in_the_past() -> None:
    assert train("qwen3", chat("a", "", "b", "c")) == ["<|im_end|>", "<think>\n\n</think>\n\nc<|im_end|>"]


def test_a_prompt_that_opens_a_thought_is_a_prompt_where_the_text_has_it() -> None:
    """DeepSeek R1's prompt ends with <think>, its answers lose their reasoning: they start behind the header."""
    assert train("deepseek_r1", chat("a", "<think>\nhm\n</think>b")) == ["b" + DEEPSEEK[3]]
    source = read_template("deepseek_r1").replace("content.split('</think>')[-1]", "content")
    tokenizer = build_byte_tokenizer(source, DEEPSEEK, **BY_NAME["deepseek_r1"].named)
    encoded = encode_one(build_chat_format(tokenizer), chat("a", "<think>\nhm\n</think>b", "c", "d"))
    assert read_targets(tokenizer, encoded) == ["hm\n</think>b" + DEEPSEEK[3], "d" + DEEPSEEK[3]]
