"""The published chat formats: what exactly each trains, as text."""

from typing import Any

import pytest
from chat_families import BY_NAME, FAMILIES, PHI4, SYSTEM, Family, train
from toy_chat import (
    build_metaspace_tokenizer,
    call,
    chat,
    encode_one,
    read_targets,
    read_template,
    refuse_one,
)

from sftray.train_fn.chat import build_chat_format


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
    assert read_targets(tokenizer, encoded) == [
        f"{lead}It is 2.{family.end}",
        f"{lead}{thought}4 🦙{family.end}",
    ]
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
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
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
        (
            "gemma2",
            ("a", {"role": "user", "content": "b"}),
            "TemplateError: Conversation roles must alternate",
        ),
        (
            "mistral_v1",
            ({"role": "assistant", "content": "hi"},),
            "TemplateError: Conversation roles must alternate",
        ),
        (
            "smollm2",
            ("a", {"role": "assistant", "content": None, "tool_calls": [call("f", {})]}),
            "UndefinedError",
        ),
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


@pytest.mark.parametrize("name", ["minimind_old", "minimind_new"])
def test_minimind_without_a_header_of_its_own(name: str) -> None:
    end = BY_NAME[name].end
    answers = [{"role": "assistant", "content": text} for text in (" 你好\n", "再见", "\n", " 好", "")]
    # They stand behind one another, with no header between them.
    assert train(name, chat("嗨", *answers)) == [f" 你好\n{end}", f"再见{end}", f"\n{end}", f" 好{end}", end]


def test_whitespace_that_a_special_token_of_the_header_swallows_is_no_target() -> None:
    assert train("phi3", chat("a", "\n b", "c", "d ")) == ["b<|end|>", "d <|end|>"]


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize(
    ("name", "first_answer", "last_answer"),
    [
        ("mistral_v1", "o|k|▁|<0xE4>|<0xBD>|<0xA0>|</s>", "<0xE4>|<0xBD>|<0xA0>|<s|>|</s>"),
        ("mistral_v3", "▁ok|▁|<0xE4>|<0xBD>|<0xA0>|</s>", "▁|<0xE4>|<0xBD>|<0xA0>|<s|>|</s>"),
        ("minimind_old", "o|k|▁|<0xE4>|<0xBD>|<0xA0>|</s>", "<0xE4>|<0xBD>|<0xA0>|<s|>|</s>"),
    ],
)
def test_sentencepiece_tokens(name: str, scheme: Any, first_answer: str, last_answer: str) -> None:
    """The space that a word brings along is its answer's, and a typed marker is made of ordinary pieces."""
    family = BY_NAME[name]
    added = [token for token in family.special if token not in ("<s>", "</s>")]
    tokenizer = build_metaspace_tokenizer(read_template(name), scheme, added, **family.named)
    encoded = encode_one(build_chat_format(tokenizer), chat("ok", "ok 你", "ok", "你<s>"))
    targets = tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.loss_mask].tolist())
    assert targets == [*first_answer.split("|"), *last_answer.split("|")]
    assert encoded.typed_markers == 1


@pytest.mark.parametrize(("scheme", "prefix"), [("first", []), ("always", ["▁"])])
def test_a_prefix_that_the_tokenizer_puts_before_an_answer_is_generated_too(scheme: Any, prefix: list[str]) -> None:
    tokenizer = build_metaspace_tokenizer(read_template("phi4"), scheme, PHI4, eos_token="<|im_end|>")
    encoded = encode_one(build_chat_format(tokenizer), chat("x", "你", "x", "ok"))
    targets = tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.loss_mask].tolist())
    last = ["▁ok"] if prefix else ["o", "k"]
    assert targets == [*prefix, "<0xE4>", "<0xBD>", "<0xA0>", "<|im_end|>", *last, "<|im_end|>"]


def test_the_day_is_always_the_same() -> None:
    tokenizer = BY_NAME["llama3_1"].build()
    encoded = encode_one(build_chat_format(tokenizer), chat("hi", "yo"))
    assert "Today Date: 26 Jul 2024\n" in tokenizer.backend_tokenizer.decode(encoded.input_ids.tolist())
