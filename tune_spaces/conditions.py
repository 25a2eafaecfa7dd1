"""`when: {key: [values]}` in a space: what it says, and whether it can be."""

import difflib
from collections.abc import Mapping, Sequence
from graphlib import CycleError
from typing import Any

from sftray.train_fn.config_syntax import write_value
from sftray.tune_spaces.entry import Entry
from sftray.tune_spaces.parameters import Options, Parameter, Range, When, order_parents_first
from sftray.tune_spaces.searchable import is_key, write_entry

_EXAMPLE = {"optim.schedule": ["cosine", "linear"]}


def read_when(entry: Entry) -> When | None:
    """What the entry depends on; None if it is not written as keys and values, which is added to the problems."""
    if "when" not in entry.spec:
        return ()
    when = entry.spec["when"]
    if not isinstance(when, dict) or not when:
        what = f"{entry.name}: when takes keys and their values, not {entry.shown(when, 'when')}"
        entry.refuse(what, None, entry.change(when=_EXAMPLE), "when")
        return None
    for key, values in when.items():
        if values in (None, []):
            what = f"{entry.name}: when names {key}, and no value of it"
            entry.refuse(what, None, entry.change(when=None), "when", key)
            return None
    return tuple((key, tuple(values if isinstance(values, list) else [values])) for key, values in when.items())


def check_conditions(parameters: Sequence[Parameter], fixed: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Adds a problem for each `when` that could never hold.

    Nothing is said of a key whose own entry is wrong: then it is not among `parameters`.
    """
    owners = {key: parameter for parameter in parameters for key in parameter.keys}
    for parameter in parameters:
        for key, values in parameter.when:
            entry = entries[parameter.name]
            if key in fixed:
                _check_values(entry, key, values, [fixed[key]])
            elif key in owners:
                _check_parent(entry, key, values, owners[key])
            elif key not in entries:
                _refuse_stranger(entry, key, values, [*owners, *fixed], entries)
            elif isinstance(entries[key].spec, dict) and "tied" in entries[key].spec:
                what = f"{entry.name}: when names the tied group {key}"
                entry.refuse(
                    what, "it asks for the value of one key", "name one of the keys in the group", "when", key
                )
    try:
        order_parents_first(parameters)
    except CycleError as error:
        circle: list[str] = error.args[1]
        what = f"{circle[-1]} depends on itself: {' depends on '.join(reversed(circle))}"
        entries[circle[-1]].refuse(what, "no trial could ever have it", "take away one of these when", "when")


def _check_parent(entry: Entry, key: str, values: tuple[Any, ...], parent: Parameter) -> None:
    if isinstance(parent, Options):
        _check_values(entry, key, values, [option[key] for option in parent.options])
    elif parent.whole:
        _check_values(entry, key, values, list_whole(parent))
    else:
        what = f"{entry.name}: when asks for values of {key}, which is a range"
        why = "no single value of a range is ever drawn twice"
        entry.refuse(what, why, write_entry(key, {"choice": list(values)}), "when", key)


def list_whole(parent: Range) -> range:
    """The values of a range of whole numbers."""
    return range(int(parent.low), int(parent.high) + 1, int(parent.step or 1))


def _check_values(entry: Entry, key: str, values: tuple[Any, ...], possible: Sequence[Any]) -> None:
    for index, value in enumerate(values):
        if value in possible:
            continue
        near = difflib.get_close_matches(str(value), [str(one) for one in possible[:100]], n=1)
        what = f"{entry.name}: {key} is never {write_value(value)} in this space."
        what += f" Did you mean {near[0]}?" if near else ""
        shown = ", ".join(write_value(one) for one in possible[:10]) + (", …" if len(possible) > 10 else "")
        right = [one for one in possible[:100] if str(one) in near] or list(possible[:1])
        when = entry.spec["when"] | {key: [one for one in values if one in possible] or right}
        at = ("when", key, index) if isinstance(entry.spec["when"][key], list) else ("when", key)
        entry.refuse(what, f"it is one of: {shown}", entry.change(when=when), *at)


def _refuse_stranger(
    entry: Entry, key: str, values: tuple[Any, ...], known: Sequence[str], entries: Mapping[str, Entry]
) -> None:
    near = difflib.get_close_matches(key, known, n=1)
    what = f"{entry.name}: when names {key}, which is not in this space."
    if near and not is_key(key):
        when = {near[0] if name == key else name: asked for name, asked in entry.spec["when"].items()}
        entry.refuse(f"{what} Did you mean {near[0]}?", None, entry.change(when=when), "when", key)
        return
    fix: object = entry.change(when=None)
    if is_key(key):
        fix = write_entry(key, {"choice": list(values)} if len(values) > 1 else {"value": values[0]})
    why = f"the space has: {', '.join(entries)}"
    entry.refuse(what, why, fix, "when", key)
