"""A YAML text as plain values, each with the place it was given at, and the traps of YAML caught on the way.

Traps that are problems: a key that stands twice, `010` (8) and `12:30` (750) as numbers, `5%`, tags, and
control characters in a text. Anchors, aliases and merge keys work; what they unfold to is bounded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sftray.train_fn.config_syntax import (
    CORE,
    EXPONENT,
    check_bounds,
    compose_yaml,
    implied_tag,
    syntax_problem,
    write_value,
)
from sftray.train_fn.errors import Problem

KeyPath = tuple[str | int, ...]

_OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]")
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """Where a value was given. `written` is a scalar without quotes as it stands there; `order` sorts places."""

    where: str
    origin: str
    order: int
    written: str | None = None
    is_override: bool = False


PlaceAt = Callable[[int, str | None], Place]  # 1-based line, scalar as written -> Place
WantsNumber = Callable[[KeyPath], bool]


@dataclass
class Tree:
    """What one text holds. `refused` are the paths that have a problem; not `readable`: no value came out."""

    value: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)
    readable: bool = True

    def place(self, path: KeyPath) -> Place:
        """The place of `path`, or of the nearest thing around it that has one."""
        return next(self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places)


def dotted(path: KeyPath) -> str:
    """('data', 'train', 1) -> data.train[1]"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read_yaml(text: str, place_at: PlaceAt, wants_number: WantsNumber, root: KeyPath = ()) -> Tree:
    """The one document of `text`; an empty one holds None. Problems are collected in the tree, not raised.

    `wants_number(path)` says whether a value there may be a number: only there is `1e-4` one.
    `root` is the path of the text itself.
    """
    reader = _Reader(place_at, wants_number)
    try:
        node = compose_yaml(text)
        reader.tree.value = None if node is None else reader.read(node, root, node.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        line, problem = syntax_problem(error)
        place = place_at(line, None)
        found = (place.order, Problem(problem.what, place.where, problem.why, problem.fix))
        return Tree(places={root: place_at(1, None)}, problems=[found], readable=False)
    reader.tree.places.setdefault(root, place_at(1, None))
    return reader.tree


class _Reader:
    """Nodes to values, noting places and problems in `tree`."""

    def __init__(self, place_at: PlaceAt, wants_number: WantsNumber) -> None:
        self.place_at, self.wants_number = place_at, wants_number
        self.tree = Tree()
        self.visits = 0
        self.make = SafeConstructor()

    def read(self, node: Node, path: KeyPath, line: int) -> Any:
        """The value of `node`; `line` is that of its key, which is where a mapping or a list is said to be."""
        self.visits += 1
        check_bounds(len(path), self.visits, node.start_mark)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        self.tree.places[path] = self.place_at(line, None)
        if isinstance(node, MappingNode):
            self._check_tag(node, CORE + "map", path)
            return self._mapping(node, path)
        assert isinstance(node, SequenceNode)  # the third and last kind of node
        self._check_tag(node, CORE + "seq", path)
        return [self.read(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]

    def _refuse(self, path: KeyPath, node: Node, what: str, why: str | None, fix: str) -> None:
        self._report(node, what, why, fix)
        self.tree.refused.add(path)

    def _report(self, node: Node, what: str, why: str | None, fix: str) -> None:
        place = self.place_at(node.start_mark.line + 1, None)
        self.tree.problems.append((place.order, Problem(what, place.where, why, fix)))

    def _check_tag(self, node: Node, implied: str, path: KeyPath) -> None:
        if node.tag == implied or (isinstance(node, ScalarNode) and node.tag == CORE + "str"):
            return
        tag = node.tag.replace(CORE, "!!")
        what = f"{dotted(path) or 'the config'} carries the tag {tag}, and a config has plain values only"
        self._refuse(path, node, what, "a tag may name code to run, so none is read", f"delete {tag}")

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        own, merged = self._pairs(node, path, 0)
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in own:
            line = key.start_mark.line + 1
            if key.value in lines:
                what = f"{dotted((*path, key.value))} is set twice"
                first = self.place_at(lines[key.value], None).where
                self._report(key, what, f"the first time at {first}", "keep one of the two")
                continue
            lines[key.value] = line
            values[key.value] = self.read(value, (*path, key.value), line)
        for key, value in merged:
            if key.value not in values:
                values[key.value] = self.read(value, (*path, key.value), key.start_mark.line + 1)
        return values

    def _pairs(self, node: MappingNode, path: KeyPath, depth: int) -> tuple[list[Any], list[Any]]:
        """Own (key, value) nodes, and those that `<<` brings, nearest first."""
        self.visits += 1
        check_bounds(depth, self.visits, node.start_mark)
        own: list[tuple[ScalarNode, Node]] = []
        merged: list[tuple[ScalarNode, Node]] = []
        for key, value in node.value:
            if key.tag == CORE + "merge":
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    if isinstance(source, MappingNode):
                        merged += [pair for pairs in self._pairs(source, path, depth + 1) for pair in pairs]
                    else:
                        self._report(value, "<< needs the alias of a mapping", None, "write <<: *anchor")
            elif isinstance(key, ScalarNode):
                self._check_text(key, (*path, key.value))
                own.append((key, value))
            else:
                what = f"a key of {dotted(path) or 'the config'} is not plain text"
                self._report(key, what, "a key is one word", "write key: value")
        return own, merged

    def _check_text(self, node: ScalarNode, path: KeyPath) -> None:
        if odd := _CONTROL.search(node.value):
            what = f"{dotted(path)} holds the control character U+{ord(odd.group()):04X}"
            self._refuse(path, node, what, "no name of a file or a model has it", "remove that character")

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        written = node.value if node.style is None else None
        self.tree.places[path] = self.place_at(node.start_mark.line + 1, written)
        self._check_tag(node, implied_tag(node), path)
        match node.tag.removeprefix(CORE):
            case "null":
                return None
            case "bool":
                return node.value.lower() in ("yes", "true", "on")
            case "int" | "float" if path not in self.tree.refused:
                return self._number(node, path)
        self._check_text(node, path)
        if (percent := _PERCENT.fullmatch(node.value)) and self.wants_number(path):
            share = write_value(float(percent[1]) / 100)
            what = f"{dotted(path)}: {node.value} is text in YAML, and no number"
            self._refuse(path, node, what, "YAML knows no percent sign", f"write {share}")
        return node.value

    def _number(self, node: ScalarNode, path: KeyPath) -> int | float | str:
        text: str = node.value
        wanted = self.wants_number(path)
        if EXPONENT.match(text) and not wanted:
            return text
        construct = self.make.construct_yaml_int if node.tag == CORE + "int" else self.make.construct_yaml_float
        try:
            number: int | float = construct(node)
        except ValueError:  # such as 0b_, or thousands of digits
            return text
        if wanted and (trap := _trap(text)):
            what = f"{dotted(path)}: {text} means {write_value(number)} in YAML"
            meant = ", if that is meant" if ":" in text else f" or {text.lstrip('0') or 0}, whichever is meant"
            self._refuse(path, node, what, trap, f"write {write_value(number)}{meant}")
        return number


def _trap(number: str) -> str | None:
    """Why `number` is another one to YAML than to most people."""
    if ":" in number:
        return "digits parted by ':' count in base 60, as minutes and seconds do"
    return "a leading 0 makes a number octal" if _OCTAL.fullmatch(number) else None
