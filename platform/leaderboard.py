"""The trials of a sweep, best first: by the lowest validation loss that has a checkpoint, not by the last report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftray.platform.run_files import BrokenRunError, read_events, read_rows
from sftray.platform.sweep_files import Point, TrialRecord, read_ledger
from sftray.train_fn.checkpoint import find_best
from sftray.train_fn.journal import CHECKPOINTS, METRICS

_STATES = ("starting", "running", "finished", "pruned", "failed", "stopped", "interrupted")
SEED = "train.seed"


@dataclass(frozen=True)
class Ranked:
    """A trial and what it came to. `step` and `progress` are those of the checkpoint with the loss."""

    record: TrialRecord
    state: str
    why: str
    loss: float | None
    step: int | None
    progress: float | None
    seconds: float | None

    @property
    def setting(self) -> Point:
        """What is compared: the point without the seed."""
        return {key: value for key, value in self.record.point.items() if key != SEED}


def load_leaderboard(sweep_dir: Path, kind: str = "search") -> list[Ranked]:
    """Trials of one kind; failed ones come last, and before them those that have no checkpoint yet."""
    ranked = [_read_trial(sweep_dir, record) for record in read_ledger(sweep_dir) if record.kind == kind]
    return sorted(ranked, key=_rank)


def _rank(each: Ranked) -> tuple[bool, float, int]:
    return each.state == "failed", math.inf if each.loss is None else each.loss, each.record.number


def _read_trial(sweep_dir: Path, record: TrialRecord) -> Ranked:
    run_dir = sweep_dir / record.name
    states, seconds = _read_states(run_dir)
    best = find_best(run_dir / CHECKPOINTS)
    return Ranked(
        record=record,
        state=states[-1]["state"] if states else "waiting",
        why=str(states[-1].get("why") or "") if states else "",
        loss=best.manifest.val_loss if best else None,
        step=best.step if best else None,
        progress=_find_progress(run_dir, best.step) if best else None,
        seconds=seconds,
    )


def _read_states(run_dir: Path) -> tuple[list[dict[str, Any]], float | None]:
    try:
        events = read_events(run_dir).rows
    except BrokenRunError:
        return [], None
    states = [event for event in events if event["state"] in _STATES]
    return states, float(events[-1]["time"]) - float(events[0]["time"])


def _find_progress(run_dir: Path, step: int) -> float | None:
    try:
        rows = read_rows(run_dir / METRICS).rows
    except BrokenRunError:
        return None
    return next((row.get("progress") for row in rows if row.get("step") == step), None)


def choose_finalists(ranked: Sequence[Ranked], count: int) -> list[Ranked]:
    """The best finished trials of `count` different settings."""
    chosen: list[Ranked] = []
    for each in ranked:
        if each.state == "finished" and each.loss is not None and each.setting not in [c.setting for c in chosen]:
            chosen.append(each)
    return chosen[:count]
