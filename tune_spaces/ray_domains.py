"""Distributions of ray.tune, as the plain values of our own spaces, which sweep.json can hold."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from sftray.train_fn.errors import Problem

_FIX = "tune.uniform, loguniform, quniform, randint, lograndint, qrandint, choice or grid_search"


def write_plain(key: str, spec: Any) -> Any:
    """What `spec` of `key` says, in plain values: lists, mappings, texts and numbers; a Problem if it cannot be said.

    `tune.loguniform(1e-5, 1e-3)` becomes `{"log_uniform": [1e-5, 1e-3]}`; upper bounds that are excluded there
    (randint) become included ones. What is plain already stays as it is.
    """
    if isinstance(spec, Mapping) and set(spec) == {"grid_search"}:
        spec = {"grid": spec["grid_search"]}
    if type(spec).__module__.startswith("ray.tune"):
        spec = _convert(key, spec)
    return spec if isinstance(spec, Problem) else _to_plain(key, spec)


def _to_plain(key: str, value: Any) -> Any:
    """`value` with lists for tuples and Python's own numbers for numpy's."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        items = [_to_plain(key, item) for item in value]
        return next((item for item in items if isinstance(item, Problem)), items)
    if isinstance(value, Mapping) and all(isinstance(word, str) for word in value):
        inner = {word: _to_plain(key, item) for word, item in value.items()}
        return next((item for item in inner.values() if isinstance(item, Problem)), inner)
    what = f"{key}: {type(value).__name__} is no value that a space can hold"
    return Problem(what, None, "a sweep keeps its space as JSON, to go on with it later", f"{key}: {_FIX}")


def _convert(key: str, domain: Any) -> Any:
    from ray.tune.search import sample

    sampler = domain.get_sampler() if isinstance(domain, sample.Float | sample.Integer) else None
    step = sampler.q if isinstance(sampler, sample.Quantized) else None
    inner = sampler.get_sampler() if isinstance(sampler, sample.Quantized) else sampler
    is_log = isinstance(inner, sample.LogUniform)
    if isinstance(domain, sample.Categorical):
        kind = "grid" if isinstance(domain.get_sampler(), sample.Grid) else "choice"
        return {kind: list(domain.categories)}
    if not isinstance(inner, sample.Uniform | sample.LogUniform):
        return _refuse(key, domain, inner)
    if is_log and step not in (None, 1):
        why = "steps of a logarithmic range would not be equal"
        return Problem(f"{key}: a logarithmic range with steps cannot be searched", None, why, f"{key}: {_FIX}")
    if isinstance(domain, sample.Integer):
        return _convert_whole(domain.lower, domain.upper, is_log, step)
    if step is None:
        return {"log_uniform" if is_log else "uniform": [domain.lower, domain.upper]}
    low, high = _to_multiples(domain.lower, domain.upper, step)
    return {"uniform": [low, high], "step": step}


def _convert_whole(lower: int, upper: int, is_log: bool, step: int | None) -> dict[str, Any]:
    """Ray excludes the upper bound of whole numbers, unless they come in steps."""
    if step is None or step == 1:
        return {"int": [lower, upper - 1]} | ({"log": True} if is_log else {})
    low, high = _to_multiples(lower, upper, step)
    return {"int": [low, high], "step": step}


def _to_multiples(lower: float, upper: float, step: float) -> tuple[float, float]:
    """The first and the last multiple of `step` between the bounds, which Ray counts from 0."""
    low, high = math.ceil(round(lower / step, 9)), math.floor(round(upper / step, 9))
    return round(low * step, 12), round(high * step, 12)


def _refuse(key: str, domain: Any, sampler: Any) -> Problem:
    if type(domain).__name__ == "Function":
        what, why = f"{key}: sample_from cannot be searched", "a function cannot be written down and run again later"
    elif type(sampler).__name__ == "_Normal":
        what, why = f"{key}: a normal distribution cannot be searched", "a space has bounds, and it has none"
    else:
        what, why = f"{key}: {type(domain).__name__} cannot be searched", "it is no distribution that is known here"
    return Problem(what, None, why, f"{key}: {_FIX}")
