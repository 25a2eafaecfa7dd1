"""The trials of a sweep as its report needs them: ranked, with their curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sftray.platform.certainty import write_number
from sftray.platform.leaderboard import Ranked, load_leaderboard
from sftray.platform.run_files import BrokenRunError, load_metrics, read_events, shape_metrics
from sftray.platform.sweep_files import Point
from sftray.platform.sweep_table import shorten_keys
from sftray.platform.trial_directory import as_loss, read_validations
from sftray.train_fn.config_syntax import write_value


@dataclass(frozen=True)
class Trial:
    """`rank` is 1 for the best; None without a loss. `losses`: progress -> validation loss, infinite where it was
    no number."""

    ranked: Ranked
    rank: int | None
    losses: dict[float, float]
    metrics: pd.DataFrame
    events: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.ranked.record.name

    @property
    def state(self) -> str:
        return self.ranked.state

    @property
    def point(self) -> Point:
        """The searched settings, the seed aside; of a trial that took over others', those that it ended with."""
        return self.ranked.setting

    @property
    def is_finished(self) -> bool:
        return self.state == "finished" and self.ranked.loss is not None

    @property
    def speed(self) -> float | None:
        """Target tokens per second, the median over steps."""
        name = "perf/target_tokens_per_second"
        speeds = self.metrics[name].dropna() if name in self.metrics else self.metrics["step"].iloc[:0]
        return float(speeds.median()) if len(speeds) else None

    @property
    def stop(self) -> tuple[float, float] | None:
        """Progress and validation loss at which the scheduler ended it."""
        if self.state != "pruned":
            return None
        event = next(event for event in reversed(self.events) if event["state"] == "pruned")
        try:
            return float(event["progress"]), as_loss(event["val_loss"])
        except (KeyError, TypeError, ValueError):
            return max(self.losses.items(), default=None)


def load_trials(sweep_dir: Path, kind: str = "search") -> list[Trial]:
    """Trials of one kind, best first, as the leaderboard has them."""
    trials, rank = [], 0
    for ranked in load_leaderboard(sweep_dir, kind):
        has_rank = ranked.loss is not None and ranked.state != "failed"
        rank += has_rank
        trials.append(_load_trial(sweep_dir, ranked, rank if has_rank else None))
    return trials


def _load_trial(sweep_dir: Path, ranked: Ranked, rank: int | None) -> Trial:
    run_dir = sweep_dir / ranked.record.name
    try:
        metrics, events = load_metrics(run_dir), read_events(run_dir).rows
    except BrokenRunError:
        metrics, events = shape_metrics([]), []
    losses = {mark: loss for mark, (_, loss) in sorted(read_validations(run_dir).items())}
    return Trial(ranked, rank, losses, metrics, events)


def list_keys(trials: Sequence[Trial]) -> list[str]:
    """The searched settings, in the order in which the trials name them."""
    return list(dict.fromkeys(key for trial in trials for key in trial.point))


def write_point_value(value: Any) -> str:
    return write_number(value) if isinstance(value, float) else write_value(value)


def describe_point(point: Point) -> str:
    names = shorten_keys(list(point))
    return ", ".join(f"{names[key]} {write_point_value(value)}" for key, value in point.items())


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
