"""What ships for the quickstart: right rows, held-out ones apart, digits as tokens, presets that hold."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from sftray.train_fn import config as config_module
from sftray.train_fn.config import RunConfig
from sftray.train_fn.model import count_parameters_of, load_model_config
from sftray.train_fn.schedule import compute_learning_rate
from sftray.train_fn.tokenizer import load_tokenizer

ASSETS = Path(config_module.__file__).parent / "assets"
QUICKSTART = ASSETS / "quickstart"
PRESETS = ASSETS.parents[1] / "platform" / "presets"
FILES = [
    "train.jsonl",
    "validation.jsonl",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/chat_template.jinja",
]
SUM_ANSWER = re.compile(
    r"(\d\d) \+ (\d\d)(?:: |：)(\d) \+ (\d) = (\d+)(?:, |，)(\d) \+ (\d)( \+ 1)? = (\d+)"
    r"(?:, so the answer is |，所以答案是 )(\d+)[.。]"
)

Messages = list[dict[str, str]]


def read_rows(name: str) -> list[Messages]:
    lines = (QUICKSTART / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


TRAIN, VALIDATION = read_rows("train.jsonl"), read_rows("validation.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(QUICKSTART / "tokenizer")


def list_turns(rows: list[Messages]) -> list[tuple[str, str]]:
    """Each user's message with its answer."""
    return [
        (user["content"], answer["content"])
        for messages in rows
        for user, answer in zip(messages[::2], messages[1::2], strict=True)
    ]


def is_sum(prompt: str) -> bool:
    return len(re.findall(r"\d\d", prompt)) == 2


def list_pairs(rows: list[Messages]) -> list[frozenset[int]]:
    """Both numbers of every sum, in no order."""
    asked = [prompt for prompt, _ in list_turns(rows) if is_sum(prompt)]
    return [frozenset(map(int, re.findall(r"\d\d", prompt))) for prompt in asked]


def load_preset(name: str) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8")))


def test_the_script_writes_the_shipped_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ASSETS / "make_quickstart.py", tmp_path], check=True)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == sorted(FILES)
    assert [name for name in FILES if (tmp_path / name).read_bytes() != (QUICKSTART / name).read_bytes()] == []


def test_what_ships_is_small() -> None:
    assert sum((QUICKSTART / name).stat().st_size for name in FILES) <= 1_000_000


def test_amounts() -> None:
    sums = [prompt for prompt, _ in list_turns(TRAIN) if is_sum(prompt)]
    others = [prompt for prompt, _ in list_turns(TRAIN) if not is_sum(prompt)]
    two_turns = [row for row in TRAIN if len(row) == 4]
    assert (len(TRAIN), len(sums), len(others), len(two_turns)) == (4276, 4000, 476, 200)
    assert len(VALIDATION) == 200
    assert sum(len(row) == 2 and is_sum(row[0]["content"]) for row in VALIDATION) == 140


def test_roles_alternate() -> None:
    for row in TRAIN + VALIDATION:
        assert [message["role"] for message in row] in (["user", "assistant"], ["user", "assistant"] * 2)


@pytest.mark.parametrize("rows", [TRAIN, VALIDATION], ids=["train", "validation"])
def test_every_sum_is_right(rows: list[Messages]) -> None:
    for prompt, answer in list_turns(rows):
        found = SUM_ANSWER.fullmatch(answer)
        assert (found is not None) == is_sum(prompt), (prompt, answer)
        if found is None:
            continue
        a, b, *digits, carry, tens, total = found.groups()
        assert [a, b] == re.findall(r"\d\d", prompt)
        ones = int(a[1]) + int(b[1])
        assert digits == [a[1], b[1], str(ones), a[0], b[0]]
        assert (carry is not None) == (ones >= 10)
        assert int(tens) == int(a[0]) + int(b[0]) + ones // 10
        assert int(total) == int(a) + int(b) == 10 * int(tens) + ones % 10


def test_held_out_sums_are_in_neither_order_in_train() -> None:
    held_out = list_pairs(VALIDATION)
    assert len(held_out) == len(set(held_out)) == 164
    assert set(held_out).isdisjoint(list_pairs(TRAIN))


def test_prompts_are_apart_and_never_repeated() -> None:
    train = [prompt for prompt, _ in list_turns(TRAIN)]
    validation = [prompt for prompt, _ in list_turns(VALIDATION)]
    assert len(train) == len(set(train))
    assert len(validation) == len(set(validation))
    assert set(train).isdisjoint(validation)


def test_held_out_refusals_and_facts_have_answers_that_are_taught() -> None:
    taught = {answer for _, answer in list_turns(TRAIN)}
    asked = [answer for prompt, answer in list_turns(VALIDATION) if not is_sum(prompt)]
    assert len(asked) == 52
    assert taught.issuperset(asked)


