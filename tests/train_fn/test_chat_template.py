"""Which template a run uses, and what is said of a bad one."""

from pathlib import Path
from typing import Any

import pytest
from toy_chat import TOOLS, build_byte_tokenizer, call, chat, read_template, train_text

from sftray.train_fn.chat_render import Template, pin_date
from sftray.train_fn.chat_template import ensure_template
from sftray.train_fn.errors import ConfigError, Problem


def _refuse(tokenizer: Any, chat_template: str | None) -> Problem:
    with pytest.raises(ConfigError) as caught:
        ensure_template(tokenizer, chat_template)
    (problem,) = caught.value.problems
    return problem


def test_none_keeps_the_tokenizers_own() -> None:
    tokenizer = build_byte_tokenizer(read_template("smollm2"))
    assert ensure_template(tokenizer, None) == []
    assert tokenizer.chat_template == read_template("smollm2")


def test_none_and_no_own_is_an_error_that_names_the_shipped_one() -> None:
    problem = _refuse(build_byte_tokenizer(None), None)
    assert problem.what == "the tokenizer has no chat template"
    assert problem.fix == "model.chat_template=chatml, which ships, or model.chat_template=FILE.jinja"


def test_the_shipped_one_adds_the_tokens_that_are_missing() -> None:
    tokenizer = build_byte_tokenizer(None, ["<|endoftext|>", "<|im_end|>"])
    size = len(tokenizer)
    assert ensure_template(tokenizer, "chatml") == ["<|im_start|>"]
    assert len(tokenizer) == size + 1
    assert ensure_template(tokenizer, "chatml") == []
    assert train_text(tokenizer, chat("a", "b")) == ["b<|im_end|>"]


@pytest.mark.parametrize("system", [True, False])
def test_minimind_s_first_format_is_what_its_own_template_renders(system: bool) -> None:
    messages = [{"role": "system", "content": "简短"}] if system else []
    for text in ("嗨", "a<b>"):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]
    texts = []
    for name in (None, "minimind"):
        tokenizer = build_byte_tokenizer(read_template("minimind_old"), ["<s>", "</s>"])
        assert ensure_template(tokenizer, name) == []
        texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
    assert texts[0] == texts[1] and texts[0].count("<s>") == 5
    assert train_text(tokenizer, chat("a", "b", "c", "d")) == ["b</s>", "d</s>"]


def test_a_tokenizer_without_the_tokens_of_minimind_s_format_gets_them() -> None:
    tokenizer = build_byte_tokenizer(None, ["<|endoftext|>"])
    assert ensure_template(tokenizer, "minimind") == ["<s>", "</s>"]
    assert train_text(tokenizer, chat("a<s>", "b")) == ["b</s>"]


def test_an_ordinary_added_token_is_made_special() -> None:
    tokenizer = build_byte_tokenizer(None, ["<|endoftext|>"])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    assert ensure_template(tokenizer, "chatml") == []
    assert train_text(tokenizer, chat("a<|im_end|>", "b")) == ["b<|im_end|>"]


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(read_template("phi4"), encoding="utf-8")
    tokenizer = build_byte_tokenizer(None)
    assert ensure_template(tokenizer, str(path)) == []
    assert tokenizer.chat_template == read_template("phi4")


@pytest.mark.parametrize(
    ("name", "near"), [("chat_ml", "chatml"), ("mime.jinja", "mine.jinja"), ("/nowhere/x.jinja", None)]
)
def test_a_file_or_name_that_is_not_there(
    name: str, near: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").touch()
    problem = _refuse(build_byte_tokenizer(None), name)
    hint = f" Did you mean {near}?" if near else ""
    assert problem.what == f"model.chat_template: {name} is neither a file nor a shipped template.{hint}"
    assert problem.fix == f"model.chat_template={near or 'chatml'}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{% endif %}", "Encountered unknown tag 'endif'."),
        ("{{ m.content | nonsense }}", "No filter named 'nonsense'."),
        ("{{ m.content ", "unexpected"),
    ],
)
def test_a_malformed_template_is_named_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text(f"{{# one #}}\n{{# two #}}\n{line}\n", encoding="utf-8")
    problem = _refuse(build_byte_tokenizer(None), str(path))
    assert problem.where == f"{path}:3"
    assert message in problem.what
    own = _refuse(build_byte_tokenizer(path.read_text(encoding="utf-8")), None)
    assert own.where == "the tokenizer's chat template:3"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_bytes(b"\xff\xfe")
    assert _refuse(build_byte_tokenizer(None), str(path)).where == str(path)


def test_the_shipped_template_writes_tools_calls_results_and_reasoning() -> None:
    tokenizer = build_byte_tokenizer(None)
    ensure_template(tokenizer, "chatml")
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "T", "tool_calls": [call("add", {"a": "ü"}), call("add", "raw")]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "A", "reasoning_content": "R"},
    ]
    text = Template(tokenizer, tokenizer.chat_template).render(messages, TOOLS, prompt=True)
    calls = (
        '\n<tool_call>\n{"name": "add", "arguments": {"a": "ü"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "add", "arguments": raw}\n</tool_call>'
    )
    assert text == (
        "<|im_start|>system\nS\n\nYou can call these functions:\n<tools>\n"
        '{"type": "function", "function": {"name": "add"}}\n</tools>\n\n'
        "To call one, write its name and arguments as JSON:\n"
        '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nQ<|im_end|>\n"
        f"<|im_start|>assistant\nT{calls}<|im_end|>\n"
        "<|im_start|>tool\n3<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nR\n</think>\n\nA<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert train_text(tokenizer, chat(*messages, tools=TOOLS)) == [
        f"T{calls}<|im_end|>",
        "<think>\nR\n</think>\n\nA<|im_end|>",
    ]
    assert train_text(tokenizer, chat(*messages[1:], tools=TOOLS))[0] == f"T{calls}<|im_end|>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"),
        (
            '{% macro day() %}{{ strftime_now( "%d %b %Y" ) }}{% endmacro %}'
            "{% for m in messages %}{{ day() }}{% endfor %}",
            "26 Jul 2024",
        ),
        ("{% if strftime_now is defined %}{% set d = strftime_now('%A') %}{% endif %}\n{{ d }}", "Friday"),
        ("plain", "plain"),
    ],
)
def test_the_clock_stands_still(source: str, text: str) -> None:
    template = Template(build_byte_tokenizer(None), source)
    assert template.render([{"role": "user", "content": ""}], None) == text
    assert pin_date(source).count("\n") == source.count("\n")


def test_a_key_that_is_none_is_not_there() -> None:
    template = Template(build_byte_tokenizer(None), "{% for m in messages %}{{ m.content is defined }}{% endfor %}")
    message = {"role": "assistant", "content": None, "tool_calls": []}
    assert template.render([message], None) == "False"
    assert message["content"] is None
