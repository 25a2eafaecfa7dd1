"""The curves of a sweep's trials, and where some of them were stopped."""

import math
from collections.abc import Sequence
from typing import Any

from sftray.platform.report_figures import (
    BEST,
    LAST,
    PROGRESS,
    SECOND,
    Axis,
    Curve,
    Points,
    build_figure,
    build_picture,
    colour_by_rank,
    draw_curves,
    escape,
    format_percent,
    shape_axis,
)
from sftray.platform.report_page import Cell, Fold, Part, Picture, Pictures, Table, Words
from sftray.platform.report_run import take
from sftray.platform.report_stops import CRITERION, Stop, describe_stops, judge_stop
from sftray.platform.report_trials import Trial, describe_point

_IN_LEGEND = 6  # of the best; the others are told at the pointer
_MOST_POINTS = 300  # of a curve of a metric: fifty trials are to open on a phone
_THIN = 12  # trials, from which on lines are thin
_FEW_STOPS = 12  # so many are listed unfolded


def build_curves(trials: Sequence[Trial]) -> list[Part]:
    """Validation and training loss, learning rate and throughput of all trials."""
    loss = _build_losses(trials)
    pictures: list[Picture] = []
    if loss:
        named = len(loss) > _IN_LEGEND and any(curve.in_legend for curve in loss)
        figure = draw_curves(loss, PROGRESS, Axis("validation loss", log=None))
        note = "Coloured by rank, the best in orange, failed ones in red; a cross ends a trial before its end. "
        note += "Point at a line for its trial." + (f" The legend has the best {_IN_LEGEND}." if named else "")
        pictures.append(build_picture("Validation loss", figure, note, wide=True, height=420))
    pictures += _draw_metric(trials, "optim/learning_rate", "Learning rate", Axis("learning rate", log=None))
    pictures += _draw_metric(trials, "train/loss", "Training loss", Axis("training loss", log=None))
    pictures += _draw_speeds(trials)
    return [Pictures(pictures)] if pictures else [Words(["No trial has logged a step."], "note")]


def _build_losses(trials: Sequence[Trial]) -> list[Curve]:
    """Worst first: the best is drawn last, above the others."""
    curves = [
        _shape(trial, [(p, loss) for p, loss in trial.losses.items() if math.isfinite(loss)], len(trials), True)
        for trial in reversed(trials)
    ]
    return [curve for curve in curves if curve.points]


def _shape(trial: Trial, points: Points, count: int, has_marks: bool) -> Curve:
    is_best, is_ranked = trial.rank == 1, trial.rank is not None
    thin = 1.0 if count > _THIN else 1.6
    state = trial.state if trial.rank is None else f"number {trial.rank}, {trial.state}"
    return Curve(
        name=trial.name,
        points=points,
        colour=colour_by_rank(trial.rank, count),
        about=f"{state}; {describe_point(trial.point)}",
        width=3.2 if is_best else thin,
        dash="solid" if is_ranked else "dot",
        markers=has_marks and (is_best or count <= _THIN),
        end="x" if has_marks and trial.state in ("pruned", "failed") else "",
        in_legend=is_ranked and (trial.rank or 0) <= _IN_LEGEND,
    )


def _draw_metric(trials: Sequence[Trial], name: str, title: str, y: Axis) -> list[Picture]:
    shaped = [
        _shape(trial, take(trial.metrics, name, "progress", _MOST_POINTS), len(trials), False)
        for trial in reversed(trials)
    ]
    curves = [curve for curve in shaped if curve.points]
    if not curves:
        return []
    figure = draw_curves(curves, PROGRESS, y)
    figure.update_layout(showlegend=False)
    return [build_picture(title, figure, "Colours as above.")]


