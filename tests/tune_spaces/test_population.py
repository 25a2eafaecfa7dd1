"""Who follows whom, and with which settings; where trials are looked at."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import build_config

from sftray.train_fn.config import RunConfig
from sftray.train_fn.errors import ConfigError
from sftray.tune_spaces.halving import plan_evaluations, plan_rungs
from sftray.tune_spaces.population import Member, check_population_space, decide_exploit, explore_point
from sftray.tune_spaces.space import parse_space

CONFIG = RunConfig.model_validate({"model": {"name": "m"}, "data": {"train": "t.jsonl"}})
RATE, ACCUMULATION = "optim.learning_rate", "train.gradient_accumulation_steps"


def make_members(*losses: float) -> list[Member]:
    return [Member(f"t{n}", {0.25: loss}, {}) for n, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "name", "donors"),
    [
        ((1.0, 2.0, 3.0, 4.0), "t3", {"t0"}),
        ((1.0, 2.0, 3.0, 4.0), "t2", {None}),
        ((1.0, 2.0, 3.0, 4.0), "t0", {None}),
        ((1.0, 2.0), "t1", {"t0"}),
        ((1.0,), "t0", {None}),
        ((math.inf, 2.0, 3.0, 2.5), "t0", {"t1"}),
        ((2.0, 2.0), "t1", {None}),
        ((1, 2, 3, 4, 5, 6, 7, 8), "t7", {"t0", "t1"}),
        ((1, 2, 3, 4, 5, 6, 7, 8), "t6", {"t0", "t1"}),
        ((1, 2, 3, 4, 5, 6, 7, 8), "t5", {None}),
    ],
)
def test_the_bottom_quarter_follows_the_top_quarter(
    losses: tuple[float, ...], name: str, donors: set[str | None]
) -> None:
    members = make_members(*losses)
    assert {decide_exploit(members, name, 0.25, 0.25, random.Random(seed)) for seed in range(20)} == donors


def test_only_members_that_have_come_to_the_rung_count() -> None:
    members = [*make_members(1.0, 2.0), Member("late", {}, {})]
    assert decide_exploit(members, "late", 0.25, 0.25, random.Random(0)) is None
    assert decide_exploit(members, "t1", 0.5, 0.25, random.Random(0)) is None


@given(seed=st.integers(0, 10_000), rate=st.floats(1e-5, 1e-3))
def test_explored_settings_stay_in_the_space_and_the_batch_is_inherited(seed: int, rate: float) -> None:
    space = parse_space({RATE: {"log_uniform": [1e-5, 1e-3]}, ACCUMULATION: {"choice": [1, 2]}}, "s", CONFIG)
    explored = explore_point({RATE: rate, ACCUMULATION: 2}, space, random.Random(seed))
    assert 1e-5 <= explored[RATE] <= 1e-3
    assert explored[ACCUMULATION] == 2


def test_a_space_without_anything_to_perturb_is_refused(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    with pytest.raises(ConfigError, match="pbt"):
        check_population_space(parse_space({ACCUMULATION: {"choice": [1, 2]}}, "s", config))
    check_population_space(parse_space({RATE: {"log_uniform": [1e-5, 1e-3]}}, "s", config))


def test_rungs_are_evaluations_and_shares_of_progress() -> None:
    assert plan_evaluations(8) == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    assert plan_rungs(2.0, plan_evaluations(8)) == [0.25, 0.5]
    assert plan_rungs(3.0, plan_evaluations(9)) == pytest.approx([1 / 9, 3 / 9])
