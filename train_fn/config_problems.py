"""What is wrong with a config, in words: where it stands, what is legal there, and a line that would be right."""

import math
import re
import shlex
from typing import Any

from pydantic import ValidationError

from sftray.train_fn.config import Contradiction
from sftray.train_fn.config_names import meant_key
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.config_words import (
    choices,
    is_legal,
    leaf_fields,
    legal_values,
    nearest_choice,
    read_scalar,
    right_value,
    section_keys,
    wants_number,
    wants_text,
)
from sftray.train_fn.config_yaml import KeyPath, Place, Tree, dotted
from sftray.train_fn.errors import Problem

COMMAND_LINE = "command line"  # the origin of what an override sets
OR_NOTHING = "   or leave it out"
_LONGEST = 70  # characters of a value that a message shows

Ranked = tuple[int, Problem]  # the order of its place, and the problem


def explain(error: ValidationError, tree: Tree) -> list[Ranked]:
    """The problems behind a failed validation of `tree.value`, one for each key."""
    found: list[Ranked] = []
    meant: set[str] = set()
    missing: list[KeyPath] = []
    wrong: dict[str, KeyPath] = {}
    for item in error.errors(include_url=False, include_input=False):
        loc: KeyPath = item["loc"]
        if not tree.readable and item["type"] in ("missing", "value_error"):
            continue  # it may well stand in what could not be read
        if item["type"] == "extra_forbidden":
            if _is_refused(loc, tree):
                continue
            problem, key = unknown_key(loc, _value_at(tree, loc), tree.place(loc))
            found.append((tree.place(loc).order, problem))
            meant.add(key)
        elif item["type"] == "value_error":
            found.append(_contradiction(loc, item["ctx"]["error"], tree))
        elif item["type"] == "missing" and len(loc) <= 2 and loc not in tree.places:
            missing.append(loc)
        else:  # a union says one thing for each of its branches: the deepest place is the one that counts
            key, path = _key_of(loc), _reach(loc, tree)
            wrong[key] = max(wrong.get(key, ()), path, key=len)
    found += [_wrong_value(key, path, tree) for key, path in wrong.items() if not _is_refused(path, tree)]
    # A misspelt key is one problem, and not also a missing one.
    return found + [_missing(loc, tree) for loc in missing if not any(_covers(loc, key) for key in meant)]


def unknown_key(path: KeyPath, value: object, place: Place) -> tuple[Problem, str]:
    """The problem of a key that no section has, and the key that was meant ('' if nobody knows)."""
    section, key = dotted(path[:-1]), str(path[-1])
    what = f"{dotted(path)} is not a setting."
    if key in leaf_fields():
        what = f"{key} is written here as one key."
    why = _known_keys(section)
    word, colon, rest = key.partition(":")
    if colon and f"{section}.{word}".lstrip(".") in leaf_fields():
        return Problem(what, place.where, "the space behind the colon is missing", f"{word}: {rest}"), ""
    meant = meant_key(section, key)
    if meant is None:
        return Problem(what, place.where, why, "remove it, or use one of these keys"), ""
    given = None if meant.converts else value
    if meant.key in leaf_fields():
        settings = {meant.key: right_value(meant.key, given, place.written, meant.value)}
    else:
        settings = _section_example(meant.key, value)
    what += "" if meant.key == dotted(path) else f" Did you mean {meant.key}?"
    return Problem(what, place.where, meant.note or why, fix_line(settings, place)), meant.key


def not_a_section(key: str, value: object, place: Place) -> Problem:
    """`value` stands where the keys of the section `key` should."""
    what = f"{key} is a section with keys of its own, not {_shown(value, place)}"
    why = _known_keys(key)
    if isinstance(value, str) and value.partition(":")[0] in section_keys()[key]:
        why = "the space behind the colon is missing"
    return Problem(what, place.where, why, fix_line(_section_example(key, None), place))


def fix_line(settings: dict[str, Any], place: Place) -> str:
    """`settings` (dotted keys, all of one section) as they are written at `place`: a line of YAML, or overrides."""
    if place.is_override:
        return " ".join(shlex.quote(f"{key}={write_value(value)}") for key, value in settings.items())
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return cut(", ".join(f"{key}: {write_value(value)}" for key, value in nested.items()), 200)


def _section_example(section: str, given: object) -> dict[str, Any]:
    """Settings of `section`: those of `given` that are right, else its first key."""
    keys = [f"{section}.{key}" for key in section_keys()[section]]
    values = {f"{section}.{key}": value for key, value in given.items()} if isinstance(given, dict) else {}
    right = {key: values[key] for key in keys if key in values and is_legal(key, values[key])}
    return right or {keys[0]: right_value(keys[0], None)}


