"""What mattered: an Optuna study made from the trials, and Optuna's pictures of it in the page's look.

Finished trials are complete with their best validation loss; pruned ones keep their values on the way, failed ones
have none. Where a picture would say nothing, a sentence says why.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sftray.platform.report_figures import (
    BEST,
    SECOND,
    build_figure,
    build_picture,
    escape,
    plan_log_ticks,
    restyle,
    write_tick,
)
from sftray.platform.report_page import Part, Picture, Pictures, Words
from sftray.platform.report_trials import Trial, is_number, list_keys, shorten_keys, write_point_value

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from plotly.graph_objects import Figure

LEAST_FOR_IMPORTANCE, LEAST_FOR_CONTOUR, LEAST = 6, 4, 2  # finished trials
_MOST_CHOICES = 6  # so many different numbers are shown as separate values
_LOG_RANGE = 20.0  # highest ÷ lowest of a setting, from which on its axis is logarithmic
_ABSENT = "–"
_RATE, _BATCH = "learning_rate", ("gradient_accumulation_steps", "global_batch_size")


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
        return [Words([f"What mattered cannot be told: {_count(len(finished))} finished, and it takes {LEAST}."])]
    with _quiet():
        study = build_study(trials)
        varied = [name for name in study.trials[0].params if _count_values(study, name) > 1]
        if not varied:
            return [Words(["What mattered cannot be told: all finished trials have the same settings."])]
        pictures, said = [], []
        for made in (_draw_importance(study, varied), _draw_contour(study, varied)):
            (said if isinstance(made, str) else pictures).append(made)  # type: ignore[arg-type]  # by its class
        pictures += [_draw_slice(study, name) for name in varied]
        pictures.append(_draw_parallel(study, varied))
    return [Pictures([p for p in pictures if isinstance(p, Picture)]), *([Words(said, "note")] if said else [])]


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


def _list_complete(study: "Study") -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE,))


def _count_values(study: "Study", name: str) -> int:
    return len({trial.params[name] for trial in _list_complete(study)})


def _count(number: int) -> str:
    return "no trial" if number == 0 else f"{number} trial" if number == 1 else f"{number} trials"


def _draw_importance(study: "Study", names: Sequence[str]) -> Picture | str:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    count = len(_list_complete(study))
    if len(names) < 2:
        return f"Importance is not shown: only {names[0]} differs between the finished trials."
    if count < LEAST_FOR_IMPORTANCE:
        return f"Importance is not shown: {_count(count)} finished, and it takes {LEAST_FOR_IMPORTANCE}."
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=list(names))
    order = sorted(shares, key=lambda name: shares[name])
    bars = {
        **{"type": "bar", "orientation": "h", "y": order, "x": [shares[name] for name in order]},
        **{"marker": {"color": SECOND}, "text": [f"{shares[name]:.0%}" for name in order], "textposition": "auto"},
        **{"hovertemplate": "%{y}: %{x:.0%}<extra></extra>", "cliponaxis": False},
    }
    figure = build_figure([bars], bargap=0.35)
    figure.update_xaxes(range=[0, 1.05], tickformat=".0%", fixedrange=True, automargin=True)
    figure.update_yaxes(automargin=True, fixedrange=True, ticksuffix=" ")
    note = (
        f"Share in what sets the better trials apart (PED-ANOVA), from {_count(count)} that finished: few, so rough."
    )
    return build_picture("Importance", figure, note, height=max(180, 46 * len(names) + 60))


def _draw_contour(study: "Study", names: Sequence[str]) -> Picture | str:
    from optuna.visualization import plot_contour

    first = next((name for name in names if name.endswith(_RATE)), names[0])
    second = next((name for name in names if name.endswith(_BATCH)), next((n for n in names if n != first), None))
    if second is None:
        return "The map of two settings is not shown: only one differs between the finished trials."
    count = len(_list_complete(study))
    if count < LEAST_FOR_CONTOUR:
        return f"The map of two settings is not shown: {_count(count)} finished, and it takes {LEAST_FOR_CONTOUR}."
    figure = restyle(plot_contour(study, params=[first, second]), showlegend=False)
    figure.update_traces(
        **{"selector": {"type": "contour"}, "colorscale": "Blues", "reversescale": True, "line": {"width": 0.5}},
        **{"colorbar": {"title": {"text": "loss"}, "thickness": 12, "outlinewidth": 0}},
    )
    figure.update_traces(selector={"type": "scatter"}, marker={"color": BEST, "size": 7})
    _name_axes(figure, study, first, second)
    return build_picture(f"{first} × {second}", figure, "Points are finished trials; between them it is a guess.")


def _draw_slice(study: "Study", name: str) -> Picture:
    from optuna.visualization import plot_slice

    figure = restyle(plot_slice(study, params=[name]), width=None)
    figure.update_traces(marker={"color": SECOND, "size": 8, "showscale": False, "line": {"width": 0}})
    _name_axes(figure, study, name, None)
    figure.update_yaxes(title="best validation loss")
    return build_picture(f"{name}, trial by trial", figure, "Each point is a finished trial.", height=280)


def _name_axes(figure: "Figure", study: "Study", x: str, y: str | None) -> None:
    """Ticks that a person can read, in place of 100µ."""
    shared = {"automargin": True, "fixedrange": True, "exponentformat": "e", "zeroline": False}
    figure.update_xaxes(**shared, **_shape_ticks(study, x))
    figure.update_yaxes(**shared, **(_shape_ticks(study, y) if y else {}))


def _shape_ticks(study: "Study", name: str) -> dict[str, Any]:
    distribution: Any = study.trials[0].distributions[name]
    if not getattr(distribution, "log", False):
        return {"type": "category"} if hasattr(distribution, "choices") else {}
    values = [trial.params[name] for trial in _list_complete(study)]
    ticks = plan_log_ticks(min(values), max(values))
    return {"tickvals": ticks, "ticktext": [write_tick(tick) for tick in ticks], "type": "log"}


def _draw_parallel(study: "Study", names: Sequence[str]) -> Picture:
    from optuna.visualization import plot_parallel_coordinate

    figure = restyle(plot_parallel_coordinate(study, params=list(names)), margin={"l": 60, "r": 24, "t": 48, "b": 24})
    figure.update_traces(line={"colorscale": [[0, BEST], [0.4, SECOND], [1, "#ced4da"]], "reversescale": False})
    note = "Each line is a finished trial: from its best validation loss to its settings."
    return build_picture(
        "Parallel coordinates", figure, note, wide=True, height=340, min_width=130 * (len(names) + 1) + 84
    )
