"""The trials of a sweep, best first: by the lowest validation loss that has a checkpoint, not by the last report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftray.platform.results import count_active_seconds
from sftray.platform.run_files import BrokenRunError, read_events, read_rows
from sftray.platform.sweep_files import Point, TrialRecord, read_ledger
from sftray.train_fn.checkpoint import find_best
from sftray.train_fn.journal import CHECKPOINTS, METRICS

_STATES = ("starting", "running", "finished", "pruned", "failed", "stopped", "interrupted")
SEED = "train.seed"


@dataclass(frozen=True)
class Ranked:
    """A trial and what it came to. `step`, `progress` and `examples` are those of the checkpoint with the loss;
    `followed` names the trials whose weights and settings it took over on its way (population based training)."""

    record: TrialRecord
    state: str
    why: str
    loss: float | None
    step: int | None
    progress: float | None
    seconds: float | None
    examples: int | None = None
    point: Point | None = None  # what it ended with, where that is not what it began with
    followed: tuple[str, ...] = ()

    @property
    def setting(self) -> Point:
        """What is compared: the settings that it ended with, without the seed."""
        point = self.record.point if self.point is None else self.point
        return {key: value for key, value in point.items() if key != SEED}


def load_leaderboard(sweep_dir: Path, kind: str = "search") -> list[Ranked]:
    """Trials of one kind; failed ones come last, and before them those that have no checkpoint yet."""
    ranked = [_read_trial(sweep_dir, record) for record in read_ledger(sweep_dir) if record.kind == kind]
    return sorted(ranked, key=_rank)


def _rank(each: Ranked) -> tuple[bool, float, int]:
    return each.state == "failed", math.inf if each.loss is None else each.loss, each.record.number


def _read_trial(sweep_dir: Path, record: TrialRecord) -> Ranked:
    run_dir = sweep_dir / record.name
    events, metrics = _read_files(run_dir)
    states = [event for event in events if event["state"] in _STATES]
    exploits = [event for event in events if event["state"] == "exploited" and isinstance(event.get("after"), dict)]
    best = find_best(run_dir / CHECKPOINTS)
    at_best: dict[str, Any] = next((m for m in reversed(metrics) if best and m.get("step") == best.step), {})
    times = [float(row["time"]) for row in metrics if isinstance(row.get("time"), int | float)]
    return Ranked(
        record=record,
        state=states[-1]["state"] if states else "waiting",
        why=str(states[-1].get("why") or "") if states else "",
        loss=best.manifest.val_loss if best else None,
        step=best.step if best else None,
        progress=at_best.get("progress"),
        seconds=count_active_seconds(events, times) if events else None,
        examples=at_best.get("examples"),
        point=exploits[-1]["after"] if exploits else None,
        followed=tuple(str(event.get("from")) for event in exploits),
    )


def _read_files(run_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events and metrics, as many as can be read."""
    try:
        return read_events(run_dir).rows, read_rows(run_dir / METRICS).rows
    except BrokenRunError:
        return [], []


def choose_finalists(ranked: Sequence[Ranked], count: int) -> list[Ranked]:
    """The best finished trials of `count` different settings, which they had from beginning to end."""
    chosen: list[Ranked] = []
    for each in ranked:
        is_whole = each.state == "finished" and each.loss is not None and not each.followed
        if is_whole and each.setting not in [c.setting for c in chosen]:
            chosen.append(each)
    return chosen[:count]
