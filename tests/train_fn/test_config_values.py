"""Every key of a config refuses its wrong values, in a file and on the command line, and offers a right one."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from sftray.train_fn.config_file import load_config
from sftray.train_fn.config_words import is_legal, leaf_fields
from sftray.train_fn.errors import ConfigError, Problem

BASE = "model: {name: m}\ndata: {train: a.jsonl}\n"  # two good lines: what is added begins at line 3
INNER_WORDS = re.compile(
    r"pydantic|validation error|Traceback|Input should|yaml\.|<class|NoneType|\bstr\b|(?<!!)\bint\b"
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems_of(text: str | bytes, overrides: Sequence[str] = ()) -> tuple[Problem, ...]:
    path = Path("run.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert not INNER_WORDS.search(str(caught.value)), str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems


# Every key, with values it must refuse. What is refused is shown, and so is what is legal.
BAD_VALUES: dict[str, tuple[str, ...]] = {
    "name": ("no", "123", "../up", "/abs", "A", "é", "🎉", '"a\\0b"', "x" * 300, "-x", "''", "[a]"),
    "model.name": ("no", "1.0", "12:30", "''", "[a]"),
    "model.scratch": ("llama", "[a]", "3"),
    "model.tokenizer": ("on", "{a: b}"),
    "model.chat_template": ("1", "''"),
    "model.attn_implementation": ("sdap", "off", "1", "null", "[sdpa]"),
    "model.gradient_checkpointing": ("1", "'true'", "maybe", "null"),
    "model.compile": ("0", "'on'"),
    "model.aux_loss_coef": ("-0.1", "small", ".nan", "true"),
    "data.train": ("[]", "3", "[a, 3]", "{a: b}", "''", "null", "[on]"),
    "data.validation": ("0", "1", "1.5", "-0.1", "true", "[]", "[0.1]", "5%"),
    "data.max_seq_len": ("1", "1.5", "'64'", "true", "1k", "0100"),
    "data.overlong": ("cut", "false", "Drop"),
    "data.train_on": ("first", "null"),
    "optim.learning_rate": ("0", "-1e-4", "'1e-4'", "fast", "null", ".inf", "true", "12:30", "[1]", "3%"),
    "optim.schedule": ("cosin", "3", "on"),
    "optim.warmup_ratio": ("1.1", "-0.1", "3%", "null"),
    "optim.min_lr_ratio": ("2", "none"),
    "optim.weight_decay": ("-1", "true"),
    "optim.betas": ("[0.9]", "[0.9, 1.0]", "[0.9, 0.95, 1]", "0.9", "[a, b]", "null"),
    "optim.max_grad_norm": ("0", "null", "'1'"),
    "train.epochs": ("0", "true", "1.5", "null", "two", "[1]"),
    "train.max_steps": ("0", "1e3", "no"),
    "train.max_examples": ("0", "1.5", "all", "true"),
    "train.micro_batch_size": ("0", "010", "-4", "4.0"),
    "train.gradient_accumulation_steps": ("0", "auto"),
    "train.global_batch_size": ("0", "64.5"),
    "train.packing": ("1", "'yes'", "auto"),
    "train.precision": ("bf61", "float16", "16", "BF16", "true"),
    "train.seed": ("-1", "9223372036854775808", "0.5", "random"),
    "train.replay_seed": ("0", "'false'", "minimind", "null"),
    "train.log_every": ("-1", "false", "null"),
    "train.eval_every": ("-1", "epoch"),
    "train.save_every": ("-1", "0.5"),
    "scaling.num_workers": ("0", "[1, 2, 3]", "[4, 2]", "[0, 2]", "auto", "1.5", "[1, x]", "true", "null"),
    "scaling.use_gpu": ("cuda", "1", "null", "'true'"),
    "scaling.cpus_per_worker": ("0", "0.5"),
    "scaling.resources_per_worker": (
        "null",
        "3",
        "[a]",
        "A100",
        "{a: 0}",
        "{a: -1}",
        "{a: x}",
        "{a: null}",
        "{'': 1}",
    ),
    "scaling.node_labels": ("null", "[a]", "zone", "{a: 1}", "{a: on}", "{a: '!b'}", "{a: 'in(b,c)'}", "{'a b': c}"),
    "scaling.placement": ("PACK", "strict_pack", "true", "null"),
    "scaling.wait_minutes": ("-1", "soon", "true", "1:30"),
    "scaling.max_failures": ("-1", "null"),
    "store.path": ("no", "3", "null", "[a]", "''"),
    "store.keep_checkpoints": ("0", "all"),
    "limits.max_minutes": ("0", "-5", "1:30", "soon"),
    "tracking.wandb": ("off", "on", "yes", "none", "null"),
    "tracking.project": ("1.0", "null", "''"),
    "tracking.entity": ("no", "[a]"),
    "tracking.tags": ("foo", "[1]", "[a, off]", "null"),
}
CASES = [(key, value) for key, values in BAD_VALUES.items() for value in values]


def write_config(key: str, value: str) -> tuple[str, int]:
    """A config that is good but for `key: value`, and the line of that."""
    required = {"model": "  name: m\n", "data": "  train: a.jsonl\n"}
    section, _, leaf = key.rpartition(".")
    lines = "".join(f"{name}:\n{line}" for name, line in required.items() if name != section)
    kept = "" if key in ("model.name", "model.scratch", "data.train") else required.get(section, "")
    lines += (f"{section}:\n{kept}  " if section else "") + f"{leaf}: {value}\n"
    return lines, lines.count("\n")


def test_every_key_has_bad_values() -> None:
    assert list(BAD_VALUES) == list(leaf_fields())


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_bad_value_is_one_problem_at_its_line_with_a_right_value(key: str, value: str) -> None:
    text, line = write_config(key, value)
    (problem,) = problems_of(text)
    assert problem.where == f"run.yaml:{line}"
    assert problem.what.startswith(key)
    assert fixed_value(problem, key) is not None


@pytest.mark.parametrize(("key", "value"), CASES)
def test_the_same_bad_value_on_the_command_line(key: str, value: str) -> None:
    (problem,) = problems_of(BASE, [f"{key}={value}"])
    assert problem.where is not None and problem.where.startswith(f"command line: {key}={value}"[:80])
    assert problem.fix is not None
    if not problem.fix.startswith(("write ", "remove ")):  # what a shell makes of it is right
        (fixed,) = shlex.split(problem.fix.removesuffix("   or leave it out"))
        assert fixed.startswith(f"{key}=")
        load_config(Path("run.yaml"), [fixed, "model.tokenizer=quickstart"][: 2 if key == "model.scratch" else 1])


def fixed_value(problem: Problem, key: str) -> object:
    """The value that the fix, a line of YAML to any YAML 1.1 reader, gives to `key`; it must be legal."""
    assert problem.fix is not None
    if problem.fix.startswith(("write ", "remove ")):
        return problem.fix
    value = yaml.safe_load(problem.fix.removesuffix("   or leave it out"))
    for part in key.split("."):
        value = value[part]
    assert is_legal(key, value)
    return value
