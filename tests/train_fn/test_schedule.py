"""Learning rates as a table of exact values; the peak is 1 where nothing else is said."""

import itertools
import math

import pytest

from sftray.train_fn.config import OptimConfig
from sftray.train_fn.schedule import compute_learning_rate

COS_QUARTER, COS_THREE_QUARTERS = (1 + math.sqrt(0.5)) / 2, (1 - math.sqrt(0.5)) / 2


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "min_lr_ratio", "total", "expected"),
    [
        ("constant", 0.0, 0.1, 4, [1, 1, 1, 1]),
        ("constant", 0.5, 0.1, 4, [1 / 3, 2 / 3, 1, 1]),
        ("constant", 1.0, 0.1, 3, [1 / 4, 2 / 4, 3 / 4]),
        ("linear", 0.0, 0.0, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 0.0, 0.2, 4, [1, 0.8, 0.6, 0.4]),
        ("linear", 0.25, 0.0, 5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        ("linear", 0.0, 1.0, 3, [1, 1, 1]),
        ("cosine", 0.0, 0.0, 4, [1, COS_QUARTER, 0.5, COS_THREE_QUARTERS]),
        ("cosine", 0.0, 0.1, 4, [1, 0.1 + 0.9 * COS_QUARTER, 0.55, 0.1 + 0.9 * COS_THREE_QUARTERS]),
        ("cosine", 0.2, 0.0, 5, [1 / 2, 1, COS_QUARTER, 0.5, COS_THREE_QUARTERS]),
        ("cosine", 1.0, 0.0, 2, [1 / 3, 2 / 3]),
        ("minimind", 0.0, 0.1, 4, [1.1, 0.1 + COS_QUARTER, 0.6, 0.1 + COS_THREE_QUARTERS]),
        ("minimind", 0.5, 0.9, 2, [1.1, 0.6]),
        ("constant", 0.0, 0.1, 1, [1]),
        ("linear", 0.0, 0.1, 1, [1]),
        ("cosine", 0.0, 0.1, 1, [1]),
        ("cosine", 0.03, 0.1, 1, [1 / 2]),
        ("minimind", 0.0, 0.1, 1, [1.1]),
    ],
)
def test_learning_rates_of_a_whole_run(
    schedule: str, warmup_ratio: float, min_lr_ratio: float, total: int, expected: list[float]
) -> None:
    optim = OptimConfig.model_validate(
        {
            "learning_rate": 1.0,
            "schedule": schedule,
            "warmup_ratio": warmup_ratio,
            "min_lr_ratio": min_lr_ratio,
        }
    )
    rates = [compute_learning_rate(step, total, optim) for step in range(total)]
    assert rates == pytest.approx(expected, rel=1e-15)


def test_rates_scale_with_the_peak() -> None:
    optim = OptimConfig(learning_rate=3e-4, warmup_ratio=0.03, min_lr_ratio=0.1)
    rates = [compute_learning_rate(step, 1000, optim) for step in range(1000)]
    assert rates[29:31] == pytest.approx([3e-4 * 30 / 31, 3e-4], rel=1e-15)
    assert max(rates) == rates[30] and rates.index(max(rates)) == 30
    assert rates[-1] == pytest.approx(3e-5, rel=1e-4)
    assert all(before > after for before, after in itertools.pairwise(rates[30:]))
