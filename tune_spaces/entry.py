"""One entry of a space as it was written, and what is wrong with its name and its shape."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.config_words import leaf_fields, section_keys
from sftray.train_fn.config_yaml import KeyPath, Tree
from sftray.train_fn.errors import Problem
from sftray.tune_spaces.searchable import (
    SCRATCH_PREFIX,
    can_be_set,
    describe_keys,
    example_spec,
    find_meant,
    find_reason,
    is_key,
    write_entry,
)

RANGES = ("log_uniform", "uniform", "int")
KINDS = (*RANGES, "choice", "grid", "value", "tied")
# What stands beside a kind -> the kinds beside which it may.
MODIFIERS = {"when": KINDS, "log": ("int",), "step": ("int", "uniform")}
_SAID_ELSEWHERE = {
    "loguniform": "log_uniform",
    "log": "log_uniform",
    "log_uniform_values": "log_uniform",
    "float": "uniform",
    "range": "uniform",
    "quniform": "uniform",
    "min": "uniform",
    "max": "uniform",
    "randint": "int",
    "integer": "int",
    "lograndint": "int",
    "qrandint": "int",
    "categorical": "choice",
    "values": "choice",
    "options": "choice",
    "one_of": "choice",
    "grid_search": "grid",
    "fixed": "value",
    "const": "value",
    "constant": "value",
    "linked": "tied",
    "together": "tied",
}


@dataclass(frozen=True)
class Entry:
    """`name: spec` of the space in `tree`, which is put over `config`."""

    name: str
    spec: Any
    tree: Tree
    config: RunConfig

    @property
    def kind(self) -> str:
        """The one kind in `spec`, which has been found to have one."""
        kind: str = next(word for word in self.spec if word not in MODIFIERS)
        return kind

    @property
    def is_fixed(self) -> bool:
        return self.kind == "value" and "when" not in self.spec

    def refuse(self, what: str, why: str | None, fix: object, *inner: str | int) -> None:
        """Adds a problem; `fix` is a line, or what should stand in place of `spec`; `inner` where in the entry."""
        line = fix if isinstance(fix, str) else write_entry(self.name, fix)
        place = self.tree.place((self.name, *inner))
        self.tree.problems.append((place.order, Problem(what, place.where, why, line)))

    def change(self, **parts: object) -> dict[str, Any]:
        """The spec with other `parts`, for a fix; without those that are None."""
        return {word: value for word, value in (self.spec | parts).items() if value is not None}

    def written(self, *inner: str | int) -> str | None:
        place = self.tree.places.get((self.name, *inner))
        return None if place is None else place.written

    def shown(self, value: object, *inner: str | int) -> str:
        """`value` as it was written."""
        return self.written(*inner) or write_value(value)


def config_path(path: KeyPath) -> KeyPath | None:
    """The path in a config of what stands at `path` in a space; None for a number of the space's own."""
    match path:
        case (str(section), str(key), *rest) if (
            section in section_keys()
        ):  # not as it should be, but read as it is meant
            return config_path((f"{section}.{key}", *rest))
        case (_, "tied", int(), str(key), *rest):
            return (*key.split("."), *rest)
        case (_, "when", str(key), int(), *rest) | (_, "when", str(key), *rest):
            return (*key.split("."), *rest)
        case (_, str(kind), *_) if kind in (*RANGES, "step"):
            return None
        case (str(key), "value", *rest) | (str(key), int(), *rest) | (str(key), _, int(), *rest) | (str(key), *rest):
            return (*key.split("."), *rest)
    return None


def check_name(entry: Entry) -> bool:
    """Is the name a key of the config, or one of its own for a tied group? If not, the problem is added."""
    name, spec = entry.name, entry.spec
    if isinstance(spec, dict) and "tied" in spec:
        return _check_group_name(entry)
    if name and name in section_keys():
        inside = spec if isinstance(spec, dict) else {}
        inner = next((f"{name}.{key}" for key in inside if f"{name}.{key}" in leaf_fields()), None)
        key = inner or f"{name}.{section_keys()[name][0]}"
        fix = write_entry(key, spec[key.rpartition(".")[2]] if inner else example_spec(key, entry.config))
        entry.refuse(f"{name} is a section of the config", "a space names its keys whole, with the dot", fix)
        return False
    return check_key(entry, name)


def check_key(entry: Entry, key: str, *inner: str | int) -> bool:
    """Is `key` one of the config's? If not, the problem is added, with the key that was meant."""
    if is_key(key):
        return True
    meant = find_meant(key)
    what = f"{key} is not a setting."
    if meant is None:
        entry.refuse(what, describe_keys(key), "remove it, or use one of these keys", *inner)
        return False
    reason = find_reason(meant.key)
    why = f"{meant.key} cannot be searched: {reason}" if reason else meant.note or describe_keys(key)
    keeps = isinstance(entry.spec, dict) and not reason and not inner and not meant.converts
    fix = entry.spec if keeps else example_spec(meant.key, entry.config)
    fix = write_entry(meant.key, fix) if can_be_set(meant.key) else "remove it"
    entry.refuse(f"{what} Did you mean {meant.key}?", why, fix, *inner)
    return False


