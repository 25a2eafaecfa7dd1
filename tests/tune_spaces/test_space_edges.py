"""What lies at the edges of spaces: steps, trials that diverged, sections with one value, fixes that are right."""

import math
import random
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.config_words import leaf_fields
from sftray.train_fn.errors import ConfigError
from sftray.tune_spaces.points import apply_point
from sftray.tune_spaces.population import Member, decide_exploit
from sftray.tune_spaces.searchable import EXAMPLES, find_reason
from sftray.tune_spaces.searchers import Outcome, count_grid, suggest_point
from sftray.tune_spaces.space import load_space, parse_space

CONFIG = RunConfig.model_validate({"model": {"name": "m"}, "data": {"train": "t.jsonl"}})
RATE, DECAY, MICRO = "optim.learning_rate", "optim.weight_decay", "train.micro_batch_size"


@pytest.mark.parametrize(
    ("key", "spec", "values"),
    [
        (DECAY, {"uniform": [0.0, 0.3], "step": 0.1}, {0.0, 0.1, 0.2, 0.3}),
        (DECAY, {"uniform": [0.1, 0.35], "step": 0.1}, {0.1, 0.2, 0.3}),
        (MICRO, {"int": [4, 17], "step": 4}, {4, 8, 12, 16}),
    ],
)
def test_tpe_goes_on_from_values_with_steps(key: str, spec: dict[str, Any], values: set[float]) -> None:
    space = parse_space({key: spec}, "s", CONFIG)
    history: list[Outcome] = []
    for number in range(14):
        point = suggest_point(space, "tpe", 1, number, history)
        assert point[key] in values
        history.append(Outcome(number, point, "finished", float(point[key]), {}))
    assert {outcome.point[key] for outcome in history} <= values


@pytest.mark.parametrize("losses", list(product((math.nan, math.inf, 2.0), repeat=2)))
def test_nobody_follows_a_member_that_diverged(losses: tuple[float, float]) -> None:
    members = [Member(f"t{n}", {0.5: loss}, {}) for n, loss in enumerate(losses)]
    for n in range(2):
        other = losses[1 - n]
        follows = math.isfinite(other) and not math.isfinite(losses[n])
        donor = decide_exploit(members, f"t{n}", 0.5, 0.5, random.Random(0))
        assert donor == (f"t{1 - n}" if follows else None)


@pytest.mark.parametrize("key", [key for key in leaf_fields() if key not in EXAMPLES])
def test_every_key_is_searchable_or_has_a_reason_not_to_be(key: str) -> None:
    assert find_reason(key)


def test_a_limit_in_examples_unsets_one_in_steps() -> None:
    config = RunConfig.model_validate(CONFIG.model_dump() | {"train": {"max_steps": 5}})
    train = apply_point(Resolved(config, {}), {"train.max_examples": 640}, "sweep").config.train
    assert (train.max_steps, train.max_examples) == (None, 640)


@pytest.mark.parametrize("value", ["3", "[1]", "hello", "", "true"])
def test_a_section_with_one_value_is_told(tmp_path: Path, value: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"optim: {value}\n")
    with pytest.raises(ConfigError, match="optim is a section of the config"):
        load_space(str(path), CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        "optim.learning_rate: {choice: [null]}",
        "optim.learning_rate: {choice: [1e-4, fast]}",
        "optim.learning_rate: {log_uniform: [1e-3, 1e-5]}",
        "optim.learning_rate: {log_uniform: [0, 1e-3]}",
        "optim.learning_rate: {loguniform: [1e-5, 1e-3]}",
        "optim.learning_rate: [1e-4, 1e-3]",
        "optim.learning_rate: {log_uniform: ['1e-5', '1e-3']}",
        "optim.schedule: {choice: [cosine, linaer]}",
        "optim.betas: {uniform: [0, 1]}",
        "train.packing: {int: [0, 1]}",
        "train.micro_batch_size: {log_uniform: [1, 8]}",
        "train.micro_batch_size: {int: [0, 8], log: true}",
        "train.micro_batch_size: {int: [1, 8], step: 0}",
        "optim: {learning_rate: {uniform: [1e-5, 1e-3]}}",
    ],
)
def test_the_fix_of_an_error_is_a_line_that_is_right(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_space(str(path), CONFIG)
    path.write_text(str(caught.value.problems[0].fix))
    assert len(load_space(str(path), CONFIG).parameters) == 1


def test_a_large_grid_is_counted_at_once() -> None:
    rates = [round(1e-5 * n, 6) for n in range(1, 101)]
    space = parse_space({RATE: {"choice": rates}, MICRO: {"choice": list(range(1, 101))}}, "s", CONFIG)
    assert count_grid(space) == 10_000


WORDS = st.sampled_from(
    [
        "log_uniform",
        "uniform",
        "int",
        "choice",
        "grid",
        "value",
        "tied",
        "when",
        "log",
        "step",
        RATE,
        "optim.schedule",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.sampled_from(["cosine", "1e-4", ""])
SPECS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)
KEYS = st.sampled_from([RATE, "optim.schedule", MICRO, "optim", "group", "lr", "model.scratch.x", "name", ""])


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(raw=st.dictionaries(KEYS, SPECS, max_size=3))
def test_whatever_is_written_gives_a_space_or_words(raw: dict[str, Any]) -> None:
    try:
        space = parse_space(raw, "s", CONFIG)
    except ConfigError as error:
        assert error.problems and all(problem.fix for problem in error.problems)
        assert not re.search(r"Traceback|<class|NoneType", str(error))
    else:
        apply_point(Resolved(CONFIG, {}), space.fixed | suggest_point(space, "random", 1, 0), "sweep")