def _draw_speeds(trials: Sequence[Trial]) -> list[Picture]:
    """A bar per trial, in the order of their numbers."""
    known = sorted((t for t in trials if t.speed is not None), key=lambda trial: trial.ranked.record.number)
    if not known:
        return []
    bars = {
        **{"type": "bar", "x": [trial.name for trial in known], "y": [trial.speed for trial in known]},
        "marker": {"color": [colour_by_rank(trial.rank, len(trials)) for trial in known]},
        "text": [f"<b>{escape(t.name)}</b><br>{escape(describe_point(t.point))}" for t in known],
        **{"textposition": "none", "hovertemplate": "%{text}<br>%{y:,.0f} target tokens/s<extra></extra>"},
    }
    y = shape_axis(Axis("target tokens/s", from_zero=True), [])
    x = {"type": "category", "fixedrange": True, "tickangle": -60, "automargin": True, "nticks": 16}
    names = [trial.name.removeprefix("trial-") for trial in known]
    x |= {"tickvals": [trial.name for trial in known], "ticktext": names} if len(known) <= 16 else {}
    figure = build_figure([bars], xaxis=x, yaxis=y, bargap=0.25)
    note = "Median over the steps of each trial; trials share the machines, so this is no measurement of settings."
    return [build_picture("Throughput", figure, note)]


def build_stop_parts(trials: Sequence[Trial]) -> list[Part]:
    """Who was stopped where, against what the others had there; nothing where no trial was."""
    stopped = [(trial, *trial.stop) for trial in trials if trial.stop is not None]
    if not stopped:
        return []
    finished = [trial for trial in trials if trial.is_finished and trial.losses]
    losses = [trial.losses for trial in finished]
    stops = [judge_stop(trial.name, progress, loss, losses) for trial, progress, loss in stopped]
    stops.sort(key=lambda stop: (stop.progress, stop.loss))
    winner = finished[0].name if finished else ""
    table = Table(
        [
            "trial",
            "stopped at",
            "its loss",
            "the winner's there",
            "gap",
            "made up later",
            "behind it",
            "could have won",
        ],
        [_show_stop(stop) for stop in stops],
        numbers=range(1, 7),
    )
    few = len(stops) <= _FEW_STOPS
    return [
        Words(describe_stops(stops, winner)),
        Pictures([_draw_stops(stops, finished)]),
        table if few else Fold(f"All {len(stops)} stopped trials", [table]),
        Words([CRITERION], "note"),
    ]


def _show_stop(stop: Stop) -> list[Cell | str]:
    verdict = {True: "yes", False: "no", None: "cannot tell"}[stop.could_have_won]
    return [
        Cell(stop.name, style="name"),
        format_percent(stop.progress),
        _write(stop.loss),
        _write(stop.winner_loss),
        _write(stop.gap),
        _write(stop.made_up if stop.could_have_won is not None else None),
        f"{stop.behind} of {stop.finished}",
        verdict,
    ]


def _write(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4g}" if math.isfinite(loss) else "no number"


def _draw_stops(stops: Sequence[Stop], finished: Sequence[Trial]) -> Picture:
    curves = [
        Curve(
            name=f"{trial.name}, the winner" if place == 0 else trial.name,
            points=[(p, loss) for p, loss in trial.losses.items() if math.isfinite(loss)],
            colour=BEST if place == 0 else LAST,
            about=describe_point(trial.point),
            width=3.2 if place == 0 else 1.2,
            in_legend=place == 0,
        )
        for place, trial in reversed([*enumerate(finished)])
    ]
    shown = [stop for stop in stops if math.isfinite(stop.loss)]
    figure = draw_curves([curve for curve in curves if curve.points], PROGRESS, Axis("validation loss", log=None))
    groups = [("stopped, could not have won", SECOND, False), ("stopped, could have won", "#9c36b5", True)]
    for name, colour, verdict in groups:
        figure.add_trace(_shape_stops(name, colour, [s for s in shown if bool(s.could_have_won) == verdict]))
    values = [y for curve in curves for _, y in curve.points] + [stop.loss for stop in shown]
    figure.update_layout(yaxis=shape_axis(Axis("validation loss", log=None), values), showlegend=True)
    note = "Lines are the trials that finished, crosses the places where others were stopped."
    return build_picture("When they were stopped", figure, note, wide=True, height=380)


def _shape_stops(name: str, colour: str, stops: Sequence[Stop]) -> dict[str, Any]:
    return {
        **{"type": "scatter", "mode": "markers", "name": name, "showlegend": bool(stops)},
        **{"x": [stop.progress for stop in stops], "y": [stop.loss for stop in stops]},
        "marker": {"symbol": "x", "size": 9, "color": colour, "line": {"width": 0}},
        "text": [escape(stop.name) for stop in stops],
        "hovertemplate": "<b>%{text}</b><br>stopped at %{x:.3p}: %{y:.4g}<extra></extra>",
    }
