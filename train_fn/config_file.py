"""A config file and what the command line changes in it: one checked config that knows whence its values come."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_overrides import apply_overrides
from sftray.train_fn.config_problems import explain
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.config_words import MAPPINGS, leaf_fields, section_keys, wants_number
from sftray.train_fn.config_yaml import KeyPath, Place, Tree, dotted, read_yaml
from sftray.train_fn.errors import ConfigError, Problem

DEFAULT = "default"
MAX_BYTES = 1 << 20
_HEADER = "# A resolved config: behind each value stands where it came from. Checked by "


@dataclass(frozen=True)
class Resolved:
    """A config, and for each dotted key where its value came from: "run.yaml:14", "command line", "default", …

    The keys are all of the config's, and those inside of mappings that were given.
    """

    config: RunConfig
    origin: dict[str, str]

    def with_fixed_batch(self) -> Self:
        """The same with G written out (see `RunConfig.with_fixed_batch`), saying what it was computed from."""
        train, workers = self.config.train, self.config.scaling.max_workers
        if train.global_batch_size is not None:
            return self
        steps = train.gradient_accumulation_steps
        sum_up = f"computed: {workers} workers × {train.micro_batch_size} examples × {steps} accumulated"
        origin = self.origin | {
            "train.global_batch_size": sum_up,
            "train.gradient_accumulation_steps": "unset: written out as train.global_batch_size",
        }
        return replace(self, config=self.config.with_fixed_batch(), origin=origin)


def load_config(path: Path, overrides: Sequence[str] = (), *, label: str | None = None) -> Resolved:
    """The config in the file `path`, with `overrides` (`optim.learning_rate=3e-4`) put over it.

    `label` is how messages and origins name what is not a file to the person, such as "preset quickstart";
    its origins have no line. A text made by `dump_config`, and not edited since, keeps the origins in it.

    Raises ConfigError with every problem of the file and of the overrides.
    """
    tree = _read_file(path, label)
    apply_overrides(overrides, tree)
    try:
        config = RunConfig.model_validate(tree.value)
    except ValidationError as error:
        tree.problems += explain(error, tree)
    if tree.problems:
        ranked = sorted(tree.problems, key=lambda found: found[0])
        raise ConfigError(*dict.fromkeys(_printed(problem) for _, problem in ranked))
    return Resolved(config, _origins(tree))


def dump_config(resolved: Resolved) -> str:
    """Every value as YAML, with its origin in a comment; `load_config` reads the same back."""
    values = resolved.config.model_dump()
    body = "".join(f"{line}\n" for line in _lines(values, (), resolved.origin))
    return f"{_HEADER}{_digest(body)}\n{body}"


def _lines(values: Mapping[str, Any], above: KeyPath, origin: Mapping[str, str]) -> Iterator[str]:
    for key, value in values.items():
        path = (*above, key)
        head = f"{'  ' * len(above)}{write_value(key)}:"
        comment = "  # " + " ".join(origin.get(dotted(path), DEFAULT).split())
        if isinstance(value, dict) and value:
            yield head if dotted(path) in section_keys() else head + comment
            yield from _lines(value, path, origin)
        else:
            yield f"{head} {write_value(value)}{comment}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _dumped_origins(text: str) -> dict[int, str]:
    """1-based line -> the origin in its comment, if `text` is as `dump_config` wrote it; else empty."""
    header, _, body = text.partition("\n")
    if header != _HEADER + _digest(body):
        return {}
    return {n: line.rpartition("  # ")[2] for n, line in enumerate(body.split("\n"), 2) if "  # " in line}


def _origins(tree: Tree) -> dict[str, str]:
    paths = [tuple(key.split(".")) for key in leaf_fields()]
    inner = [path for path in tree.places if path[:2] in MAPPINGS and len(path) > 2 and int not in map(type, path)]
    return {dotted(path): tree.places[path].origin if path in tree.places else DEFAULT for path in paths + inner}


def _read_file(path: Path, label: str | None) -> Tree:
    """The settings of the file, or none with a problem. The path () is the file as a whole."""
    name = _printable(" ".join((label or str(path)).split()))
    whole = Place(name, name, 0)
    text = _read_text(path, name)
    if isinstance(text, Problem):
        return Tree({}, {(): whole}, [(0, text)], readable=False)
    comments = _dumped_origins(text)

    def place_at(line: int, written: str | None) -> Place:
        where = f"{name}:{line}"
        return Place(where, comments.get(line, where if label is None else name), line, written)

    tree = read_yaml(text, place_at, wants_number)
    tree.places[()] = whole
    if tree.readable and not isinstance(tree.value, dict):
        tree.problems.append((1, _not_settings(tree.value, name)))
        tree.readable = False
    if not tree.readable:
        tree.value = {}
    for section in section_keys():
        if tree.value.get(section, ...) is None:  # the key of a section with nothing below it
            tree.value[section] = {}
    return tree


def _not_settings(value: object, label: str) -> Problem:
    fix = "model: {name: HuggingFaceTB/SmolLM2-135M}, and below it data: {train: data/train.jsonl}"
    if value is None:
        return Problem("the file is empty", label, "a config says at least which model and which data", fix)
    kind = "a list" if isinstance(value, list) else "one value"
    return Problem(f"the file holds {kind}, not settings", f"{label}:1", "a config is lines of key: value", fix)


def _read_text(path: Path, label: str) -> str | Problem:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        what = f"there is no file {label}." + (f" Did you mean {path.with_name(near[0])}?" if near else "")
        return Problem(what, fix="give the path of a YAML file, or the name of a preset")
    except IsADirectoryError:
        run = path / "config.yaml"
        fix = f"to go on with this run: sftray resume {label}" if run.is_file() else "give a file in it"
        return Problem(f"{label} is a folder, and a config is a file", fix=fix)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Problem(f"{label} cannot be read: {reason}", fix="give the path of a YAML file that you may read")
    if len(data) > MAX_BYTES:
        return Problem(
            f"{label} is larger than 1 MiB, too large for a config",
            fix="give a YAML file; data files stand in it under data.train",
        )
    return _decode(data, label)


def _decode(data: bytes, label: str) -> str | Problem:
    fix = f"save it as UTF-8, for example: iconv -f {{}} -t UTF-8 {label} > new.yaml"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem("the file is UTF-16, and a config is UTF-8", f"{label}:1", fix=fix.format("UTF-16"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{error.object[error.start]:02X} is not UTF-8"
        return Problem(what, f"{label}:{line}", "a config is text in UTF-8", fix.format("LATIN1"))


def _printed(problem: Problem) -> Problem:
    """`problem` without characters that a terminal would obey."""
    what, where, why, fix = problem.what, problem.where, problem.why, problem.fix
    return Problem(_printable(what), where and _printable(where), why and _printable(why), fix and _printable(fix))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
