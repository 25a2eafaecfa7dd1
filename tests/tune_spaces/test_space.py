"""Spaces as they are written: what is right, and what is wrong with its line and its mend."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from sftray.train_fn.config import RunConfig
from sftray.train_fn.errors import ConfigError
from sftray.tune_spaces.parameters import Options, Range
from sftray.tune_spaces.points import fixed_values
from sftray.tune_spaces.space import list_spaces, load_space, parse_space

RATE, ACCUMULATION = "optim.learning_rate", "train.gradient_accumulation_steps"
SCRATCH = {"architecture": "llama", "hidden_size": 32, "num_hidden_layers": 2}
CONFIG = RunConfig.model_validate(
    {"model": {"scratch": SCRATCH, "tokenizer": "quickstart"}, "data": {"train": "train.jsonl"}}
)

# What stands in the file, and words that the error must have.
FAULTS = [
    ("", "the space is empty"),
    ("- 1", "holds no settings"),
    ("optim.learnign_rate: {log_uniform: [1e-5, 1e-3]}", "Did you mean optim.learning_rate?"),
    ("optim.lr: {log_uniform: [1e-5, 1e-3]}", "optim.learning_rate"),
    ("optim.learning_rate: {loguniform: [1e-5, 1e-3]}", "Did you mean log_uniform?"),
    ("optim.learning_rate: {log_uniform: [1e-3, 1e-5]}", ":1"),
    ("optim.learning_rate: {log_uniform: [0, 1e-3]}", ":1"),
    ("optim.learning_rate: {log_uniform: [1e-5]}", ":1"),
    ("optim.learning_rate: {log_uniform: 1e-5}", ":1"),
    ("optim.learning_rate: {uniform: [-1, 1]}", "learning_rate"),
    ("optim.learning_rate: {choice: []}", ":1"),
    ("optim.learning_rate: {choice: [1e-4, fast]}", "fast"),
    ("optim.learning_rate: [1e-4, 1e-3]", "choice"),
    ("optim.learning_rate: 1e-4", "value"),
    ("optim.learning_rate:", "nothing behind it"),
    ("optim.learning_rate: {choice: [1e-4], grid: [1e-3]}", "choice and grid"),
    ("optim.learning_rate: {when: {optim.schedule: cosine}}", "does not say how to search it"),
    ("optim.learning_rate: {log_uniform: [1e-5, 1e-3], step: 2}", "step"),
    ("optim: {learning_rate: {log_uniform: [1e-5, 1e-3]}}", "is a section"),
    ("train.gradient_accumulation_steps: {int: [0, 4]}", "gradient_accumulation_steps"),
    ("train.gradient_accumulation_steps: {choice: [1, 2.5]}", "2.5"),
    ("data.max_seq_len: {choice: [128, 256]}", "cannot be searched"),
    ("train.epochs: {choice: [1, 2]}", "examples"),
    ("train.eval_every: {choice: [1, 2]}", "cannot be searched"),
    ("scaling.num_workers: {choice: [1, 2]}", "cannot be searched"),
    ("store.path: {value: elsewhere}", "cannot stand in a space"),
    ("name: {value: mine}", "name"),
    ("optim.schedule: {choice: [cosine, cosinus]}", "cosinus"),
    ("optim.min_lr_ratio: {uniform: [0, 1], when: {optim.shedule: cosine}}", "not in this space"),
    (
        "train.gradient_accumulation_steps: {choice: [1, 2]}\ntrain.global_batch_size: {choice: [8]}",
        "cannot both stand",
    ),
    ("optim.learning_rate: {choice: [1e-4]}\noptim.learning_rate: {choice: [1e-3]}", "twice"),
    ("both: {tied: [{optim.learning_rate: 1e-4}, {optim.weight_decay: 0.1}]}", ":1"),
    ("model.scratch.hiden_size: {choice: [32, 64]}", "hidden_size"),
    ("optim.learning_rate: {value: 1e-4}", "searches nothing"),
    ("optim.learning_rate: {choice: [1e-4, 1e-3}", ":1"),
]


@pytest.mark.parametrize(("text", "words"), FAULTS)
def test_a_planted_fault_is_told_where_it_stands(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_space(str(path), CONFIG)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_of_a_file_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("optim.learning_rate: {log_uniform: [1e-3, 1e-5]}\ndata.train: {choice: [a, b]}\n")
    with pytest.raises(ConfigError) as caught:
        load_space(str(path), CONFIG)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:1", f"{path}:2"]


def test_numbers_may_be_written_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("optim.learning_rate: {log_uniform: [1e-5, 1e-3]}\nscaling.num_workers: {value: 1}\n")
    space = load_space(str(path), CONFIG)
    assert space.parameters == (Range(RATE, 1e-5, 1e-3, log=True),)
    assert fixed_values(space) == {"scaling.num_workers": 1}


def test_a_space_that_is_missing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="lr_accumulation"):
        load_space("lr_acumulation", CONFIG)
    assert list_spaces() == ["full", "lr", "lr_accumulation", "lr_schedule", "quickstart"]


@pytest.mark.parametrize(
    ("given", "raw"),
    [
        (tune.loguniform(1e-5, 1e-3), {"log_uniform": [1e-5, 1e-3]}),
        (tune.uniform(0.1, 0.3), {"uniform": [0.1, 0.3]}),
        (tune.choice([1e-4, 1e-3]), {"choice": [1e-4, 1e-3]}),
        (tune.grid_search([1e-4, 1e-3]), {"grid": [1e-4, 1e-3]}),
    ],
)
def test_distributions_of_ray_tune_are_understood(given: Any, raw: dict[str, Any]) -> None:
    assert parse_space({RATE: given}, "python", CONFIG).raw == {RATE: raw}


def test_whole_numbers_of_ray_tune_leave_their_end_out() -> None:
    (parameter,) = parse_space({"train.micro_batch_size": tune.randint(1, 9)}, "python", CONFIG).parameters
    assert isinstance(parameter, Range) and (parameter.low, parameter.high, parameter.whole) == (1, 8, True)


@pytest.mark.parametrize("given", [tune.randn(0.0, 1.0), tune.sample_from(lambda spec: 1)])
def test_distributions_without_an_end_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(RATE)):
        parse_space({RATE: given}, "python", CONFIG)


def test_tied_settings_are_one_parameter() -> None:
    options = [{RATE: 1e-4, ACCUMULATION: 1}, {RATE: 2e-4, ACCUMULATION: 2}]
    assert parse_space({"both": {"tied": options}}, "s", CONFIG).parameters == (Options("both", tuple(options)),)
