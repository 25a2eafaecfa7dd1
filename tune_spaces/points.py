"""How a sampled point becomes the config of a trial."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from sftray.train_fn.config import Contradiction, RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.errors import ConfigError, Problem
from sftray.tune_spaces.parameters import Options, Parameter, Point, Range, Space, settle_point
from sftray.tune_spaces.searchable import RIVALS


def fixed_values(space: Space) -> Point:
    """The settings that all trials share, put over the config before anything else."""
    return dict(space.fixed)


def apply_point(resolved: Resolved, point: Point, origin: str) -> Resolved:
    """The config with the values of `point`, each with `origin`. Of two rival keys, one that is set unsets the other.

    Raises:
        ConfigError: they do not make a legal config.
    """
    values = resolved.config.model_dump()
    origins = dict(resolved.origin)
    for key, value in point.items():
        _set(values, key, value)
        origins[key] = origin
        rival = RIVALS.get(key)
        if rival is not None and rival not in point and value is not None:
            _set(values, rival, None)
            origins[rival] = f"unset: {key} of {origin}"
    try:
        return replace(resolved, config=RunConfig.model_validate(values), origin=origins)
    except ValidationError as error:
        raise ConfigError(*_explain(error, point, origin)) from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values[section]
    values[leaf] = value


def _explain(error: ValidationError, point: Point, origin: str) -> Iterator[Problem]:
    settings = ", ".join(f"{key}={write_value(value)}" for key, value in point.items())
    for item in error.errors(include_url=False, include_input=False):
        cause = item.get("ctx", {}).get("error")
        what = str(cause) if isinstance(cause, Contradiction) else f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
        yield Problem(
            what, origin, f"it comes of {settings}", "narrow the space, or change the config it is put over"
        )


def check_space(space: Space, resolved: Resolved) -> None:
    """See that every end of the space gives a legal config, before anything starts.

    Raises:
        ConfigError: with what is wrong at each.
    """
    problems: list[Problem] = []
    for parameter in space.parameters:
        for corner in _list_corners(parameter):
            chosen = {parameter.name: corner}
            point = settle_point(space, lambda p, chosen=chosen: chosen.get(p.name, _list_corners(p)[0]))  # type: ignore[misc]  # mypy sees no lambda's default
            try:
                apply_point(resolved, {**space.fixed, **point, **corner}, f"space {space.name}")
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _list_corners(parameter: Parameter) -> list[Point]:
    if isinstance(parameter, Options):
        return list(parameter.options)
    return [{parameter.key: parameter.fit(end)} for end in (parameter.low, parameter.high)]


__all__ = ["Range", "apply_point", "check_space", "fixed_values"]
