"""`KEY=VALUE` settings of the command line, put over those of the config file."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sftray.train_fn.config_problems import COMMAND_LINE, cut, fix_line, not_a_section, unknown_key
from sftray.train_fn.config_words import SCRATCH, leaf_fields, right_value, section_keys, wants_number
from sftray.train_fn.config_yaml import KeyPath, Place, Tree, dotted, read_yaml
from sftray.train_fn.errors import Problem

_AFTER_FILE = 10**9  # the order of the first override: behind every line of the file

# Of each pair at most one can be set: one that is set here unsets the other of the file.
_RIVALS: dict[KeyPath, KeyPath] = {
    ("train", "global_batch_size"): ("train", "gradient_accumulation_steps"),
    ("train", "gradient_accumulation_steps"): ("train", "global_batch_size"),
    ("train", "max_steps"): ("train", "max_examples"),
    ("train", "max_examples"): ("train", "max_steps"),
    ("model", "name"): SCRATCH,
    SCRATCH: ("model", "name"),
}
# What was chosen for an untrained model is not that of a trained one, which mostly brings its own.
_OF_SCRATCH: tuple[KeyPath, ...] = (("model", "tokenizer"), ("model", "chat_template"))


def apply_overrides(overrides: Sequence[str], tree: Tree) -> None:
    """Sets what `overrides` say in `tree`, and adds their problems to it."""
    in_file = {path for path in _RIVALS if _is_set(tree.value, path)}
    seen: dict[KeyPath, Place] = {}
    for index, text in enumerate(overrides):
        place = Place(
            f"{COMMAND_LINE}: {cut(text) or repr(text)}", COMMAND_LINE, _AFTER_FILE + index, is_override=True
        )
        for path, value, read in _settings(text, place, tree):
            if path in seen:
                what = f"{dotted(path)} is set twice on the command line"
                why = f"the first time by {seen[path].where.removeprefix(COMMAND_LINE + ': ')}"
                tree.problems.append((place.order, Problem(what, place.where, why, "keep one of the two")))
            seen[path] = place
            _set(tree, path, value, read)
    here = {path[:2]: place for path, place in seen.items() if _is_set(tree.value, path)}
    for path, rival in _RIVALS.items():
        if path in here and path not in in_file and rival in in_file and rival not in here:
            unset = replace(here[path], origin=f"unset: {dotted(path)} on the command line")
            _set(tree, rival, None, Tree(places={rival: unset}))
            for other in _OF_SCRATCH if rival == SCRATCH else ():
                if other not in seen and _is_set(tree.value, other):
                    _set(tree, other, None, Tree(places={other: unset}))


def _settings(text: str, place: Place, tree: Tree) -> Iterator[tuple[KeyPath, Any, Tree]]:
    """What one override sets: (path, value, the text it was read from), several if it is a whole section."""
    key, equals, value_text = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    read = read_yaml(value_text, partial(_place_in, place), wants_number, path)
    problem = _bad_key(path, bool(equals), read.value, place)
    if problem is not None:
        tree.problems.append((place.order, problem))
        return
    tree.problems += read.problems
    if path[0] not in section_keys() or len(path) > 1:
        if read.readable:
            yield path, read.value, read
    elif isinstance(read.value, dict):
        for name, value in read.value.items():
            yield (*path, name), value, read
    elif read.readable:
        tree.problems.append((place.order, not_a_section(dotted(path), read.value, read.place(path))))


def _place_in(place: Place, line: int, written: str | None) -> Place:
    """An override has one place, whatever the line."""
    return replace(place, written=written)


def _bad_key(path: KeyPath, has_value: bool, value: object, place: Place) -> Problem | None:
    key = dotted(path)
    if not all(path):
        return Problem("the key is empty, or a part of it", place.where, None, "optim.learning_rate=2.0e-5")
    if not has_value:
        example = key if key in leaf_fields() else "optim.learning_rate"
        fix = fix_line({example: right_value(example, None)}, place)
        return Problem("this is not KEY=VALUE", place.where, "a setting here is a dotted key and its value", fix)
    if key in leaf_fields() or key in section_keys() or path[:2] == SCRATCH:
        return None
    for n in (1, 2):
        if (leaf := dotted(path[:n])) in leaf_fields():
            return _one_value(path[:n], path, right_value(leaf, value), place)
    return unknown_key(path, value, place)[0]


def _one_value(leaf: KeyPath, path: KeyPath, value: object, place: Place) -> Problem:
    """`path` goes on inside of `leaf`, which could be set to `value` as a whole."""
    what = f"{dotted(leaf)} is one value, and has no keys of its own"
    return Problem(what, place.where, f"{dotted(path)} would be inside of it", fix_line({dotted(leaf): value}, place))


def _set(tree: Tree, path: KeyPath, value: object, read: Tree) -> None:
    """Puts `value` and its places at `path`, in place of all that was there. Keys inside a value are a problem."""
    inside = tree.value
    for n, part in enumerate(path[:-1], 1):
        if inside.get(part) is None:
            inside[part] = {}
        inside = inside[part]
        if not isinstance(inside, dict):
            if n > len(SCRATCH):  # else the file holds no section there, which is a problem already
                place = read.place(path)
                tree.problems.append((place.order, _one_value(path[:n], path, inside, place)))
            return
        tree.places.setdefault(path[:n], read.place(path))
    inside[path[-1]] = value
    tree.refused = {old for old in tree.refused if old[: len(path)] != path} | read.refused
    for old in [place for place in tree.places if place[: len(path)] == path]:
        del tree.places[old]
    tree.places |= {new: place for new, place in read.places.items() if new[: len(path)] == path}


def _is_set(values: Any, path: KeyPath) -> bool:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values is not None
