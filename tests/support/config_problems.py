"""The problems of a config in the folder in which a test runs."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from sftray.train_fn.config_file import load_config
from sftray.train_fn.errors import ConfigError, Problem

BASE = "model: {name: m}\ndata: {train: a.jsonl}\n"  # two good lines: what is added begins at line 3
INNER_WORDS = re.compile(
    r"pydantic|validation error|Traceback|Input should|yaml\.|<class|NoneType|\bstr\b|(?<!!)\bint\b"
)


def problems_of(text: str | bytes, overrides: Sequence[str] = ()) -> tuple[Problem, ...]:
    path = Path("run.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert not INNER_WORDS.search(str(caught.value)), str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems
