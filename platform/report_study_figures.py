"""Pictures of an Optuna study: importance, two settings at once, and each alone."""

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftray.platform.report_figures import (
    BEST,
    SECOND,
    Axis,
    build_figure,
    build_picture,
    colour_by_rank,
    escape,
    plan_log_ticks,
    restyle,
    shape_axis,
    write_tick,
)
from sftray.platform.report_page import Picture

if TYPE_CHECKING:
    from optuna import Study

LEAST_FOR_IMPORTANCE, LEAST_FOR_CONTOUR = 6, 4  # finished trials
_RATE, _BATCH = "learning_rate", ("gradient_accumulation_steps", "global_batch_size")


def list_complete(study: "Study") -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE,))


def count_trials(number: int) -> str:
    return "no trial" if number == 0 else f"{number} trial" if number == 1 else f"{number} trials"


def draw_importance(study: "Study", names: Sequence[str]) -> Picture | str:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    count = len(list_complete(study))
    if len(names) < 2:
        return f"Importance is not shown: only {names[0]} differs between the finished trials."
    if count < LEAST_FOR_IMPORTANCE:
        return f"Importance takes {LEAST_FOR_IMPORTANCE} finished trials, and {count_trials(count)} did."
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
    note = f"Share in what sets the better trials apart (PED-ANOVA). Rough: only {count_trials(count)} finished."
    return build_picture("Importance", figure, note, height=max(180, 46 * len(names) + 60))


def draw_contour(study: "Study", names: Sequence[str]) -> Picture | str:
    from optuna.visualization import plot_contour

    first = next((name for name in names if name.endswith(_RATE)), names[0])
    second = next((name for name in names if name.endswith(_BATCH)), next((n for n in names if n != first), None))
    if second is None or second == first:
        return "The map of two settings is not shown: only one differs between the finished trials."
    count = len(list_complete(study))
    if count < LEAST_FOR_CONTOUR:
        return f"The map of two settings takes {LEAST_FOR_CONTOUR} finished trials, and {count_trials(count)} did."
    figure = restyle(plot_contour(study, params=[first, second]), showlegend=False)
    for trace in figure.data:
        trace.update(x=_unquote(trace.x), y=_unquote(trace.y))
        if trace.type == "contour":
            trace.update(colorscale="Blues", reversescale=True, line={"width": 0.5})
            trace.update(colorbar={"title": {"text": "loss"}, "thickness": 12, "outlinewidth": 0})
        else:
            trace.update(marker={"color": BEST, "size": 7})
    x, y = sorted((first, second))  # as Optuna puts them
    shared = {"automargin": True, "fixedrange": True, "zeroline": False}
    figure.update_xaxes(**shared, **_shape_ticks(study, x))
    figure.update_yaxes(**shared, **_shape_ticks(study, y))
    return build_picture(f"{first} × {second}", figure, "Points are finished trials; between them it is a guess.")


def _unquote(values: Sequence[Any]) -> list[Any]:
    """Optuna writes choices as Python does, with quotes around texts."""
    return [ast.literal_eval(v) if isinstance(v, str) and v[:1] in ("'", '"') else v for v in values]


def _shape_ticks(study: "Study", name: str) -> dict[str, Any]:
    """Ticks that a person can read, in place of 100µ; of choices all, in their order."""
    distribution: Any = study.trials[0].distributions[name]
    if hasattr(distribution, "choices"):
        return {"type": "category", "categoryorder": "array", "categoryarray": list(distribution.choices)}
    values = [trial.params[name] for trial in list_complete(study)]
    if not distribution.log:
        return {"exponentformat": "e"}
    ticks = plan_log_ticks(min(values), max(values))
    return {"tickvals": ticks, "ticktext": [write_tick(tick) for tick in ticks], "type": "log"}


def draw_slice(study: "Study", name: str) -> Picture:
    """The losses of finished trials over one setting."""
    ranked = sorted(list_complete(study), key=lambda trial: float(trial.value), reverse=True)
    colours = [colour_by_rank(len(ranked) - index, len(ranked)) for index in range(len(ranked))]
    points = {
        **{"type": "scatter", "mode": "markers", "marker": {"color": colours, "size": 9}},
        **{"x": [trial.params[name] for trial in ranked], "y": [trial.value for trial in ranked]},
        "text": [f"<b>{escape(t.user_attrs['trial'])}</b><br>{name} {_write(t.params[name])}" for t in ranked],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
    }
    x = {**shape_axis(Axis(""), []), **_shape_ticks(study, name)}
    y = shape_axis(Axis("best validation loss", log=None), [trial.value for trial in ranked])
    figure = build_figure([points], xaxis=x, yaxis=y)
    return build_picture(f"{name}, trial by trial", figure, "Each point is a finished trial.", height=280)


def _write(value: Any) -> str:
    return value if isinstance(value, str) else write_tick(value)
