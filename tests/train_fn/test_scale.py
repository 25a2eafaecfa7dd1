"""Sizes that no run of a test has: what the bench of scale measures, where it must not grow."""

import math
from pathlib import Path

import pytest
import torch
from scale_cells import CELLS, beat, plan_steps

from sftray.train_fn.checkpoint import Checkpoint, Manifest
from sftray.train_fn.trainer_state import load_rng, save_trainer_state

SMALL = {
    "plan_steps": {"workers": 3, "examples": 100},
    "plan_validation": {"workers": 3, "examples": 100},
    "check_ledger": {"examples": 100, "batch": 24},
    "beat": {"attempts": 2},
    "restart": {"workers": 3, "attempts": 2},
    "log_metrics": {"rows": 3},
    "open_tokens": {"examples": 300},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_of_the_bench_has_answers(name: str) -> None:
    found = CELLS[name](**SMALL[name])
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_a_step_of_a_billion_examples_is_planned_without_looking_at_the_others() -> None:
    assert plan_steps(workers=64, examples=10**9)["peak_mb"] < 100


def test_a_beat_asks_the_store_no_more_after_many_attempts() -> None:
    assert beat(attempts=1)["requests_per_minute"] == beat(attempts=30)["requests_per_minute"] <= 36


@pytest.mark.parametrize("rank", [0, 1, 10, 11])
def test_a_rank_gets_its_own_random_states(tmp_path: Path, rank: int) -> None:
    states = {f"rank-{each}.{source}": torch.full((3,), each) for each in range(11) for source in ("torch", "numpy")}
    save_trainer_state(tmp_path, {}, states, {})
    found = load_rng(Checkpoint(tmp_path, Manifest(1, 1, "", "", None)), rank)
    expected = {"torch": [rank] * 3, "numpy": [rank] * 3} if rank < 11 else {}
    assert {source: state.tolist() for source, state in found.items()} == expected
