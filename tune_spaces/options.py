"""Entries of a space that are options: `{choice: […]}`, `{grid: […]}`, `{value: X}`, `{tied: [{…}, {…}]}`."""

from typing import Any

from sftray.train_fn.config_words import leaf_fields, nearest_choice, right_value
from sftray.tune_spaces.entry import Entry, check_key, check_searchable, example_spec_of
from sftray.tune_spaces.parameters import Options, When
from sftray.tune_spaces.searchable import example_spec, fits, legal_words, write_entry


def read_options(entry: Entry, when: When) -> Options | None:
    """The options of a choice, a grid or a value; None if something is wrong, which is added to the problems."""
    kind, name = entry.kind, entry.name
    values = [entry.spec["value"]] if kind == "value" else entry.spec[kind]
    if not isinstance(values, list) or not values:
        what = f"{name}: {kind} takes a list of values, not {entry.shown(values, kind)}"
        legal = fits(name, values, entry.config)
        entry.refuse(
            what, None, entry.change(**{kind: [values]}) if legal else example_spec(name, entry.config), kind
        )
        return None
    if not _check_values(entry, values):
        return None
    if (repeated := _find_repeat(values)) is not None:
        what = f"{name}: {entry.shown(values[repeated], kind, repeated)} stands twice in {kind}"
        once = [value for index, value in enumerate(values) if value not in values[:index]]
        entry.refuse(what, "it would be tried twice as often", entry.change(**{kind: once}), kind, repeated)
        return None
    return Options(name, tuple({name: value} for value in values), kind == "grid", when)


def _check_values(entry: Entry, values: list[Any]) -> bool:
    """Are all values legal for the key? Each that is not is a problem."""
    kind, name = entry.kind, entry.name
    inner = [(kind,)] if kind == "value" else [(kind, index) for index in range(len(values))]
    mended = [_mend(entry, name, value, *at) for value, at in zip(values, inner, strict=True)]
    whole = all(fits(name, value, entry.config) for value in mended)
    right = {"value": mended[0]} if kind == "value" else entry.change(**{kind: _without_repeats(mended)})
    legal = True
    for value, at in zip(values, inner, strict=True):
        if not fits(name, value, entry.config):
            entry.refuse(*explain_value(entry, name, value, *at), right if whole else _example(entry), *at)
            legal = False
    return legal


def explain_value(entry: Entry, key: str, value: object, *at: str | int) -> tuple[str, str | None]:
    """What is wrong with `value` of `key`, and why it may not look wrong."""
    what = f"{key} must be {legal_words(key, entry.config)}, not {entry.shown(value, *at)}"
    near = nearest_choice(key, value) if key in leaf_fields() and not isinstance(value, list | dict) else None
    if near is not None and fits(key, near, entry.config):
        what += f". Did you mean {near}?"
    quoted = (
        isinstance(value, str) and entry.written(*at) is None and _mend(entry, key, value, *at) not in (None, value)
    )
    return what, "between quotes it is text" if quoted and near is None else None


def _mend(entry: Entry, key: str, value: object, *at: str | int) -> object:
    """A legal value near to `value`; None if there is none."""
    if fits(key, value, entry.config) or key not in leaf_fields():
        return value if fits(key, value, entry.config) else None
    guess = None if value is None else right_value(key, value, entry.written(*at))
    return guess if guess is not None and guess != right_value(key, None) else None


def _example(entry: Entry) -> dict[str, Any]:
    example = example_spec(entry.name, entry.config)
    if entry.kind == "value":
        return {"value": right_value(entry.name, None)} if entry.name in leaf_fields() else example
    return example


def _without_repeats(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _find_repeat(values: list[Any]) -> int | None:
    """The index of the first value that stands before too; 1 and true are two values."""
    kinds = [(type(value), value) for value in values]
    return next((index for index, pair in enumerate(kinds) if pair in kinds[:index]), None)


def read_tied(entry: Entry, when: When) -> Options | None:
    """The options of a tied group; None if something is wrong, which is added to the problems."""
    options = entry.spec["tied"]
    is_list = isinstance(options, list) and options and all(isinstance(option, dict) for option in options)
    if not is_list:
        what = f"{entry.name}: tied takes a list of settings that go together, not {entry.shown(options, 'tied')}"
        entry.refuse(what, None, example_spec_of(entry), "tied")
        return None
    legal = [_check_option(entry, index, option) for index, option in enumerate(options)]
    if not all(legal) or not _check_alike(entry, options):
        return None
    if (repeated := _find_repeat(options)) is not None:
        entry.refuse(
            f"{entry.name}: two options are the same",
            "it would be tried twice as often",
            entry.change(tied=_without_repeats(options)),
            "tied",
            repeated,
        )
        return None
    return Options(entry.name, tuple(options), when=when)


def _check_option(entry: Entry, index: int, option: dict[str, Any]) -> bool:
    legal = True
    for key, value in option.items():
        at = ("tied", index, key)
        if not check_key(entry, key, *at) or not check_searchable(entry, key, *at):
            legal = False
        elif not fits(key, value, entry.config):
            mended = _mend(entry, key, value, *at)
            settings = option | {key: mended if mended is not None else right_value(key, None)}
            entry.refuse(*explain_value(entry, key, value, *at), write_entry(entry.name, {"tied": [settings]}), *at)
            legal = False
    return legal


def _check_alike(entry: Entry, options: list[dict[str, Any]]) -> bool:
    keys = list(options[0])
    if len(keys) < 2:
        what = f"{entry.name} ties nothing: its options have {'one key' if keys else 'no keys'}"
        fix: object = example_spec_of(entry)
        if keys and all(list(option) == keys for option in options):
            fix = write_entry(keys[0], {"choice": [option[keys[0]] for option in options]})
        entry.refuse(what, "values of one key are a choice", fix, "tied")
        return False
    for index, option in enumerate(options):
        if odd := [key for key in (*keys, *option) if key not in option or key not in keys]:
            what = f"{entry.name}: options set different keys: not all of them set {odd[0]}"
            entry.refuse(
                what, "all options of a tied group set the same keys", f"set {odd[0]} in each", "tied", index
            )
            return False
    return True