def _wrong_value(key: str, path: KeyPath, tree: Tree) -> Ranked:
    value, place = _value_at(tree, path), tree.place(path)
    whole = _value_at(tree, tuple(key.split(".")))
    if key in section_keys():
        return place.order, not_a_section(key, value, place)
    legal, why = legal_values(key), _trap(key, path, value, place)
    fix = fix_line({key: right_value(key, whole, _written(whole, tuple(key.split(".")), tree))}, place)
    if value is None:
        what, why = f"{dotted(path)} has no value", f"{key} must be {legal}"
        fix += "" if leaf_fields()[key][1].is_required() else OR_NOTHING
    elif key == "name" and isinstance(value, str):
        what, why = _bad_name(value)
    elif value in ("", []):
        what, why = f"{dotted(path)} is empty", f"{key} must be {legal}"
    elif dotted(path) != key:
        what = f"{dotted(path)} is {_shown(value, place)}, and {key} must be {legal}"
    else:
        what = f"{key} must be {legal}, not {_shown(value, place)}"
        if choices(key) and (near := nearest_choice(key, value)):
            what += f". Did you mean {near}?"
    return place.order, Problem(what, place.where, why, fix)


def _trap(key: str, path: KeyPath, value: object, place: Place) -> str | None:
    """Why YAML read something else than what the person saw."""
    written = place.written
    if isinstance(value, float) and not math.isfinite(value):
        return "it must be finite"
    if isinstance(value, bool) and written is not None:
        if written.lower() not in ("true", "false"):
            return f"{written} without quotes means {str(value).lower()} in YAML"
        return f"{written} without quotes is no text in YAML" if wants_text(key) else None
    if isinstance(value, int | float) and wants_text(key) and not wants_number(path):
        return f"{written} without quotes is a number in YAML"
    if isinstance(value, str) and written is None and read_scalar(value) is not None:
        return "between quotes it is text"
    return None


def _bad_name(name: str) -> tuple[str, str]:
    rule = "a run's name is that of its folder: 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
    odd = sorted(set(re.findall(r"[^A-Za-z0-9._-]", name)))
    if not name:
        return "name is empty", rule
    if "/" in name or "\\" in name:
        return f"name is a path, not one name: {cut(name)}", rule
    if odd:
        return f"name holds {' '.join(odd[:5])!r}, which no name may: {cut(name)}", rule
    if re.search("[A-Z]", name):
        return f"name has capital letters: {cut(name)}", rule
    if len(name) > 63:
        return f"name is {len(name)} characters long, and 63 are the most: {cut(name)}", rule
    return f"name begins with '{name[0]}': {cut(name)}", rule


def _contradiction(loc: KeyPath, error: Contradiction, tree: Tree) -> Ranked:
    """Keys that cannot stand together, shown at the last of them."""
    at = {key: tree.places[path] for key in error.keys if (path := tuple(key.split("."))) in tree.places}
    place = max(at.values(), key=lambda place: place.order, default=tree.place(loc))
    if error.fix is not None:
        return place.order, Problem(str(error), place.where, fix=fix_line(error.fix, place))
    why = " and ".join(
        f"{'the command line' if spot.is_override else spot.where} sets {key}" for key, spot in at.items()
    )
    return place.order, Problem(str(error), place.where, why, "keep one of the two")


def _missing(loc: KeyPath, tree: Tree) -> Ranked:
    key, place = dotted(loc), tree.place(loc)
    if key in section_keys():
        key = f"{key}.{section_keys()[key][0]}"
    fix = fix_line({key: right_value(key, None)}, place)
    what = f"{key} is missing" + (" (or model.scratch, for an untrained model)" if key == "model.name" else "")
    return place.order, Problem(what, place.where, f"it must be {legal_values(key)}, and has no default", fix)


def _known_keys(section: str) -> str:
    section = section if section in section_keys() else ""
    return f"{section or 'a config'} knows: {', '.join(sorted(section_keys()[section]))}"


def _key_of(loc: KeyPath) -> str:
    """The leaf or section that `loc`, which may go on into list items and union branches, belongs to."""
    return next(key for n in (2, 1) if (key := dotted(loc[:n])) in leaf_fields() or key in section_keys())


def _reach(loc: KeyPath, tree: Tree) -> KeyPath:
    """`loc` without the names of union branches: the path of something that was given."""
    path: KeyPath = ()
    for part in loc:
        path = (*path, part) if (*path, part) in tree.places else path
    return path


def _is_refused(path: KeyPath, tree: Tree) -> bool:
    """Has `path`, or what it is inside of, a problem of its own already?"""
    return any(path[: len(refused)] == refused for refused in tree.refused)


def _covers(loc: KeyPath, key: str) -> bool:
    return key == dotted(loc) or key.startswith(dotted(loc) + ".")


def _value_at(tree: Tree, path: KeyPath) -> Any:
    value = tree.value
    for part in path:
        value = value[part]
    return value


def _written(value: object, path: KeyPath, tree: Tree) -> str | list[str] | None:
    """`value` as it stands in the text; of a list, its items."""
    if isinstance(value, list):
        return [tree.place((*path, i)).written or str(item) for i, item in enumerate(value)]
    return tree.place(path).written


def _shown(value: object, place: Place) -> str:
    scalar = not isinstance(value, dict | list)
    return cut(place.written if scalar and place.written is not None else write_value(value))


def cut(text: str, longest: int = _LONGEST) -> str:
    """`text`, or its beginning if it is long."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
