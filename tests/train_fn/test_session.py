"""Milestones: a run is validated and saved at the same values of progress whatever its global batch."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_runs import Metrics, build_job, hash_newest, run_here
from tiny_runs import build_config, read_events, read_metrics, trace

from sftray.train_fn.checkpoint import find_best, list_checkpoints
from sftray.train_fn.loader import RunPlan, count_total_steps
from sftray.train_fn.planner import Budget
from sftray.train_fn.session import find_milestone

pytestmark = pytest.mark.slow

QUARTERS = (0.25, 0.5, 0.75, 1.0)


class LeftError(Exception):
    """What a report raises to end a run."""


def plan(num_examples: int, batch: int, max_examples: int) -> RunPlan:
    lengths = np.full(num_examples, 2, dtype=np.int64)
    total = count_total_steps(num_examples, batch, 1000, None, max_examples)
    return RunPlan(lengths, lengths, 1, batch, total, 1, Budget(8, 4, True), max_examples)


@settings(max_examples=150, deadline=None)
@given(
    num_examples=st.integers(1, 300),
    batch=st.sampled_from([1, 3, 8, 64]),
    max_examples=st.integers(1, 700),
    hundredths=st.lists(st.integers(1, 100), unique=True, max_size=12),
)
def test_a_milestone_is_the_first_step_at_or_behind_it(
    num_examples: int, batch: int, max_examples: int, hundredths: list[int]
) -> None:
    """Compared with exact arithmetic: a value such as 0.07 is meant as 7/100, not as the float next to it."""
    run = plan(num_examples, batch, max_examples)
    values = [hundredth / 100 for hundredth in hundredths]
    expected: dict[int, float] = {}
    for hundredth in sorted(hundredths):
        wanted = Fraction(hundredth, 100) * max_examples
        step = next(s for s in range(1, run.total_steps + 1) if run.count_examples(s) >= wanted)
        expected[step] = hundredth / 100
    found = {step: find_milestone(values, run, step) for step in range(1, run.total_steps + 1)}
    assert {step: value for step, value in found.items() if value is not None} == expected


def test_a_milestone_is_logged_validated_saved_and_reported(tmp_path: Path) -> None:
    """96 examples in batches of 10, every epoch of 48 ending with one of 8: 25 %, 50 %, 75 % are steps 3, 5, 8."""
    config = build_config(
        tmp_path,
        train={"global_batch_size": 10, "log_every": 0, "eval_every": 0, "save_every": 0},
        store={"keep_checkpoints": 9},
    )
    job = build_job(config, tmp_path, evaluations=list(QUARTERS))
    told: list[tuple[Metrics, Path | None]] = []
    assert run_here(job, lambda metrics, folder: told.append((metrics, folder))) == {
        "step": 10,
        "stopped": False,
        "why": "",
    }
    rows = read_metrics(Path(job["run_dir"]))
    assert [(row["step"], row.get("milestone")) for row in rows] == [
        (0, None), (3, 0.25), (5, 0.5), (8, 0.75), (10, 1.0)
    ]  # fmt: skip
    saved = list_checkpoints(Path(job["run_dir"], "checkpoints"))
    assert [(c.step, c.manifest.val_loss) for c in saved] == [(row["step"], row["val/loss"]) for row in rows[1:]]
    assert [(metrics["milestone"], folder) for metrics, folder in told] == [
        (value, checkpoint.folder) for value, checkpoint in zip(QUARTERS, saved, strict=True)
    ]
    best = find_best(Path(job["run_dir"], "checkpoints"))
    assert best is not None and best.manifest.val_loss == min(row["val/loss"] for row in rows[1:])


def test_what_is_due_twice_is_done_once(tmp_path: Path) -> None:
    """Validation and checkpoint every 4 steps, and milestones at steps 3, 6, 9, 12."""
    job = build_job(build_config(tmp_path), tmp_path, evaluations=list(QUARTERS))
    told: list[tuple[float, bool]] = []
    run_here(job, lambda metrics, folder: told.append((metrics["step"], folder is not None)))
    rows = read_metrics(Path(job["run_dir"]))
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 3, 4, 6, 8, 9, 12]
    assert [row["step"] for row in rows] == list(range(13))
    saved = [event["step"] for event in read_events(Path(job["run_dir"])) if event["state"] == "checkpoint"]
    assert saved == [3, 4, 6, 8, 9, 12] and told == [(step, True) for step in saved]


def test_a_run_left_at_a_milestone_goes_on_behind_it(tmp_path: Path) -> None:
    config = build_config(tmp_path, train={"eval_every": 0, "save_every": 0})
    whole = build_job(config, tmp_path, "whole", evaluations=list(QUARTERS))
    run_here(whole, lambda metrics, folder: None)
    job = build_job(config, tmp_path, "left", evaluations=list(QUARTERS))
    told: list[float] = []

    def leave_at_half(metrics: Metrics, folder: Path | None) -> None:
        told.append(metrics["milestone"])
        if metrics["milestone"] == 0.5:
            raise LeftError

    with pytest.raises(LeftError):
        run_here(job, leave_at_half)
    assert run_here(job, lambda metrics, folder: told.append(metrics["milestone"]))["step"] == 12
    assert told == list(QUARTERS)
    assert trace(Path(job["run_dir"])) == trace(Path(whole["run_dir"]))
    assert hash_newest(job) == hash_newest(whole)


def test_a_stop_file_saves_and_stops_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    whole = build_job(config, tmp_path, "whole")
    run_here(whole)
    stop = tmp_path / "stop"
    job = build_job(config, tmp_path, "stopped", stop_files=[str(stop)], evaluations=[0.25])
    outcome = run_here(job, lambda metrics, folder: stop.touch())
    assert outcome == {"step": 4, "stopped": True, "why": ""}  # 25 % is step 3, and the next one sees the file
    assert [c.step for c in list_checkpoints(Path(job["run_dir"], "checkpoints"))] == [3, 4]
    stop.unlink()
    assert run_here(job) == {"step": 12, "stopped": False, "why": ""}
    assert trace(Path(job["run_dir"])) == trace(Path(whole["run_dir"]))
    assert hash_newest(job) == hash_newest(whole)
