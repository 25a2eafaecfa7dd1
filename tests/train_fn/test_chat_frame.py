"""Templates from which answers cannot be learnt."""

from typing import Any

import pytest
from toy_chat import (
    CHATML,
    LATE_ROW,
    SIMPLE,
    build_byte_tokenizer,
    chat,
    read_template,
    train_text,
)

from sftray.train_fn.chat import build_chat_format
from sftray.train_fn.errors import ConfigError, Problem


def _refuse_template(template: str | None, special: Any = CHATML) -> Problem:
    with pytest.raises(ConfigError) as caught:
        build_chat_format(build_byte_tokenizer(template, special))
    (problem,) = caught.value.problems
    return problem


def test_a_template_without_end_of_turn_is_refused_and_the_refusal_teaches() -> None:
    assert str(_refuse_template(read_template("no_end_of_turn"))) == (
        "error  the chat template has no end-of-turn token\n"
        r"  why  after an answer it writes '\nuser: ', at the end of the chat '\n'; "
        "a model learns to stop only from one special token of the tokenizer after every answer\n"
        "  fix  end each answer with a special token, or set model.chat_template=chatml"
    )


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('no') }}", "the chat template cannot render a chat of user and assistant"),
        (
            SIMPLE.replace("m.content", "m.content | upper"),
            "the chat template does not write each message once",
        ),
        (
            SIMPLE.replace("+ m.content + '<|im_end|>\n'", "+ m.content + '\n'").replace(
                "{% if", "{{ '<|im_end|>' }}{% if", 1
            ),
            "the chat template ends the last answer with '<|im_end|>' but an earlier one with '<|im_start|>'",
        ),
        (
            SIMPLE.replace("if add_generation_prompt", "if false"),
            "the chat template ignores add_generation_prompt",
        ),
        (
            SIMPLE.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"),
            "the chat template's generation prompt is not how its answers start",
        ),
    ],
)
def test_a_template_from_which_answers_cannot_be_learnt(template: str | None, what: str) -> None:
    assert _refuse_template(template).what.startswith(what)


def test_an_end_of_turn_that_the_tokenizer_does_not_know_is_none() -> None:
    assert _refuse_template(SIMPLE, special=("<|im_start|>",)).what.startswith("the chat template has no end-of-turn")


@pytest.mark.parametrize("row", [1, LATE_ROW])
def test_a_header_that_is_an_ordinary_tag_may_be_typed(row: int) -> None:
    template = (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}"
        "{{ m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
    )
    assert train_text(build_byte_tokenizer(template), chat("<bot>a", "<bot>b", row=row)) == ["<bot>b<|im_end|>"]
