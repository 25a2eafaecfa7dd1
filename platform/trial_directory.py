"""A trial's directory: a run's, made from the sweep's base config and the trial's point, and what it says."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftray.platform.run_files import BrokenRunError, read_events, read_rows
from sftray.platform.sweep_files import TrialRecord
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import ClusterError, StoreError
from sftray.train_fn.journal import CONFIG, DATA, METRICS
from sftray.train_fn.places import write_whole
from sftray.tune_spaces.points import apply_point

ENDS = ("finished", "pruned", "failed")
_STATES = (*ENDS, "starting", "running", "stopped", "interrupted")
# What failed for one of these may go well the next time: it is no word on the trial's settings.
_NOT_ITS_FAULT = (StoreError.exit_code, ClusterError.exit_code)


def resolve_trial(base: Resolved, record: TrialRecord, point: dict[str, Any] | None = None) -> Resolved:
    """The base config with the trial's point, or another one, its seed and its name."""
    point = {**(record.point if point is None else point), "train.seed": record.seed}
    resolved = apply_point(base, point, f"sweep: {record.name}").with_fixed_batch()
    origin = {**resolved.origin, "name": "sweep"}
    return replace(resolved, config=resolved.config.model_copy(update={"name": record.name}), origin=origin)


def write_trial(sweep_dir: Path, resolved: Resolved, receipt: dict[str, Any]) -> Path:
    """Make the trial's directory, unless it is there."""
    assert resolved.config.name is not None  # resolve_trial has set it
    run_dir = sweep_dir / resolved.config.name
    run_dir.mkdir(exist_ok=True)
    if not (run_dir / CONFIG).exists():
        (run_dir / DATA).write_text(json.dumps(receipt, ensure_ascii=False, indent=2), encoding="utf-8")
        write_whole(run_dir / CONFIG, dump_config(resolved))
    return run_dir


def read_end(run_dir: Path) -> dict[str, Any] | None:
    """The event that says how the trial ended; None if it has not, or may end otherwise when it is tried again."""
    try:
        events = [event for event in read_events(run_dir).rows if event["state"] in _STATES]
    except BrokenRunError:
        return None
    last = events[-1] if events else None
    if last is None or last["state"] not in ENDS or last.get("exit_code") in _NOT_ITS_FAULT:
        return None
    return last


def is_final(run_dir: Path) -> bool:
    return read_end(run_dir) is not None


def read_validations(run_dir: Path) -> dict[float, tuple[int, float]]:
    """Milestone of progress -> the step and the validation loss there; a loss that is no number is infinite."""
    try:
        rows = read_rows(run_dir / METRICS).rows
    except BrokenRunError:
        return {}
    return {
        float(row["milestone"]): (int(row["step"]), as_loss(row["val/loss"]))
        for row in rows
        if "milestone" in row and "val/loss" in row
    }


def as_loss(value: Any) -> float:
    """Not-a-number is text in JSON; no trial is better for it."""
    loss = float(value)
    return loss if math.isfinite(loss) else math.inf