def _check_group_name(entry: Entry) -> bool:
    name = entry.name
    if "." not in name and name not in leaf_fields() and name not in section_keys():
        return True
    why = "its keys stand inside, and it needs a name of its own, without a dot"
    free = name.replace(".", "_") if "." in name else f"{name}_group"
    entry.refuse(f"{name} names a tied group", why, write_entry(free, entry.spec))
    return False


def check_shape(entry: Entry) -> bool:
    """Is the spec a mapping with one kind and what may stand beside it? If not, the problems are added."""
    spec = entry.spec
    if not isinstance(spec, dict):
        entry.refuse(*_no_mapping(entry))
        return False
    unknown = [word for word in spec if word not in KINDS and word not in MODIFIERS]
    kinds = [word for word in spec if word in KINDS]
    for word in unknown:
        entry.refuse(*_unknown_kind(entry, word), word)
    if unknown:
        return False
    if len(kinds) != 1:
        what = f"{entry.name} has {' and '.join(kinds)}" if kinds else f"{entry.name} does not say how to search it"
        why = f"it needs one of: {', '.join(KINDS)}"
        entry.refuse(what, why, "keep one of them" if kinds else example_spec_of(entry))
        return False
    legal = [_check_modifier(entry, word) for word in spec if word in MODIFIERS]
    return all(legal)


def example_spec_of(entry: Entry) -> dict[str, Any]:
    if is_key(entry.name):
        return example_spec(entry.name, entry.config)
    options = [
        {"optim.learning_rate": rate, "train.global_batch_size": size} for rate, size in ((1e-4, 32), (2e-4, 64))
    ]
    return {"tied": options}


def _no_mapping(entry: Entry) -> tuple[str, str, object]:
    name, spec = entry.name, entry.spec
    if spec is None:
        return f"{name} has nothing behind it", "a space says how each key is searched", example_spec_of(entry)
    what = f"{name} is {entry.shown(spec)}, which does not say how to search it"
    if isinstance(spec, list):
        return what, "a list of values to try is a choice", {"choice": spec}
    return what, "a setting that all trials share is a value", {"value": spec}


def _unknown_kind(entry: Entry, word: str) -> tuple[str, str, object]:
    near = _SAID_ELSEWHERE.get(word) or next(iter(difflib.get_close_matches(word, [*KINDS, *MODIFIERS], n=1)), None)
    what = f"{entry.name}: {word} is no way to search." + (f" Did you mean {near}?" if near else "")
    why = f"there are: {', '.join(KINDS)}"
    if near is None or near in entry.spec or word in ("min", "max", "log_uniform_values"):
        return what, why, example_spec_of(entry)
    return what, why, {near if key == word else key: value for key, value in entry.spec.items()}


def _check_modifier(entry: Entry, word: str) -> bool:
    if entry.kind in MODIFIERS[word]:
        return True
    why = f"it goes with {' and '.join(MODIFIERS[word])}"
    fix = entry.change(**{word: None})
    if word == "log" and entry.kind == "uniform":
        why, fix = "a range in logarithmic steps is log_uniform", {"log_uniform": entry.spec["uniform"]}
    entry.refuse(f"{entry.name}: {entry.kind} knows no {word}", why, fix, word)
    return False


def check_searchable(entry: Entry, key: str, *inner: str | int) -> bool:
    """May `key` be searched, or set if the entry only sets it? If not, the problem is added, with the reason."""
    for problem in _find_refusals(entry, key):
        entry.refuse(*problem, *inner)
        return False
    return True


def _find_refusals(entry: Entry, key: str) -> Iterator[tuple[str, str, str]]:
    reason = find_reason(key)
    if not can_be_set(key):
        yield f"{key} cannot stand in a space", str(reason), "remove it, and set it in the config if need be"
    elif reason is not None and not entry.is_fixed:
        yield f"{key} cannot be searched", reason, write_entry(key, example_spec(key, entry.config))
    if not key.startswith(SCRATCH_PREFIX):
        return
    word, scratch = key.removeprefix(SCRATCH_PREFIX), entry.config.model.scratch
    if scratch is None:
        why = f"the config trains a pretrained model, {entry.config.model.name}, whose shape is what it is"
        yield f"{key} has no effect", why, "remove it, or take a config that has model.scratch"
    elif word not in scratch and (near := difflib.get_close_matches(word, scratch, n=1, cutoff=0.9)):
        meant = SCRATCH_PREFIX + near[0]
        what = f"{key} is not in the config. Did you mean {meant}?"
        yield what, f"its model.scratch has: {', '.join(scratch)}", write_entry(meant, entry.spec)
