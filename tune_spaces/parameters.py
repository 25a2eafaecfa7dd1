"""What a search space is made of, as data: parameters, what makes them active, and how a point settles."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from graphlib import TopologicalSorter
from typing import Any

Point = dict[str, Any]  # dotted config keys -> values
When = tuple[tuple[str, tuple[Any, ...]], ...]  # each key must have one of its values

_ABSENT = object()


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones, in logarithmic steps, or each `step`, if so said."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None
    when: When = ()

    @property
    def name(self) -> str:
        return self.key

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def num_steps(self) -> int:
        """How many steps there are from `low` to `high`; only of a range with a step."""
        assert self.step is not None
        return int(_exact(self.high - self.low) // _exact(self.step))

    def at_step(self, index: int) -> float:
        """The value `index` steps above `low`: 0.3, where floats would add up to 0.30000000000000004."""
        assert self.step is not None
        value = _exact(self.low) + index * _exact(self.step)
        return int(value) if self.whole else float(value)

    def fit(self, value: float) -> float:
        """The value of this range nearest to `value`; of a continuous one, with as few digits as tell apart."""
        value = min(max(value, self.low), self.high)
        if self.step is not None:
            return self.at_step(min(self.num_steps, round((value - self.low) / self.step)))
        if self.whole:
            return round(value)
        width = self.high - self.low
        digits = 3 - math.floor(math.log10(min(abs(value), width) if self.log else width))
        return min(max(round(value, digits), self.low), self.high)


@dataclass(frozen=True)
class Options:
    """One of several settings; each sets the same keys, which are more than one in a tied group.

    `is_grid`: it is gone through in turn, never sampled. `name` is the key, or the free name of the group.
    """

    name: str
    options: tuple[Point, ...]
    is_grid: bool = False
    when: When = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.options[0])


Parameter = Range | Options


@dataclass(frozen=True)
class Space:
    """What a sweep searches. `raw` is it as it was written, fit for JSON; `fixed` the settings of all trials."""

    name: str
    raw: dict[str, Any]
    parameters: tuple[Parameter, ...]
    fixed: Point


def is_active(parameter: Parameter, settled: Mapping[str, Any]) -> bool:
    """Do the keys that `parameter` depends on have one of the values it asks for?"""
    return all(settled.get(key, _ABSENT) in values for key, values in parameter.when)


def order_parents_first(parameters: Iterable[Parameter]) -> list[Parameter]:
    """`parameters` so that each stands behind those that it depends on.

    Raises:
        graphlib.CycleError: some depend on each other in a circle, whose names are its `args[1]`.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    owners = {key: parameter.name for parameter in by_name.values() for key in parameter.keys}
    above = {name: [owners[key] for key, _ in parameter.when if key in owners] for name, parameter in by_name.items()}
    return [by_name[name] for name in TopologicalSorter(above).static_order()]


def settle_point(space: Space, pick: Callable[[Parameter], Point]) -> Point:
    """The point made of what `pick` gives for each active parameter, its keys in the order of the space."""
    settled = dict(space.fixed)
    for parameter in order_parents_first(space.parameters):
        if is_active(parameter, settled):
            settled |= pick(parameter)
    return {key: settled[key] for parameter in space.parameters for key in parameter.keys if key in settled}


def _exact(number: float) -> Decimal:
    """0.1 as the decimal that was written, not as the float beside it."""
    return Decimal(str(round(number, 12)))
