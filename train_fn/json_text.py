"""Strict JSON, and where in its text a value stands: for faults that name a byte."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

Member = tuple[str | int, int, int]  # key or index, where the key begins, where the value begins

_PLAIN = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


class DuplicateKeyError(ValueError):
    """One JSON object names a key twice, so one of its values would be lost."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise DuplicateKeyError("a key stands twice in one object")
    return built


_STRICT = json.JSONDecoder(object_pairs_hook=_build_object)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises `json.JSONDecodeError` (with the place), `DuplicateKeyError`, another `ValueError` (a number of
    thousands of digits) or `RecursionError` (nesting of about a thousand levels).
    """
    return _STRICT.decode(text)


def locate(text: str, path: Sequence[str | int]) -> int:
    """The character at which the value at `path` begins in a valid JSON text.

    A path that leads on into what is not there (or into JSON that is itself inside a string) ends at the
    last value that is.
    """
    position = _skip_space(text, 0)
    for step in path:
        inner = next((value for name, _, value in _members(text, position) if name == step), None)
        if inner is None:
            break
        position = inner
    return position


def find_duplicate_key(text: str) -> tuple[str, int]:
    """The first key that its object has already, and the character of its second place.

    Raises `ValueError` if there is none.
    """
    # A stack and no recursion: a row may be nested as deep as Python's own limit.
    stack: list[tuple[Iterator[Member], set[str | int]]] = [(_members(text, _skip_space(text, 0)), set())]
    while stack:
        members, seen = stack[-1]
        for name, key_position, value_position in members:
            if isinstance(name, str) and name in seen:
                return name, key_position
            seen.add(name)
            stack.append((_members(text, value_position), set()))
            break
        else:
            stack.pop()
    raise ValueError("no key stands twice in one object")


def _members(text: str, position: int) -> Iterator[Member]:
    """The members of the container at `position`; none if that is a string, a number or the like."""
    is_object = text[position] == "{"
    if not is_object and text[position] != "[":
        return
    position = _skip_space(text, position + 1)
    index = 0
    while text[position] not in "}]":
        name: str | int = index
        key_position = position
        if is_object:
            name, position = _PLAIN.raw_decode(text, position)
            position = _skip_space(text, _skip_space(text, position) + 1)  # past the colon
        yield name, key_position, position
        _, position = _PLAIN.raw_decode(text, position)
        position = _skip_space(text, position)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
        index += 1


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()
