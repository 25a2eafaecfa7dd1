"""Which point a trial gets: a pure function of the space, the seed, the trial's number and what came before.

So there is no state to save: a sweep that is resumed asks for the same points again.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sftray.train_fn.errors import ConfigError, Problem
from sftray.tune_spaces.parameters import Options, Parameter, Point, Range, Space, is_active, settle_point

Searcher = Literal["tpe", "random", "grid"]

_STARTUP = 8  # trials that TPE draws at random at least; fewer say nothing of where it is good
_MOST_POINTS = 10_000  # of a grid: a longer list is a slip, or a task for a searcher that samples
_RUNG_SCALE = 1000  # Optuna counts steps, and rungs are shares of progress


@dataclass(frozen=True)
class Outcome:
    """What is known of an earlier trial. `rungs`: progress -> validation loss there."""

    number: int
    point: Point
    state: str  # finished, pruned, failed; else it is running
    loss: float | None
    rungs: dict[float, float]


def is_grid(space: Space) -> bool:
    """Whether all of it is enumerated, so that nothing is left to sample."""
    return all(isinstance(parameter, Options) and parameter.is_grid for parameter in space.parameters)


def count_grid(space: Space) -> int:
    """How many points the grid has.

    Raises:
        ConfigError: a range cannot be enumerated.
    """
    return len(_list_grid(space, only_grid=False))


def check_searcher(space: Space, searcher: Searcher) -> None:
    """Raise ConfigError where the searcher cannot search the space."""
    if searcher == "grid":
        count_grid(space)
    grid = next((p for p in space.parameters if isinstance(p, Options) and p.is_grid), None)
    if searcher == "tpe" and grid is not None:
        raise ConfigError(
            Problem(
                f"{grid.name} is a grid, and tpe samples",
                f"space {space.name}",
                "it goes where earlier trials were good, and not through a list in turn",
                f"{grid.name}: choice in place of grid, or --search random, which goes through grids",
            )
        )


def suggest_point(space: Space, searcher: Searcher, seed: int, number: int, history: Sequence[Outcome] = ()) -> Point:
    """The point of trial `number`. Random and grid points do not depend on `history`.

    Raises:
        IndexError: the grid has no such point.
        ConfigError: the searcher cannot search the space.
    """
    check_searcher(space, searcher)
    if searcher == "grid":
        return _list_grid(space, only_grid=False)[number]
    rows = _list_grid(space, only_grid=True)
    row = rows[number % len(rows)]
    trial = _ask(space, searcher, _make_seed(seed, number), history)

    def pick(parameter: Parameter) -> Point:
        if isinstance(parameter, Options) and parameter.is_grid:
            return {key: row[key] for key in parameter.keys if key in row} or parameter.options[0]
        return _suggest(trial, parameter)

    return settle_point(space, pick)


def _make_seed(seed: int, number: int) -> int:
    """Neighbouring seeds and numbers give unrelated draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _list_grid(space: Space, only_grid: bool) -> list[Point]:
    """The product of all options in the order of the space, the last changing fastest; each point once."""
    parameters = [p for p in space.parameters if not only_grid or (isinstance(p, Options) and p.is_grid)]
    axes = [_enumerate(parameter, space) for parameter in parameters]
    _refuse_endless(space, axes)
    points: dict[str, Point] = {}
    for row in itertools.product(*axes):
        chosen = dict(zip((p.name for p in parameters), row, strict=True))
        if only_grid:
            point = {key: value for options in row for key, value in options.items()}
        else:
            point = settle_point(space, lambda p, chosen=chosen: chosen[p.name])  # type: ignore[misc]  # mypy sees no lambda's default
        points.setdefault(repr(sorted(point.items())), point)
    return list(points.values())


def _refuse_endless(space: Space, axes: Sequence[Sequence[Point]]) -> None:
    count = math.prod(map(len, axes))
    if count > _MOST_POINTS:
        raise ConfigError(
            Problem(
                f"the grid has {count:,} points",
                f"space {space.name}",
                f"every one is a trial, and a grid of more than {_MOST_POINTS:,} is never run to its end",
                "fewer values, or choice in place of grid and --search tpe",
            )
        )


def _enumerate(parameter: Parameter, space: Space) -> Sequence[Point]:
    if isinstance(parameter, Options):
        return parameter.options
    raise ConfigError(
        Problem(
            f"{parameter.key} is a range, and a grid has values",
            f"space {space.name}",
            "a range has no end of points",
            f"{parameter.key}: {{grid: […]}}, or --search random or tpe",
        )
    )


def _ask(space: Space, searcher: Searcher, seed: int, history: Sequence[Outcome]) -> Any:
    """A trial of an Optuna study that knows `history`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if searcher == "random":
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for outcome in sorted(history, key=lambda outcome: outcome.number):
        study.add_trial(_to_optuna(space, outcome))
    return study.ask()


def _to_optuna(space: Space, outcome: Outcome) -> Any:
    import optuna

    states = {
        "finished": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    state = states.get(outcome.state, optuna.trial.TrialState.RUNNING)
    loss = outcome.loss if outcome.loss is not None and math.isfinite(outcome.loss) else None
    if state == optuna.trial.TrialState.COMPLETE and loss is None:
        state = optuna.trial.TrialState.FAIL
    params, distributions = _to_params(space, outcome.point)
    return optuna.trial.create_trial(
        state=state,
        value=loss if state == optuna.trial.TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values={round(rung * _RUNG_SCALE): value for rung, value in outcome.rungs.items()},
    )


def _to_params(space: Space, point: Point) -> tuple[dict[str, Any], dict[str, Any]]:
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    settled = {**space.fixed, **point}
    for parameter in space.parameters:
        if not is_active(parameter, settled) or not all(key in point for key in parameter.keys):
            continue
        if isinstance(parameter, Range):
            params[parameter.name] = _to_number(parameter, point[parameter.key])
        else:
            chosen = {key: point[key] for key in parameter.keys}
            if chosen not in parameter.options:
                continue  # of a trial that has followed another
            params[parameter.name] = parameter.options.index(chosen)
        distributions[parameter.name] = _to_distribution(parameter)
    return params, distributions


def _to_number(parameter: Range, value: float) -> float:
    """A range with steps is known to Optuna by the number of the step."""
    return value if parameter.step is None else round((value - parameter.low) / parameter.step)


def _to_distribution(parameter: Parameter) -> Any:
    """Options are known to Optuna by their places: it has no lists and no groups."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Options):
        return CategoricalDistribution(range(len(parameter.options)))
    if parameter.step is not None:
        return IntDistribution(0, parameter.num_steps)
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _suggest(trial: Any, parameter: Parameter) -> Point:
    distribution: Any = _to_distribution(parameter)
    if isinstance(parameter, Options):
        index: int = trial.suggest_categorical(parameter.name, distribution.choices)
        return parameter.options[index]
    if parameter.step is not None:
        return {parameter.key: parameter.at_step(trial.suggest_int(parameter.name, 0, parameter.num_steps))}
    if parameter.whole:
        value: int = trial.suggest_int(parameter.name, distribution.low, distribution.high, log=parameter.log)
        return {parameter.key: value}
    drawn = trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log)
    return {parameter.key: parameter.fit(drawn)}
