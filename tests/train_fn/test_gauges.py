"""Live numbers: told again while a run lasts, and by nobody after it."""

import threading

import pytest

from sftray.train_fn.gauges import Gauges
from sftray.train_fn.pace import Pace


def count_threads() -> int:
    return sum(thread.name == "gauges" for thread in threading.enumerate())


def test_a_thread_tells_them_again_as_long_as_they_are_open() -> None:
    with Gauges("mine") as gauges:
        assert count_threads() == 0
        gauges.set({"train/loss": 2.5, "progress": 0.5})
        gauges.set({"train/loss": float("nan")})
        assert count_threads() == 1
    assert count_threads() == 0


def test_the_time_that_is_left_follows_from_the_steps_since_the_first() -> None:
    pace = Pace()
    assert pace.mark(10, 100, now=5.0) is None and pace.mark(10, 100, now=6.0) is None
    assert pace.mark(20, 100, now=25.0) == pytest.approx(160.0)  # 2 s a step, 80 steps
    assert pace.mark(100, 100, now=185.0) == 0.0
