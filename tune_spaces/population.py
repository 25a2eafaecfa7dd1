"""Population based training as decisions: who follows whom, and with which settings.

Jaderberg et al., 2017 (arXiv 1711.09846): at a rung, a trial of the bottom quantile takes over weights and optimizer
of one of the top quantile, and goes on with that one's settings, perturbed.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from sftray.train_fn.errors import ConfigError, Problem
from sftray.tune_spaces.parameters import Options, Parameter, Point, Range, Space

# Only these may change in mid-run: the others would change the plan of steps, or the model.
_MUTABLE = "optim."
_FIXED = ("optim.schedule", "optim.warmup_ratio")


@dataclass(frozen=True)
class Member:
    """A trial: its validation losses by progress, and its settings as they are now."""

    name: str
    progress_marks: dict[float, float]
    point: Point


def decide_exploit(
    members: Sequence[Member], name: str, rung: float, quantile: float, rng: random.Random
) -> str | None:
    """Whom `name` follows from `rung` on; None if it goes on as it is.

    It is compared with the members that have come to the rung. A loss that is no number is worse than any, and
    nobody follows a member that has one.
    """
    marks = {m.name: m.progress_marks[rung] for m in members if rung in m.progress_marks}
    losses = {who: loss if math.isfinite(loss) else math.inf for who, loss in marks.items()}
    if name not in losses or len(losses) < 2:
        return None
    order = sorted(losses, key=lambda n: (losses[n], n))
    size = max(1, int(len(order) * quantile))
    donors = [donor for donor in order[:size] if losses[donor] < losses[name]]
    return rng.choice(donors) if name in order[-size:] and donors else None


def list_mutable(space: Space) -> list[Parameter]:
    """The parameters that may change in the middle of a run."""
    return [
        parameter
        for parameter in space.parameters
        if all(key.startswith(_MUTABLE) and key not in _FIXED for key in parameter.keys)
    ]


def check_population_space(space: Space) -> None:
    """Raise ConfigError where nothing of the space could be perturbed."""
    if not list_mutable(space):
        raise ConfigError(
            Problem(
                f"the space {space.name} has nothing that pbt could change in mid-run",
                why="that is optim.learning_rate, weight_decay and the like: the global batch and the model stay",
                fix="--space lr, or --scheduler asha",
            )
        )


def explore_point(
    point: Point,
    space: Space,
    rng: random.Random,
    resample_probability: float = 0.25,
    factors: tuple[float, float] = (0.8, 1.2),
) -> Point:
    """The donor's settings, perturbed within the space; what must not change in mid-run is inherited."""
    explored = dict(point)
    for parameter in list_mutable(space):
        if all(key in point for key in parameter.keys):
            explored |= _perturb(parameter, point, rng, resample_probability, factors)
    return explored


def _perturb(
    parameter: Parameter, point: Point, rng: random.Random, resample_probability: float, factors: tuple[float, float]
) -> Point:
    resamples = rng.random() < resample_probability
    if isinstance(parameter, Options):
        current = {key: point[key] for key in parameter.keys}
        if resamples or current not in parameter.options:
            return rng.choice(parameter.options)
        index = parameter.options.index(current) + rng.choice((-1, 1))
        return parameter.options[min(max(index, 0), len(parameter.options) - 1)]
    if resamples:
        return {parameter.key: parameter.fit(_draw(parameter, rng))}
    return {parameter.key: parameter.fit(point[parameter.key] * rng.choice(factors))}


def _draw(parameter: Range, rng: random.Random) -> float:
    if parameter.log:
        return math.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high)))
    return rng.uniform(parameter.low, parameter.high)