def test_validation_begins_with_both_kinds_in_both_languages() -> None:
    """The first rows are those that are shown before and after a training."""
    kinds = [(is_sum(row[0]["content"]), row[0]["content"].isascii()) for row in VALIDATION[:4]]
    assert kinds == [(True, True), (False, True), (True, False), (False, False)]
    assert all(len(row) == 2 and is_sum(row[0]["content"]) for row in VALIDATION[4:142])


@pytest.mark.slow
def test_every_row_renders_as_chatml_and_back(tokenizer: Any) -> None:
    for row in TRAIN + VALIDATION:
        expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row)
        text = tokenizer.apply_chat_template(row, tokenize=False)
        assert text == expected
        prompt = tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(prompt) and text.removeprefix(prompt) == row[-1]["content"] + "<|im_end|>\n"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_rows_fit_the_preset(tokenizer: Any) -> None:
    rendered = [tokenizer.apply_chat_template(row, tokenize=False) for row in TRAIN + VALIDATION]
    longest = max(len(ids) for ids in tokenizer(rendered)["input_ids"])
    assert longest == 120 <= load_preset("quickstart").data.max_seq_len


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 2, None)
    assert len(tokenizer) == 768


@pytest.mark.parametrize("text", ["4738", "47 + 38", "47+38", "加4738等于", "a47b38", "4\n7 3\t8"])
def test_digits_are_single_tokens(tokenizer: Any, text: str) -> None:
    tokens = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert [token for token in tokens if re.search(r"\d", token)] == ["4", "7", "3", "8"]


def test_no_token_of_the_vocabulary_holds_a_digit_and_more(tokenizer: Any) -> None:
    assert sorted(token for token in tokenizer.get_vocab() if re.search(r"\d", token)) == list("0123456789")


@pytest.mark.parametrize("text", ["", " ", "\n\n a", "héllo wörld", "你好，世界 🌍", "x  =  1\r\n", "\0\x7f"])
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_message_never_shares_a_token_with_its_frame(tokenizer: Any) -> None:
    for content in ("\nhello", " hello", "7", "hello\n", " \n"):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_offsets_mapping=True)
        starts = [start for start, stop in ids["offset_mapping"] if stop > start]
        frame = len("<|im_start|>user\n"), len("<|im_start|>user\n" + content)
        assert set(frame) <= set(starts)
        assert all(a <= b for a, b in pairwise(starts))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_parse_and_have_no_text_for_a_number(path: Path) -> None:
    preset = load_preset(path.stem)
    assert preset.name is None
    values = (preset.model.scratch or {}).items()
    assert {key for key, value in values if isinstance(value, str)} <= {"architecture"}


def test_the_presets() -> None:
    assert {"quickstart", "smollm2", "minimind"} <= {path.stem for path in PRESETS.glob("*.yaml")}


@pytest.mark.parametrize(("name", "expected"), [("quickstart", 1_082_496), ("minimind", 25_829_888)])
def test_number_of_parameters(name: str, expected: int) -> None:
    model = load_preset(name).model
    assert count_parameters_of(load_model_config(model, load_tokenizer(model))) == expected


def test_quickstart_preset() -> None:
    preset = load_preset("quickstart")
    for name in (preset.data.train, preset.data.validation):
        assert isinstance(name, str)
        assert (ASSETS / name.removeprefix("preset://")).is_file()
    assert (preset.global_batch_size, preset.train.precision, preset.scaling.num_workers) == (64, "fp32", 2)


def test_minimind_preset_is_the_shape_and_optimizer_of_the_original_and_its_schedule_mended() -> None:
    preset = load_preset("minimind")
    config = load_model_config(preset.model, load_tokenizer(preset.model))
    assert (config.vocab_size, config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (6400, 1e-5, 1e6)
    assert config.tie_word_embeddings
    assert preset.optim.model_dump(
        include={
            "learning_rate",
            "schedule",
            "betas",
            "weight_decay",
            "max_grad_norm",
            "warmup_ratio",
            "min_lr_ratio",
        }
    ) == {
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup_ratio": 0.0,
        "min_lr_ratio": 0.1,
        "betas": (0.9, 0.999),
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
    }
    for step, factor in ((0, 1.0), (25, 0.1 + 0.45 * (1 + 0.5**0.5)), (50, 0.55)):  # MiniMind's own of December 2025
        assert compute_learning_rate(step, 100, preset.optim) == pytest.approx(5e-5 * factor)
    assert (preset.global_batch_size, preset.train.seed, preset.train.precision) == (32, 1337, "bf16")
