"""What mattered: an Optuna study made from the trials, and Optuna's pictures of it in the page's look.

Finished trials are complete with their best validation loss; pruned ones keep their values on the way, failed ones
have none. Where a picture would say nothing, a sentence says why.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sftray.platform.report_figures import escape
from sftray.platform.report_page import Part, Picture, Pictures, Words
from sftray.platform.report_parallel import draw_parallel
from sftray.platform.report_study_figures import (
    count_trials,
    draw_contour,
    draw_importance,
    draw_slice,
    list_complete,
)
from sftray.platform.report_trials import Trial, is_number, list_keys, write_point_value
from sftray.platform.sweep_table import shorten_keys

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

LEAST = 2  # finished trials
_MOST_CHOICES = 6  # so many different numbers are shown as separate values
_LOG_RANGE = 20.0  # highest ÷ lowest of a setting, from which on its axis is logarithmic
_ABSENT = "–"


def build_study(trials: Sequence[Trial]) -> "Study":
    """The study of `trials`; its parameters are named as the page shows them, escaped for Plotly."""
    import optuna
    from optuna.trial import create_trial

    names = shorten_keys(list_keys(trials))
    distributions = {key: _choose_distribution([t.point.get(key) for t in trials]) for key in names}
    study = optuna.create_study(direction="minimize")
    for trial in sorted(trials, key=lambda trial: trial.ranked.record.number):
        params = {key: _fit(trial.point.get(key), distributions[key]) for key in names}
        state, value = _find_outcome(trial)
        study.add_trial(
            create_trial(
                state=state,
                value=value,
                params={escape(names[key]): value for key, value in params.items()},
                distributions={escape(names[key]): distributions[key] for key in names},
                intermediate_values={
                    round(progress * 1000): loss for progress, loss in trial.losses.items() if math.isfinite(loss)
                },
                user_attrs={"trial": trial.name},
            )
        )
    return study


def _find_outcome(trial: Trial) -> tuple[Any, float | None]:
    from optuna.trial import TrialState

    if trial.is_finished:
        return TrialState.COMPLETE, trial.ranked.loss
    return (TrialState.PRUNED if trial.state == "pruned" else TrialState.FAIL), None


def _choose_distribution(values: Sequence[Any]) -> "BaseDistribution":
    """A range for numbers that are many; for few, and for what is no number, the values one by one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [float(value) for value in values if is_number(value)]
    if len(numbers) == len(values) and len(set(numbers)) > _MOST_CHOICES:
        low, high = min(numbers), max(numbers)
        return FloatDistribution(low, high, log=low > 0 and high >= _LOG_RANGE * low)
    ordered = sorted(values, key=lambda value: (not is_number(value), value if is_number(value) else 0.0))
    return CategoricalDistribution(list(dict.fromkeys(map(_write_choice, ordered))))


def _write_choice(value: Any) -> str:
    return _ABSENT if value is None else escape(write_point_value(value))


def _fit(value: Any, distribution: "BaseDistribution") -> Any:
    return float(value) if hasattr(distribution, "low") else _write_choice(value)


def build_study_parts(trials: Sequence[Trial]) -> list[Part]:
    """Pictures of the settings and their losses, and sentences for those that cannot be shown."""
    finished = [trial for trial in trials if trial.is_finished]
    if len(finished) < LEAST:
        count = count_trials(len(finished))
        return [Words([f"What mattered cannot be told: {count} finished, and it takes {LEAST}."])]
    with _quiet():
        study = build_study(trials)
        varied = [name for name in study.trials[0].params if _count_values(study, name) > 1]
        if not varied:
            return [Words(["What mattered cannot be told: all finished trials have the same settings."])]
        made = [
            draw_parallel(list_complete(study), varied),
            draw_importance(study, varied),
            draw_contour(study, varied),
            *(draw_slice(study, name) for name in varied),
        ]
    said = [each for each in made if isinstance(each, str)]
    return [Pictures([p for p in made if isinstance(p, Picture)]), *([Words(said, "note")] if said else [])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of new studies and of what may change in it; the report tells of what it shows."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _count_values(study: "Study", name: str) -> int:
    return len({trial.params[name] for trial in list_complete(study)})
