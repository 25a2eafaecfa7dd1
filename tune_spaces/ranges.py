"""Entries of a space that are ranges of numbers: `{log_uniform: [low, high]}`, `{uniform: …}`, `{int: …}`."""

import math
from typing import Any

from sftray.train_fn.config_words import read_scalar
from sftray.tune_spaces.entry import Entry
from sftray.tune_spaces.parameters import Range, When
from sftray.tune_spaces.searchable import example_spec, fits, legal_words, takes_numbers


def read_range(entry: Entry, when: When) -> Range | None:
    """The range of `entry`; None if something is wrong with it, which is added to the problems."""
    kind = entry.kind
    bounds = entry.spec[kind]
    if not (_check_numbers(entry, bounds) and _check_kind(entry, bounds) and _check_bounds(entry, bounds)):
        return None
    log, step = entry.spec.get("log", False), entry.spec.get("step")
    if not (_check_log(entry, log) and _check_step(entry, step)):
        return None
    low, high = bounds
    is_log = kind == "log_uniform" or log is True
    found = Range(entry.name, low, high, is_log, kind == "int", step, when)
    if step is None:
        return found
    # The highest that can come, which need not be the bound: [1, 8] in steps of 2 ends at 7.
    return Range(entry.name, low, found.at_step(found.num_steps), is_log, kind == "int", step, when)


def _check_numbers(entry: Entry, bounds: Any) -> bool:
    kind, name = entry.kind, entry.name
    if not isinstance(bounds, list) or len(bounds) != 2:
        what = f"{name}: {kind} takes [low, high], not {entry.shown(bounds, kind)}"
        several = isinstance(bounds, list) and len(bounds) > 2 and all(fits(name, b, entry.config) for b in bounds)
        fix = {"choice": bounds} if several else example_spec(name, entry.config)
        entry.refuse(what, "values one by one are a choice" if several else None, fix, kind)
        return False
    read = [read_scalar(bound) if isinstance(bound, str) else bound for bound in bounds]
    can_mend = all(is_number(bound) for bound in read)
    for index, bound in enumerate(bounds):
        if is_number(bound):
            continue
        finite = not isinstance(bound, float)
        what = f"{name}: {kind} takes two numbers, and {entry.shown(bound, kind, index)} is none"
        why = "between quotes it is text" if can_mend else None if finite else "it must be finite"
        fix = entry.change(**{kind: read}) if can_mend else example_spec(name, entry.config)
        entry.refuse(what, why, fix, kind, index)
        return False
    return True


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_kind(entry: Entry, bounds: list[float]) -> bool:
    """Does the key take such numbers?"""
    kind, name = entry.kind, entry.name
    takes_whole, takes_others = takes_numbers(name, entry.config)
    if not takes_whole and not takes_others:
        what = f"{name} must be {legal_words(name, entry.config)}, and {kind} gives numbers"
        entry.refuse(what, None, example_spec(name, entry.config), kind)
        return False
    whole = [round(bound) for bound in bounds]
    if kind != "int" and not takes_others:
        what = f"{name} must be {legal_words(name, entry.config)}, and {kind} gives fractions"
        fix: dict[str, Any] = {"int": whole} | ({"log": True} if kind == "log_uniform" else {})
        entry.refuse(what, "a range of whole numbers is int", fix, kind)
        return False
    if kind == "int" and any(not isinstance(bound, int) for bound in bounds):
        odd = next(index for index, bound in enumerate(bounds) if not isinstance(bound, int))
        what = f"{name}: int takes whole numbers, and {entry.shown(bounds[odd], kind, odd)} is none"
        fix = {"uniform": bounds} if takes_others and bounds != whole else entry.change(int=whole)
        entry.refuse(what, None, fix, kind, odd)
        return False
    return True


def _check_bounds(entry: Entry, bounds: list[float]) -> bool:
    kind, name = entry.kind, entry.name
    low, high = bounds
    if low >= high:
        shown = f"{entry.shown(low, kind, 0)} is not below {entry.shown(high, kind, 1)}"
        what = f"{name}: {kind} is [low, high], and {shown}"
        entry.refuse(what, None, {"value": low} if low == high else entry.change(**{kind: [high, low]}), kind)
        return False
    if low <= 0 and (kind == "log_uniform" or entry.spec.get("log") is True):
        what = f"{name}: a logarithmic range begins above 0, not at {entry.shown(low, kind, 0)}"
        lowest = 1 if kind == "int" else high / 1000
        fix = entry.change(**{kind: [lowest, high]}) if lowest < high else example_spec(name, entry.config)
        entry.refuse(what, "from 0 up there is no end of such steps", fix, kind, 0)
        return False
    for index, bound in enumerate(bounds):
        if not fits(name, bound, entry.config):
            what = f"{name} must be {legal_words(name, entry.config)}, and {entry.shown(bound, kind, index)} is not"
            entry.refuse(what, None, example_spec(name, entry.config), kind, index)
            return False
    return True


def _check_log(entry: Entry, log: object) -> bool:
    if not isinstance(log, bool):
        what = f"{entry.name}: log is true or false, not {entry.shown(log, 'log')}"
        entry.refuse(what, None, entry.change(log=True), "log")
        return False
    if log and "step" in entry.spec:
        why = "steps of a logarithmic range would not be equal"
        entry.refuse(f"{entry.name} has log and step", why, entry.change(step=None), "step")
        return False
    return True


def _check_step(entry: Entry, step: Any) -> bool:
    if "step" not in entry.spec:
        return True
    low, high = entry.spec[entry.kind]
    must = "a whole number" if entry.kind == "int" else "a number"
    legal = is_number(step) and 0 < step <= high - low and (entry.kind != "int" or isinstance(step, int))
    if legal:
        return True
    what = f"{entry.name}: step must be {must} above 0 and at most {high - low:g}, not {entry.shown(step, 'step')}"
    why = f"the range is {high - low:g} wide"
    entry.refuse(what, why, entry.change(step=1 if entry.kind == "int" else (high - low) / 4), "step")
    return False
