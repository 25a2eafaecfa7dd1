"""Whether a best value lies at the edge of its range."""

from typing import Any

import pytest

from sftray.platform.space_edges import find_edges

RATE, STEPS, RATIO = "optim.learning_rate", "train.gradient_accumulation_steps", "optim.warmup_ratio"


@pytest.mark.parametrize(
    ("key", "entry", "value", "is_edge"),
    [
        (RATE, {"log_uniform": [1e-5, 1e-3]}, 9.8e-4, True),
        (RATE, {"log_uniform": [1e-5, 1e-3]}, 1.2e-5, True),  # 4 % of the two decades from the lower end
        (RATE, {"log_uniform": [1e-5, 1e-3]}, 1.3e-5, False),  # 5.7 %
        (RATE, {"log_uniform": [1e-5, 1e-3]}, 5e-4, False),
        (RATE, {"uniform": [1e-4, 1e-3]}, 9.6e-4, True),
        (RATE, {"uniform": [1e-4, 1e-3]}, 9.4e-4, False),
        (STEPS, {"choice": [1, 2, 4, 8]}, 8, True),
        (STEPS, {"grid": [8, 2, 4]}, 2, True),
        (STEPS, {"choice": [1, 2, 4, 8]}, 4, False),
        (STEPS, {"choice": [1, 2, 4, 8]}, 1, False),  # there is nothing below 1
        (STEPS, {"choice": [2, 8]}, 8, False),  # of two, each is at an end
        (STEPS, {"int": [2, 64], "log": True}, 64, True),
        (STEPS, {"int": [1, 64]}, 2, False),
        (RATIO, {"uniform": [0.0, 0.2]}, 0.001, False),  # nor below 0
        (RATIO, {"uniform": [0.0, 0.2], "when": {"optim.schedule": ["cosine"]}}, 0.199, True),
        ("optim.schedule", {"choice": ["cosine", "linear", "constant"]}, "cosine", False),
        ("train.packing", {"choice": [True, False, True]}, True, False),
        ("model.scratch.hidden_size", {"choice": [64, 128, 256]}, 256, True),
        (RATE, {"value": 1e-4}, 1e-4, False),
        (RATE, None, 1e-4, False),
    ],
)
def test_edges(key: str, entry: dict[str, Any] | None, value: Any, is_edge: bool) -> None:
    space = {} if entry is None else {key: entry}
    assert [found[0] for found in find_edges({key: value}, space)] == ([key] if is_edge else [])
