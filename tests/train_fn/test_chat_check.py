"""Where the two derivations disagree, or none can tell, a row is refused."""

from typing import Any

import pytest
from toy_chat import (
    ASSISTANT,
    LATE_ROW,
    SIMPLE,
    SYSTEM,
    build_byte_tokenizer,
    chat,
    encode_one,
    read_targets,
    read_template,
    refuse_one,
    say,
)

from sftray.train_fn.chat import Encoded, build_chat_format


@pytest.mark.parametrize("row", [1, LATE_ROW])
@pytest.mark.parametrize(
    ("template", "what"),
    [
        # Answers first, then questions.
        (
            "{% if messages | length > 4 %}{% for role in ('assistant', 'user') %}"
            "{% for m in messages if m.role == role %}"
            "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% endfor %}{% else %}"
            + SIMPLE
            + "{% endif %}",
            "the chat template writes the messages in another order",
        ),
        # Each answer again in a summary.
        (
            SIMPLE + "{% if messages | length > 4 %}{% for m in messages if m.role == 'assistant' %}"
            "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% endif %}",
            "the chat template writes message 2 more than once",
        ),
        # Long chats lose their first answer.
        (
            SIMPLE.replace("%}{{ '<", "%}{{ '' if loop.index == 2 and loop.length > 4 else '<", 1),
            "the chat template leaves out the text of message 2 (assistant)",
        ),
        # Some answers get another header, which no prompt has.
        (
            SIMPLE.replace("m.role + '\n'", "('bot' if loop.index == 2 and loop.length > 4 else m.role) + '\n'"),
            "it cannot be told where the answer in message 2 starts and ends",
        ),
        # Some answers get no end-of-turn token.
        (
            SIMPLE.replace(
                "m.content + '<|im_end|>\n'",
                "m.content + ('' if loop.index == 2 and loop.length > 4 else '<|im_end|>') + '\n'",
            ),
            "it cannot be told where the answer in message 2 starts and ends",
        ),
    ],
)
def test_a_template_that_does_what_nobody_can_have_meant(template: str, what: str, row: int) -> None:
    problem = refuse_one(build_chat_format(build_byte_tokenizer(template)), chat("q", "x", "r", "y", "s", row=row))
    assert problem.what == what


def test_answers_that_overlap_are_refused() -> None:
    # The prompt of a long chat has its first question only, so an empty answer seems to start far too early.
    forget = "{% set messages = messages[:1] if add_generation_prompt and messages | length > 4 else messages %}"
    problem = refuse_one(build_chat_format(build_byte_tokenizer(forget + SIMPLE)), chat("q", "x", "r", "y", "s", ""))
    assert problem.what == "it cannot be told where the answer in message 6 starts and ends"


def test_two_readings_that_disagree_are_shown() -> None:
    # A second header in short chats: by the marks the answer starts behind it, by the prompt behind the first.
    again = "('<|im_start|>assistant\n' if loop.index == 2 and loop.length == 2 else '')"
    template = SIMPLE.replace("+ m.content", f"+ {again} + m.content")
    problem = refuse_one(build_chat_format(build_byte_tokenizer(template)), chat("q", "x", row=1))
    assert str(problem) == (
        "error  chats.jsonl:1: two readings of the answer in message 2 disagree\n"
        r"  why  by its place in the chat it is 'x<|im_end|>'; otherwise '<|im_start|>assistant\nx<|im_end|>'"
        "\n"
        "  fix  correct the row or the template, or set model.chat_template=chatml"
    )


def test_text_that_a_template_rewrites_is_found_by_the_prompt() -> None:
    shouting = build_byte_tokenizer(
        SIMPLE.replace("+ m.content", "+ m.content | replace('so', 'SO') | truncate(9, true, '…', 0)")
    )
    chat_format = build_chat_format(shouting)
    encoded = encode_one(chat_format, chat("so", "so it goes, so it goes", "a", "so"))
    assert read_targets(shouting, encoded) == ["SO it go…<|im_end|>", "SO<|im_end|>"]
    assert chat_format.checked["turns_checked"] == 2
    problem = refuse_one(chat_format, chat("a", "<|im_start|> it goes, so it goes"))
    assert problem.what.startswith("a message spells out a special token")


@pytest.mark.parametrize(
    ("before", "after", "is_accepted"),
    [
        ("{% generation %}", "{% endgeneration %}", True),
        ("", "", True),
        ("{{ 'b' }}{% generation %}", "{% endgeneration %}", False),
        ("{% generation %}", "{% endgeneration %}{{ 'b' }}", False),
    ],
)
def test_generation_blocks_are_a_third_opinion(before: str, after: str, is_accepted: bool) -> None:
    """They may leave out the end-of-turn token, but must start where the answer does."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        f"{before}{{{{ m.content }}}}{after}{{% else %}}{{{{ m.content }}}}{{% endif %}}{{{{ '<|im_end|>\n' }}}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = build_byte_tokenizer(template)
    (result,) = build_chat_format(tokenizer).encode([chat("a", "c", row=1)])
    assert isinstance(result, Encoded) is is_accepted


def test_generation_blocks_may_hold_the_header_but_no_question() -> None:
    answers = SIMPLE.replace("{{ '<|im_start|>' + m", "{% generation %}{{ '<|im_start|>' + m", 1)
    template = answers.replace("<|im_end|>\n' }}", "<|im_end|>\n' }}{% endgeneration %}", 1)
    tokenizer = build_byte_tokenizer(template)
    problem = refuse_one(build_chat_format(tokenizer), chat("a", "b", row=1))
    assert "block '<|im_start|>user\\na<|im_end|>\\n' is no answer of an assistant" in problem.what
    (result,) = build_chat_format(tokenizer).encode([chat(say(ASSISTANT, "b"), row=1)])
    assert isinstance(result, Encoded)


def test_checks_depend_on_the_row_alone() -> None:
    tokenizer = build_byte_tokenizer(SIMPLE)
    rows = [chat("a", "b", row=row) for row in (1, 16, 17, 99, 100, 101)]
    whole, parts = build_chat_format(tokenizer), build_chat_format(tokenizer)
    whole.encode(rows)
    for row in reversed(rows):
        parts.encode([row])
    assert (
        whole.take_counts() == parts.take_counts() == {"rows_checked": 3, "turns_checked": 3, "turns_inconclusive": 0}
    )


def test_a_long_row_is_checked_at_both_ends_only() -> None:
    chat_format = build_chat_format(build_byte_tokenizer(SIMPLE))
    encode_one(chat_format, chat(*["a "] * 100))
    assert chat_format.take_counts()["turns_checked"] == 8


@pytest.mark.parametrize(
    ("messages", "checked"),
    [
        (["a", "b", "c", "d"], 0),
        (["a", "b ", "c", "d"], 1),
        (["a", "", "c", "d"], 1),
        (["a", "<think>b</think>", "c", "d"], 1),
        (["a", say(ASSISTANT, "b", reasoning_content="r"), "c", "d"], 1),
        (["a", "b", "<|im_end|>", "d"], 2),
        (["a", "b", say(SYSTEM, "s"), "d"], 2),
        (["a", "b", "c", say("user", "d"), say(ASSISTANT, "e")], 2),
        (["a", say(ASSISTANT, "b"), say("tool", "1"), say("tool", "2"), say(ASSISTANT, "c")], 0),
        (["a", "b", "\ufdd0", "d"], 2),
    ],
)
def test_what_is_unusual_is_checked_in_any_row(messages: Any, checked: int) -> None:
    template = SIMPLE.replace("+ m.content", "+ (m.reasoning_content or '') + m.content") + "{# <think> </think> #}"
    chat_format = build_chat_format(build_byte_tokenizer(template))
    encode_one(chat_format, chat(*messages))
    assert chat_format.checked["turns_checked"] == checked
    assert chat_format.checked["rows_checked"] == (checked > 0)


def test_a_header_of_ordinary_text_that_somebody_types_is_checked() -> None:
    chat_format = build_chat_format(
        build_byte_tokenizer(read_template("vicuna"), ["<s>", "</s>"], eos_token="</s>", bos_token="<s>")
    )
    encode_one(chat_format, chat("ASSISTANT: a", "b"))
    assert chat_format.checked["turns_checked"] == 1
