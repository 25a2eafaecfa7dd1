"""Points of trials: legal, within bounds, and functions of their arguments alone."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import build_config

from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ConfigError
from sftray.tune_spaces.parameters import Space
from sftray.tune_spaces.points import apply_point, check_space
from sftray.tune_spaces.searchers import Outcome, Searcher, count_grid, is_grid, suggest_point
from sftray.tune_spaces.space import list_spaces, load_space, parse_space

RATE, ACCUMULATION = "optim.learning_rate", "train.gradient_accumulation_steps"
MIXED: dict[str, Any] = {
    RATE: {"log_uniform": [1e-5, 1e-3]},
    "optim.weight_decay": {"uniform": [0.0, 0.3]},
    "train.micro_batch_size": {"int": [1, 4]},
    "optim.schedule": {"choice": ["cosine", "constant"]},
    "optim.min_lr_ratio": {"uniform": [0.0, 0.5], "when": {"optim.schedule": ["cosine"]}},
    ACCUMULATION: {"choice": [1, 2, 4]},
}


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    return Resolved(build_config(tmp_path_factory.mktemp("base")), {})


@pytest.fixture(scope="module")
def mixed(resolved: Resolved) -> Space:
    return parse_space(MIXED, "mixed", resolved.config)


def make_history(space: Space, count: int) -> list[Outcome]:
    states = ("finished", "pruned", "failed", "running")
    return [
        Outcome(n, suggest_point(space, "random", 9, n), states[n % 4], 2.0 + n / 10, {0.25: 3.0 + n / 10})
        for n in range(count)
    ]


@pytest.mark.parametrize("searcher", ["random", "tpe"])
@settings(deadline=None, max_examples=40)  # the first call imports Optuna
@given(number=st.integers(0, 200), seed=st.integers(0, 50))
def test_every_point_is_within_the_space_and_makes_a_config(
    mixed: Space, resolved: Resolved, searcher: Searcher, number: int, seed: int
) -> None:
    point = suggest_point(mixed, searcher, seed, number)
    assert 1e-5 <= point[RATE] <= 1e-3
    assert 0.0 <= point["optim.weight_decay"] <= 0.3
    assert point["train.micro_batch_size"] in range(1, 5)
    assert ("optim.min_lr_ratio" in point) == (point["optim.schedule"] == "cosine")
    config = apply_point(resolved, point, "sweep").config
    assert config.train.global_batch_size is None
    assert config.global_batch_size == 2 * point["train.micro_batch_size"] * point[ACCUMULATION]


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_the_same_arguments_give_the_same_point(mixed: Space, searcher: Searcher) -> None:
    history = make_history(mixed, 12)
    points = [suggest_point(mixed, searcher, 1, 12, history) for _ in range(2)]
    assert points[0] == points[1]
    assert suggest_point(mixed, searcher, 2, 12, history) != points[0]


def test_random_points_do_not_depend_on_what_came_before(mixed: Space) -> None:
    assert suggest_point(mixed, "random", 1, 5, make_history(mixed, 5)) == suggest_point(mixed, "random", 1, 5)


def test_tpe_goes_where_it_was_good(resolved: Resolved) -> None:
    space = parse_space({RATE: {"log_uniform": [1e-6, 1e-2]}}, "lr", resolved.config)
    points = [{RATE: 10.0 ** (-6 + n / 10)} for n in range(40)]
    history = [Outcome(n, point, "finished", abs(n - 20.0), {}) for n, point in enumerate(points)]  # best: 1e-4
    rates = [suggest_point(space, "tpe", seed, 40, history)[RATE] for seed in range(20)]
    assert sum(2e-5 < rate < 5e-4 for rate in rates) >= 15


def test_a_grid_is_the_product_in_the_order_written(resolved: Resolved) -> None:
    space = parse_space({RATE: {"grid": [1e-4, 1e-3]}, ACCUMULATION: {"choice": [1, 2]}}, "g", resolved.config)
    assert count_grid(space) == 4 and not is_grid(space)
    points = [tuple(suggest_point(space, "grid", 1, n).values()) for n in range(4)]
    assert points == [(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)]
    with pytest.raises(IndexError):
        suggest_point(space, "grid", 1, 4)


def test_random_search_goes_through_a_grid_in_turn(resolved: Resolved) -> None:
    space = parse_space(
        {ACCUMULATION: {"grid": [1, 2, 4]}, RATE: {"log_uniform": [1e-4, 1e-3]}}, "g", resolved.config
    )
    points = [suggest_point(space, "random", 1, n) for n in range(6)]
    assert [point[ACCUMULATION] for point in points] == [1, 2, 4, 1, 2, 4]
    assert len({point[RATE] for point in points}) == 6


@pytest.mark.parametrize(
    ("space", "searcher", "text"),
    [
        ({RATE: {"log_uniform": [1e-5, 1e-3]}}, "grid", "is a range, and a grid has values"),
        ({ACCUMULATION: {"grid": [1, 2]}}, "tpe", "is a grid, and tpe samples"),
        (
            {ACCUMULATION: {"grid": list(range(1, 102))}, RATE: {"grid": [k / 1e6 for k in range(1, 101)]}},
            "grid",
            "the grid has 10,100 points",
        ),
    ],
)
def test_a_searcher_that_cannot_search_the_space_says_so(
    resolved: Resolved, space: dict[str, Any], searcher: Searcher, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        suggest_point(parse_space(space, "s", resolved.config), searcher, 1, 0)


def test_tied_settings_vary_together(resolved: Resolved) -> None:
    options = [{RATE: 1e-4, ACCUMULATION: 1}, {RATE: 2e-4, ACCUMULATION: 4}]
    space = parse_space({"both": {"tied": options}}, "t", resolved.config)
    drawn = [suggest_point(space, "tpe", 1, n) for n in range(12)]
    assert all(point in options for point in drawn)
    assert {point[ACCUMULATION] for point in drawn} == {1, 4}


@pytest.mark.parametrize("name", list_spaces())
def test_spaces_that_ship_are_legal_from_end_to_end(name: str, resolved: Resolved) -> None:
    space = load_space(name, resolved.config)
    check_space(space, resolved)
    for number in range(5):
        apply_point(resolved, {**space.fixed, **suggest_point(space, "tpe", 1, number)}, "sweep")


def test_an_end_of_the_space_that_contradicts_the_config_is_told_before(tmp_path: Path) -> None:
    config = build_config(tmp_path, scaling={"num_workers": [2, 2], "use_gpu": False})
    space = parse_space({"model.scratch.hidden_size": {"choice": [32, 64]}}, "s", config)
    check_space(space, Resolved(config, {}))
    bad = parse_space({RATE: {"choice": [1e-3]}, "train.seed": {"value": 3}}, "s", config)
    with pytest.raises(ConfigError, match="space s"):
        check_space(bad, Resolved(config.model_copy(update={"name": "NOT LEGAL"}), {}))
