import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftray.train_fn.json_text import find_duplicate_key, locate, parse_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=values, data=st.data(), indent=st.sampled_from([None, 1]))
def test_locate_finds_every_value(value: Any, data: st.DataObject, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    path: list[str | int] = []
    while isinstance(value, dict | list) and value and data.draw(st.booleans()):
        step = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        value = value[step]
        path.append(step)
    start = locate(text, path)
    found, end = json.JSONDecoder().raw_decode(text, start)
    assert found == value
    # The value at this very path, not an equal one elsewhere: put in its place, another is found there.
    changed: Any = json.loads(text[:start] + '"changed"' + text[end:])
    for step in path:
        changed = changed[step]
    assert changed == "changed"


def test_a_path_that_leads_nowhere_ends_at_the_last_value_there_is() -> None:
    text = '{"a": [1, {"b": "{}"}]}'
    assert locate(text, ("a", 1, "b", "c")) == text.index('"{}"')
    assert locate(text, ("a", 7)) == text.index("[1")
    assert locate(" 5", ("a",)) == 1


@pytest.mark.parametrize(
    ("text", "key", "marker"),
    [
        ('{"a": 1, "a": 2}', "a", '"a": 2'),
        ('[{"a": {"a": 1}}, {"b": [{"c": 1, "d": 2 , "c" : 3}]}]', "c", '"c" : 3'),
        ('{"a\\n": 1, "a\\u000a": 2}', "a\n", '"a\\u000a"'),
        ("[" * 600 + '{"a": 1, "a": 2}' + "]" * 600, "a", '"a": 2'),
    ],
)
def test_duplicate_keys_are_refused_and_found(text: str, key: str, marker: str) -> None:
    with pytest.raises(ValueError, match="stands twice"):
        parse_json(text)
    assert find_duplicate_key(text) == (key, text.index(marker))


def test_equal_keys_of_different_objects_are_no_duplicates() -> None:
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}') == {
        "a": {"a": 1},
        "b": [{"a": 1}, {"a": 2}],
    }
    with pytest.raises(ValueError, match="no key"):
        find_duplicate_key('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}')
