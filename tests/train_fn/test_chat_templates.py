"""The published chat formats: what exactly each trains, as text."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tokenizers import AddedToken
from toy_chat import (
    CHATML,
    build_byte_tokenizer,
    build_metaspace_tokenizer,
    call,
    chat,
    encode_one,
    read_targets,
    read_template,
    refuse_one,
)
from transformers import PreTrainedTokenizerFast

from sftray.train_fn.chat import build_chat_format
from sftray.train_fn.rows import Conversation

LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
GEMMA = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
MISTRAL = ("<s>", "</s>")
MISTRAL_V3 = (*MISTRAL, "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
# Phi-3's swallow the whitespace behind them.
PHI3 = ("<|endoftext|>", *(AddedToken(f"<|{t}|>", rstrip=True) for t in ("system", "user", "assistant", "end")))
PHI4 = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")

SYSTEM = {"role": "system", "content": "Be brief."}
WEATHER = [{"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": {}}}]


@dataclass(frozen=True)
class Family:
    """A template with the special tokens it needs."""

    template: str
    special: tuple[Any, ...]
    end: str
    named: dict[str, str] = field(default_factory=dict)

    def build(self) -> PreTrainedTokenizerFast:
        return build_byte_tokenizer(read_template(self.template), self.special, **self.named)


FAMILIES = [
    Family("smollm2", CHATML, "<|im_end|>", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    Family("llama3", LLAMA3, "<|eot_id|>", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    Family("llama3_1", LLAMA3, "<|eot_id|>", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    Family("qwen2_5", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    Family("qwen3", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    Family("gemma2", GEMMA, "<end_of_turn>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    Family("gemma3", GEMMA, "<end_of_turn>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    Family("mistral_v1", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("mistral_v3", MISTRAL_V3, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("phi3", PHI3, "<|end|>", {"eos_token": "<|endoftext|>"}),
    Family("phi4", PHI4, "<|im_end|>", {"eos_token": "<|im_end|>"}),
    Family("minimind_old", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("minimind_new", CHATML, "<|im_end|>", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    Family("deepseek_r1", DEEPSEEK, DEEPSEEK[3], {"bos_token": DEEPSEEK[0], "eos_token": DEEPSEEK[3]}),
    Family("vicuna", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("generation", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
]
BY_NAME = {family.template: family for family in FAMILIES}


def train(name: str, conversation: Conversation) -> list[str]:
    tokenizer = BY_NAME[name].build()
    return read_targets(tokenizer, encode_one(build_chat_format(tokenizer), conversation))


@pytest.mark.parametrize("row", [1, 101], ids=["checked", "unchecked"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_answers_and_ends_are_trained_and_the_text_is_the_templates(family: Family, row: int) -> None:
    tokenizer = family.build()
    chat_format = build_chat_format(tokenizer)
    conversation = chat("What is 1+1?", "It is 2.", "And 2+2?\n", "4 🦙", row=row)

    encoded = encode_one(chat_format, conversation)

    # What stands between the generation prompt and the text counts: Mistral's space, Qwen 3's empty thought.
    lead = " " if family.template in ("mistral_v3", "vicuna") else ""
    thought = "<think>\n\n</think>\n\n" if family.template == "qwen3" else ""
    assert read_targets(tokenizer, encoded) == [f"{lead}It is 2.{family.end}", f"{lead}{thought}4 🦙{family.end}"]
    assert tokenizer.convert_ids_to_tokens(chat_format.end_of_turn_id) == family.end
    assert [int(encoded.input_ids[end - 1]) for end in encoded.turn_ends] == [chat_format.end_of_turn_id] * 2
    text = tokenizer.apply_chat_template(conversation.messages, tokenize=False, date_string="26 Jul 2024")
    assert encoded.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoded.typed_markers == 0
    assert chat_format.checked["turns_checked"] == (2 if row == 1 else 0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_what_people_type_is_never_a_marker(family: Family) -> None:
    tokenizer = family.build()
    chat_format = build_chat_format(tokenizer)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    forged = prompt[prompt.index("x") :].strip()  # the end of a question and the header of an answer
    conversation = chat(f"a{forged}b{family.end}c", f"d{forged}e{family.end}f", "g", "h")

    encoded = encode_one(chat_format, conversation)

    lead = " " if family.template in ("mistral_v3", "vicuna") else ""
    thought = "<think>\n\n</think>\n\n" if family.template == "qwen3" else ""
    assert read_targets(tokenizer, encoded) == [
        f"{lead}d{forged}e{family.end}f{family.end}",
        f"{lead}{thought}h{family.end}",
    ]
    special = tokenizer.convert_tokens_to_ids([str(token) for token in family.special])
    clean = encode_one(chat_format, chat("a", "d", "g", "h"))
    assert [i for i in encoded.input_ids.tolist() if i in special] == [
        i for i in clean.input_ids.tolist() if i in special
    ]
    assert encoded.typed_markers == sum(
        message["content"].count(str(token)) for message in conversation.messages for token in family.special
    )


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen2_5", "qwen3", "phi3", "phi4", "minimind_old", "vicuna"])
def test_a_system_message_is_no_target(name: str) -> None:
    answer = train(name, chat(SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}))
    assert [text.removeprefix("<think>\n\n</think>\n\n").strip() for text in answer] == [f"yo{BY_NAME[name].end}"]


def test_gemma_3_folds_the_system_message_into_the_first_question() -> None:
    tokenizer = BY_NAME["gemma3"].build()
    conversation = chat(SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})
    encoded = encode_one(build_chat_format(tokenizer), conversation)
    assert read_targets(tokenizer, encoded) == ["yo<end_of_turn>"]
    assert "Be brief.\n\nhi" in tokenizer.backend_tokenizer.decode(encoded.input_ids.tolist())


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("gemma2", (SYSTEM, {"role": "user", "content": "hi"}), "TemplateError: System role not supported"),
        ("gemma2", ("a", {"role": "user", "content": "b"}), "TemplateError: Conversation roles must alternate"),
        ("mistral_v1", ({"role": "assistant", "content": "hi"},), "TemplateError: Conversation roles must alternate"),
        ("smollm2", ("a", {"role": "assistant", "content": None, "tool_calls": [call("f", {})]}), "UndefinedError"),
    ],
)
def test_what_a_template_refuses_is_a_problem_in_its_own_words(name: str, messages: Any, reason: str) -> None:
    problem = refuse_one(build_chat_format(BY_NAME[name].build()), chat(*messages))
    assert problem.what == "the chat template refuses this conversation"
    assert problem.why is not None and problem.why.startswith(reason)


def test_mistral_leaves_out_the_system_message_of_a_finished_chat_so_the_row_is_refused() -> None:
    conversation = chat(SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})
    problem = refuse_one(build_chat_format(BY_NAME["mistral_v3"].build()), conversation)
    assert problem.what == "the chat template leaves out the text of message 1 (system)"


TOOL_CHAT = (
    "How is it in Zürich?",
    {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"city": "Zürich", "days": 1})]},
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
    assert chat_format.checked == counts


@pytest.mark.parametrize("text", ["<think>\n2 and 2\n</think>\n\n4", "<think>2 and 2</think>4", "\n2 and 2\n</think>4"])
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


@pytest.mark.parametrize("name", ["minimind_old", "minimind_new"])
def test_minimind_without_a_header_of_its_own(name: str) -> None:
    end = BY_NAME[name].end
    answers = [{"role": "assistant", "content": text} for text in (" 你好\n", "再见", "")]
    # The first two stand behind one another, with no header between them.
    assert train(name, chat("嗨", *answers)) == [f" 你好\n{end}", f"再见{end}", end]


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("name", ["mistral_v1", "mistral_v3", "minimind_old"])
def test_sentencepiece_counts_the_space_that_comes_with_the_first_word(name: str, scheme: Any) -> None:
    family = BY_NAME[name]
    added = [token for token in family.special if token not in ("<s>", "</s>")]
    tokenizer = build_metaspace_tokenizer(read_template(name), scheme, added, **family.named)
    encoded = encode_one(build_chat_format(tokenizer), chat("ok 你", "ok 你", "ok</s>", "ok<s>ok"))
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    targets = [token for token, is_target in zip(tokens, encoded.loss_mask.tolist(), strict=True) if is_target]
    has_space = name == "mistral_v3" or (name == "mistral_v1" and scheme == "always" and False)
    assert targets.count("</s>") == 2 and targets[-1] == "</s>"
    assert "<s>" not in targets and encoded.typed_markers == 2
    assert "".join(targets).replace("▁", " ").strip().startswith("ok") and (not has_space or targets[0] == "▁ok")


def test_the_day_is_always_the_same() -> None:
    tokenizer = BY_NAME["llama3_1"].build()
    encoded = encode_one(build_chat_format(tokenizer), chat("hi", "yo"))
    assert "Today Date: 26 Jul 2024\n" in tokenizer.backend_tokenizer.decode(encoded.input_ids.tolist())
