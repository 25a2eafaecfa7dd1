"""A config file becomes one checked config: its values, where they came from, and back to the same file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.config_words import leaf_fields
from sftray.train_fn.errors import ConfigError

BASE = "model: {name: some/model}\ndata: {train: a.jsonl}\n"
SCRATCH = """\
model:
  tokenizer: quickstart
  scratch:
    architecture: llama
    hidden_size: 64
    rms_norm_eps: 1e-5
    rope_parameters: {rope_type: yarn, factors: [1, 2.5]}
data: {train: a.jsonl}
"""


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str | bytes, *overrides: str, label: str | None = None) -> Resolved:
    path = Path("run.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, overrides, label=label)


def get(resolved: Resolved, key: str) -> Any:
    value: Any = resolved.config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def given_origins(resolved: Resolved) -> dict[str, str]:
    return {key: origin for key, origin in resolved.origin.items() if origin != "default"}


def test_a_config_of_two_keys_has_the_defaults_for_the_rest() -> None:
    resolved = load(BASE)
    assert resolved.config == RunConfig.model_validate(
        {"model": {"name": "some/model"}, "data": {"train": "a.jsonl"}}
    )
    assert given_origins(resolved) == {"model.name": "run.yaml:1", "data.train": "run.yaml:2"}
    assert set(resolved.origin) == set(leaf_fields())
    train = resolved.config.train
    assert (train.gradient_accumulation_steps, train.global_batch_size, resolved.config.global_batch_size) == (
        1,
        None,
        4,
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5e-3", 5e-4),
        ("1.5e2", 150.0),
        ("3", 3.0),
        ("1_0e-1", 1.0),
    ],
)
def test_a_number_is_read_however_it_is_written(written: str, value: float) -> None:
    assert get(load(f"{BASE}optim: {{learning_rate: {written}}}\n"), "optim.learning_rate") == value
    assert get(load(BASE, f"optim.learning_rate={written}"), "optim.learning_rate") == value


@pytest.mark.parametrize("text", ["1e-4", "12e5", "2024-01-01", "'no'", '"123"', "!!str 123", "yes-no", "a1"])
def test_a_text_stays_text(text: str) -> None:
    kept = text.removeprefix("!!str ").strip("'\"")
    assert get(load(f"{BASE}name: {text}\n"), "name") == kept
    assert get(load(BASE, f"name={text}"), "name") == kept


def test_a_number_is_one_only_where_a_number_is_wanted() -> None:
    resolved = load(BASE.replace("a.jsonl", "[1e-1, 2e-1]") + "tracking: {tags: [1e-1]}\n", "data.validation=1e-1")
    assert get(resolved, "data.train") == ["1e-1", "2e-1"]
    assert get(resolved, "tracking.tags") == ["1e-1"]
    assert get(resolved, "data.validation") == 0.1


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + BASE.encode(),
        BASE.replace("\n", "\r\n"),
        "---\n" + BASE,
        "# a comment\n\n" + BASE + "...\n",
        BASE + "optim:\nlimits:\n",
        '{"model": {"name": "some/model"},\n "data": {"train": "a.jsonl"}}',
        BASE.rstrip("\n"),
    ],
)
def test_the_same_config_in_other_clothes(text: str | bytes) -> None:
    assert load(text).config == load(BASE).config


def test_anchors_and_merge_keys_unfold_and_own_keys_win() -> None:
    text = BASE + "optim: &o {learning_rate: &lr 1.0e-3, weight_decay: 0.5}\ntrain:\n  epochs: 2\n"
    twice = text.replace("optim:", "optim:\n  <<:") + "limits: {max_minutes: *lr}\n"
    resolved = load(twice, "optim.weight_decay=0.25")
    assert get(resolved, "optim.learning_rate") == get(resolved, "limits.max_minutes") == 1e-3
    assert get(resolved, "optim.weight_decay") == 0.25
    assert resolved.origin["limits.max_minutes"] == "run.yaml:4"  # where the value stands


def test_an_origin_is_the_line_of_the_value() -> None:
    text = "model:\n  name:\n    some/model\ndata:\n  train:\n  - a.jsonl\n  - b.jsonl\noptim: {betas: [0,\n  0.5]}\n"
    assert given_origins(load(text)) == {
        "model.name": "run.yaml:3",
        "data.train": "run.yaml:5",
        "optim.betas": "run.yaml:8",
    }


def test_keys_inside_scratch_have_origins_and_are_not_checked() -> None:
    resolved = load(SCRATCH, "model.scratch.hidden_size=128", "model.scratch.new.deep=[1e-3]")
    assert resolved.config.model.scratch == {
        "architecture": "llama",
        "hidden_size": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "yarn", "factors": [1, 2.5]},
        "new": {"deep": [1e-3]},
    }
    inside = {key: origin for key, origin in resolved.origin.items() if key.startswith("model.scratch")}
    assert inside == {
        "model.scratch": "run.yaml:3",
        "model.scratch.architecture": "run.yaml:4",
        "model.scratch.hidden_size": "command line",
        "model.scratch.rms_norm_eps": "run.yaml:6",
        "model.scratch.rope_parameters": "run.yaml:7",
        "model.scratch.rope_parameters.rope_type": "run.yaml:7",
        "model.scratch.rope_parameters.factors": "run.yaml:7",
        "model.scratch.new": "command line",
        "model.scratch.new.deep": "command line",
    }


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.learning_rate=3e-4", "optim.learning_rate", 3e-4),
        ("optim={learning_rate: 1, schedule: linear}", "optim.schedule", "linear"),
        (" train.epochs = 7", "train.epochs", 7),
        ("optim.betas=[0, 1e-1]", "optim.betas", (0.0, 0.1)),
        ("scaling.num_workers=[1, 4]", "scaling.num_workers", (1, 4)),
        ("scaling.use_gpu=no", "scaling.use_gpu", False),
        ("train.max_steps=", "train.max_steps", None),
        ("store.path=s3://bucket/a=b", "store.path", "s3://bucket/a=b"),
        ("data.train=[a.jsonl, 'b c.jsonl']", "data.train", ["a.jsonl", "b c.jsonl"]),
    ],
)
def test_an_override_wins_over_the_file(override: str, key: str, value: object) -> None:
    text = BASE + "optim: {weight_decay: 0.5}\ntrain:\n  epochs: 2\n  max_steps: 9\nstore:\n"
    resolved = load(text, override)
    assert get(resolved, key) == value
    assert resolved.origin[key] == "command line"
    assert (get(resolved, "optim.weight_decay"), resolved.origin["optim.weight_decay"]) == (0.5, "run.yaml:3")


@pytest.mark.parametrize(
    ("text", "override", "unset"),
    [
        (BASE + "train: {global_batch_size: 2}", "train={gradient_accumulation_steps: 8}", "train.global_batch_size"),
        (
            BASE + "train: {gradient_accumulation_steps: 2}",
            "train.global_batch_size=8",
            "train.gradient_accumulation_steps",
        ),
        (BASE + "train: {max_steps: 2}", "train.max_examples=8", "train.max_steps"),
        (BASE + "train: {max_examples: 8}", "train.max_steps=2", "train.max_examples"),
        (SCRATCH, "model.name=some/model", "model.scratch"),
        (BASE, "model={tokenizer: t, scratch: {architecture: llama}}", "model.name"),
    ],
)
def test_an_override_unsets_what_cannot_stand_beside_it(text: str, override: str, unset: str) -> None:
    resolved = load(text, override)
    assert get(resolved, unset) is None
    assert resolved.origin[unset].startswith("unset: ") and resolved.origin[unset].endswith("on the command line")
    assert not [key for key in resolved.origin if key.startswith(f"{unset}.")]
    assert load(dump_config(resolved)) == resolved


def test_a_trained_model_does_not_get_the_tokenizer_that_the_file_has_for_an_untrained_one() -> None:
    resolved = load(SCRATCH, "model.name=org/model")
    assert get(resolved, "model.tokenizer") is None
    assert resolved.origin["model.tokenizer"].startswith("unset: model.name")
    assert get(load(SCRATCH, "model.name=org/model", "model.tokenizer=own"), "model.tokenizer") == "own"
    with pytest.raises(ConfigError, match=r"needs model\.tokenizer"):
        load(SCRATCH, "model.name=out/pretrain_512.pth")


def test_an_override_to_null_unsets_nothing_else() -> None:
    resolved = load(BASE + "train: {global_batch_size: 2}\n", "train.gradient_accumulation_steps=null")
    assert resolved.config.train.global_batch_size == 2


def test_a_preset_is_named_by_its_label() -> None:
    assert load(BASE, label="preset quickstart").origin["model.name"] == "preset quickstart"
    with pytest.raises(ConfigError) as caught:
        load(BASE + "nmae: x\n", label="preset quickstart")
    assert [problem.where for problem in caught.value.problems] == ["preset quickstart:3"]


def test_an_edited_dump_says_its_own_lines() -> None:
    dumped = dump_config(load(BASE, "train.epochs=3"))
    assert load(dumped).origin["train.epochs"] == "command line"
    line = dumped.split("\n").index("  epochs: 3  # command line") + 1
    assert load(dumped.replace("epochs: 3", "epochs: 4")).origin["train.epochs"] == f"run.yaml:{line}"


def test_a_fixed_batch_says_what_it_was_computed_from() -> None:
    resolved = load(BASE + "train: {gradient_accumulation_steps: 8}\nscaling: {num_workers: [1, 2]}\n")
    fixed = resolved.with_fixed_batch()
    assert fixed.config == resolved.config.with_fixed_batch()
    assert fixed.config.train.global_batch_size == 64
    assert fixed.origin["train.global_batch_size"] == "computed: 2 workers × 4 examples × 8 accumulated"
    assert load(dump_config(fixed)) == fixed == fixed.with_fixed_batch()


def test_reading_configs_loads_no_heavy_library() -> None:
    heavy = "[m for m in ('torch', 'ray', 'transformers') if m in sys.modules]"
    code = f"import sys, sftray.train_fn.config_file; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
