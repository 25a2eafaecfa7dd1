"""A wrong setting of the command line is refused in the same words as one of the file."""

from pathlib import Path

import pytest
from config_problems import BASE, problems_of

from sftray.train_fn.config_file import load_config

GLOBAL, STEPS = "global_batch_size", "gradient_accumulation_steps"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Overrides of BASE -> words of the problem of the last one, and of its fix.
OF_SCRATCH = ["model.tokenizer=t", "model.scratch={architecture: llama}"]
OVERRIDES = [
    (["optim.lr=3"], "optim.lr is not a setting. Did you mean optim.learning_rate?", "optim.learning_rate=3"),
    (["lr=3"], "Did you mean optim.learning_rate?", "optim.learning_rate=3"),
    (["optm.learning_rate=3"], "Did you mean optim.learning_rate?", "optim.learning_rate=3"),
    (["--train.epochs=3"], "Did you mean train.epochs?", "train.epochs=3"),
    (["optim={lr: 3}"], "optim.lr is not a setting", "optim.learning_rate=3"),
    (["zzzzz=3"], "zzzzz is not a setting", "remove it"),
    (["train.epochs"], "this is not KEY=VALUE", "train.epochs=1"),
    (["other.yaml"], "this is not KEY=VALUE", "optim.learning_rate=2.0e-5"),
    ([""], "the key is empty", "optim.learning_rate"),
    (["=3"], "the key is empty", "optim.learning_rate"),
    (["optim..x=3"], "the key is empty, or a part of it", "optim.learning_rate"),
    (["optim=3"], "optim is a section", "optim.learning_rate=2.0e-5"),
    (["optim="], "optim is a section", "optim.learning_rate=2.0e-5"),
    (["optim.learning_rate.x=3"], "optim.learning_rate is one value", "optim.learning_rate=3"),
    (["name.x=3"], "name is one value", "name="),
    (["data.train=[a"], "is not closed", "close the bracket"),
    (["name=123"], "name must be text, not 123", "'name=\"123\"'"),
    (["tracking.wandb=off"], "Did you mean disabled?", "tracking.wandb=disabled"),
    (["train.epochs=1", "train.epochs=2"], "train.epochs is set twice", "keep one of the two"),
    ([f"train.{GLOBAL}=8", f"train.{STEPS}=2"], "not both", "keep one"),
    (["train.max_steps=8", "train.max_examples=64"], "not both", "keep one"),
    (["model.name=x", *OF_SCRATCH], "not both", "keep one"),
    (["model.scratch.hidden_size=8"], "needs architecture", "model.scratch.architecture=llama"),
    ([*OF_SCRATCH, "model.scratch.architecture.x=8"], "is one value", "model.scratch.architecture=llama"),
    (["store.path=" + "x" * 99 + "\0"], "an invisible character stands here: U+0000", "delete"),
]


@pytest.mark.parametrize(("overrides", "what", "fix"), OVERRIDES)
def test_a_wrong_override_is_shown_itself(overrides: list[str], what: str, fix: str) -> None:
    (problem,) = problems_of(BASE, overrides)
    assert str(problem.where).startswith(f"command line: {overrides[-1]}"[:80])
    assert what in problem.what
    assert fix in str(problem.fix)


def test_overrides_are_checked_though_the_file_cannot_be_read() -> None:
    problems = problems_of("\tmodel: x\n", ["train.epochs=0", "optim.lr=1"])
    assert [problem.where for problem in problems] == [
        "run.yaml:1",
        "command line: train.epochs=0",
        "command line: optim.lr=1",
    ]


def test_an_override_mends_what_is_wrong_in_the_file() -> None:
    Path("run.yaml").write_text(BASE + "train: {epochs: 0}\n")
    assert load_config(Path("run.yaml"), ["train.epochs=2"]).config.train.epochs == 2


def test_rivals_in_the_file_are_wrong_whatever_the_command_line_says() -> None:
    text = BASE + "train: {global_batch_size: 8, gradient_accumulation_steps: 2}\n"
    (problem,) = problems_of(text, ["train.global_batch_size=4"])
    assert "run.yaml:3 sets train.gradient_accumulation_steps" in str(problem.why)
