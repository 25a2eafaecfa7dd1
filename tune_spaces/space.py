"""Search spaces: from YAML, from the ones that ship, or from Python, to checked parameters."""

import copy
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_words import wants_number
from sftray.train_fn.config_yaml import KeyPath, Place, Tree, read_yaml
from sftray.train_fn.errors import ConfigError, Problem
from sftray.tune_spaces.conditions import check_conditions, read_when
from sftray.tune_spaces.entry import RANGES, Entry, check_name, check_searchable, check_shape, config_path
from sftray.tune_spaces.options import read_options, read_tied
from sftray.tune_spaces.parameters import Options, Parameter, Space
from sftray.tune_spaces.ranges import read_range
from sftray.tune_spaces.ray_domains import write_plain
from sftray.tune_spaces.searchable import EXAMPLES, RIVALS, SEED, write_entry

SPACES = Path(__file__).parent / "spaces"
MAX_BYTES = 1 << 20
_EXAMPLE = write_entry("optim.learning_rate", EXAMPLES["optim.learning_rate"])


def list_spaces(folder: Path = SPACES) -> list[str]:
    """The names of the spaces that ship."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_space(name_or_path: str, config: RunConfig, folder: Path = SPACES) -> Space:
    """The space in a YAML file, or the one of that name that ships, for runs of `config`.

    Raises:
        ConfigError: there is no such file or space, or what it holds is wrong: every problem, with its line.
    """
    if os.path.isfile(name_or_path):
        path, label = Path(name_or_path), name_or_path
    elif name_or_path in list_spaces(folder):
        path, label = folder / f"{name_or_path}.yaml", f"space {name_or_path}"
    else:
        raise ConfigError(_explain_missing(name_or_path, list_spaces(folder)))
    label = _printable(label)
    tree = read_yaml(_read_text(path, label), lambda line, text: _place_at(label, line, text), _wants_number)
    if tree.readable and tree.value is None:
        tree.problems.append((0, _empty(label)))
    elif tree.readable and not isinstance(tree.value, dict):
        why = "a space is lines of key: how to search it"
        tree.problems.append((0, Problem("the file holds no settings", f"{label}:1", why, _EXAMPLE)))
    return _build_space(path.stem, tree, config, label)


def parse_space(raw: Mapping[str, Any], name: str, config: RunConfig) -> Space:
    """The space that Python gives as `raw`, whose values may be distributions of ray.tune, for runs of `config`.

    Raises:
        ConfigError: with every problem of it.
    """
    label = _printable(f"space {name}")
    tree = Tree({}, {(): Place(label, label, 0)})
    for order, (key, spec) in enumerate(raw.items(), 1):
        place = Place(label, label, order)
        if not isinstance(key, str):
            problem = Problem(f"{key!r} is no key: it is not text", label, None, _EXAMPLE)
            tree.problems.append((order, problem))
            continue
        tree.places[(key,)] = place
        plain = write_plain(key, spec)
        if isinstance(plain, Problem):
            tree.problems.append((order, Problem(plain.what, label, plain.why, plain.fix)))
            tree.refused.add((key,))
        else:
            tree.value[key] = plain
    if not raw:
        tree.problems.append((0, _empty(label)))
    return _build_space(name, tree, config, label)


def _build_space(name: str, tree: Tree, config: RunConfig, label: str) -> Space:
    values: dict[str, Any] = tree.value if isinstance(tree.value, dict) else {}
    entries = {key: Entry(key, spec, tree, config) for key, spec in values.items()}
    if not values and not tree.problems:
        tree.problems.append((0, _empty(label)))
    read = [found for entry in entries.values() if (found := _read_entry(entry)) is not None]
    fixed = {
        key: value
        for options in read
        if isinstance(options, Options) and entries[options.name].is_fixed
        for key, value in options.options[0].items()
    }
    parameters = tuple(parameter for parameter in read if parameter.name not in fixed)
    check_conditions(parameters, fixed, entries)
    tree.problems += _check_together(read, parameters, tree)
    if not tree.problems and not parameters:
        what, why = "the space searches nothing", "it only sets values that all trials share"
        tree.problems.append((0, Problem(what, label, why, f"add a key to search: {_EXAMPLE}")))
    if tree.problems:
        ranked = sorted(tree.problems, key=lambda found: found[0])
        raise ConfigError(*dict.fromkeys(_printed(problem) for _, problem in ranked))
    return Space(name, copy.deepcopy(values), parameters, fixed)


def _read_entry(entry: Entry) -> Parameter | None:
    """The parameter of `entry`; None if something is wrong with it, which is among the problems then."""
    if any(path[:1] == (entry.name,) for path in entry.tree.refused):
        return None
    if not check_name(entry) or not check_shape(entry):
        return None
    is_tied = entry.kind == "tied"
    if not is_tied and not check_searchable(entry, entry.name):
        return None
    if (when := read_when(entry)) is None:
        return None
    if is_tied:
        return read_tied(entry, when)
    return read_range(entry, when) if entry.kind in RANGES else read_options(entry, when)


def _check_together(
    read: list[Parameter], parameters: tuple[Parameter, ...], tree: Tree
) -> Iterator[tuple[int, Problem]]:
    """What is wrong between entries, each of which is right."""
    owners: dict[str, str] = {}
    for parameter in read:
        place = tree.place((parameter.name,))
        for key in parameter.keys:
            if key in owners:
                what, why = f"{key} stands in this space twice", f"in {owners[key]} and in {parameter.name}"
                yield place.order, Problem(what, place.where, why, "keep one of the two")
            elif (rival := RIVALS.get(key)) in owners:
                what = f"{key} and {rival} cannot both stand in a space"
                yield place.order, Problem(what, place.where, "setting one unsets the other", "keep one of the two")
            owners[key] = parameter.name
    searched = [key for parameter in parameters for key in parameter.keys]
    if SEED in searched and len(searched) > 1:
        place = tree.place((owners[SEED],))
        why = "seeds compare a config with itself; beside other keys the luckiest one would win"
        fix = "search it alone, or leave it out: the best trials are repeated under other seeds"
        yield place.order, Problem(f"{SEED} is searched together with other keys", place.where, why, fix)


def _wants_number(path: KeyPath) -> bool:
    return not path or (inner := config_path(path)) is None or wants_number(inner)


def _place_at(label: str, line: int, written: str | None) -> Place:
    return Place(f"{label}:{line}", f"{label}:{line}", line, written)


def _empty(label: str) -> Problem:
    return Problem("the space is empty", label, "a space says at least one key to search", _EXAMPLE)


def _explain_missing(name: str, shipped: list[str]) -> Problem:
    beside = Path(name).parent
    files = sorted(str(path) for path in beside.glob("*.y*ml")) if os.path.isdir(beside) else []
    near = difflib.get_close_matches(name, [*shipped, *files], n=2, cutoff=0.5)
    what = f"{name} is a folder, not a space." if os.path.isdir(name) else f"there is no file and no space {name}."
    what += f" Did you mean {' or '.join(near)}?" if near else ""
    why = f"spaces that ship: {', '.join(shipped) or 'none'}"
    return _printed(Problem(what, None, why, f"name {near[0] if near else 'a YAML file, or one of these'}"))


def _read_text(path: Path, label: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        fix = "give the path of a YAML file that you may read"
        raise ConfigError(Problem(f"{label} cannot be read: {error.strerror}", fix=fix)) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(Problem(f"{label} is larger than 1 MiB, too large for a space", fix="give another file"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = Problem("the file is not UTF-8", f"{label}:{line}", None, "save it as UTF-8")
        raise ConfigError(problem) from error


def _printed(problem: Problem) -> Problem:
    """`problem` without characters that a terminal would obey."""
    what, where, why, fix = problem.what, problem.where, problem.why, problem.fix
    return Problem(_printable(what), where and _printable(where), why and _printable(why), fix and _printable(fix))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
