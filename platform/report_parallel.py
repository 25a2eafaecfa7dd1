"""Parallel coordinates: a line per finished trial through its settings to its loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftray.platform.report_figures import (
    build_figure,
    build_picture,
    colour_by_rank,
    escape,
    plan_log_ticks,
    write_tick,
)
from sftray.platform.report_page import Picture

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

_AXIS_WIDTH = 104  # px, below which texts of neighbouring axes meet
_LOSS = "best val loss"
_APART = 0.07  # of an axis, between neighbouring ticks
_MOST_CHOICES = 12  # of an axis get a text
_LONG = 12  # characters, from which on a name is broken at its underscores


@dataclass(frozen=True)
class _Axis:
    """`places` of the trials on it and of its ticks, between 0 and 1."""

    title: str
    places: list[float]
    ticks: dict[str, float]


def draw_parallel(trials: Sequence["FrozenTrial"], names: Sequence[str]) -> Picture:
    """`trials` have values and all of the parameters `names`, whose texts are escaped."""
    ranked = sorted(trials, key=lambda trial: trial.values[0], reverse=True)
    axes = [_build_axis(name, [t.params[name] for t in ranked], ranked[0].distributions[name]) for name in names]
    losses = [trial.values[0] for trial in ranked]
    axes.append(_build_range(_LOSS, losses, log=min(losses) > 0 and max(losses) >= 5 * min(losses)))
    figure = _draw([_shape_line(ranked, index, axes) for index in range(len(ranked))], axes)
    note = "Each line is a finished trial, coloured by rank, the best in orange."
    width = _AXIS_WIDTH * len(axes)
    return build_picture("Parallel coordinates", figure, note, wide=True, height=340, min_width=width)


def _build_axis(name: str, values: Sequence[Any], distribution: Any) -> _Axis:
    if not hasattr(distribution, "choices"):
        return _build_range(name, values, distribution.log)
    places = {
        choice: _place(index, 0, len(distribution.choices) - 1) for index, choice in enumerate(distribution.choices)
    }
    shown = list(places)[:: -(-len(places) // _MOST_CHOICES)]
    return _Axis(name, [places[value] for value in values], {choice: places[choice] for choice in shown})


def _build_range(name: str, values: Sequence[float], log: bool) -> _Axis:
    low, high = min(values), max(values)
    scale = math.log if log else float
    inner = plan_log_ticks(low, high) if log else [low + (high - low) * part / 4 for part in (1, 2, 3)]
    places = {write_tick(tick): _place(scale(tick), scale(low), scale(high)) for tick in inner}
    places = {text: place for text, place in places.items() if _APART < place < 1 - _APART}  # clear of either end
    places |= {write_tick(end): _place(scale(end), scale(low), scale(high)) for end in (low, high)}
    return _Axis(name, [_place(scale(value), scale(low), scale(high)) for value in values], places)


def _place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _shape_line(ranked: Sequence["FrozenTrial"], index: int, axes: Sequence[_Axis]) -> dict[str, Any]:
    """Of the trial at `index` from the worst."""
    trial, rank = ranked[index], len(ranked) - index
    about = [f"{axis.title} {_write(trial.params[axis.title])}" for axis in axes[:-1]]
    texts = [f"<b>{escape(trial.user_attrs['trial'])}</b>, number {rank}", *about, f"{_LOSS} {trial.values[0]:.4f}"]
    return {
        **{"type": "scatter", "mode": "lines+markers", "showlegend": False},
        **{"x": list(range(len(axes))), "y": [axis.places[index] for axis in axes]},
        "line": {"color": colour_by_rank(rank, len(ranked)), "width": 3.2 if rank == 1 else 1.4},
        "marker": {"size": 5},
        **{"text": "<br>".join(texts), "hovertemplate": "%{text}<extra></extra>"},
    }


def _break(name: str) -> str:
    return name.replace("_", "_<br>") if len(name) > _LONG else name


def _write(value: Any) -> str:
    return value if isinstance(value, str) else write_tick(value)


def _draw(lines: Sequence[dict[str, Any]], axes: Sequence[_Axis]) -> "Figure":
    shapes = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "line": {"color": "#868e96", "width": 1},
            "layer": "below",
        }
        for x in range(len(axes))
    ]
    ticks = [
        {
            **{"x": x, "y": place, "text": text, "showarrow": False, "xanchor": "right", "xshift": -6},
            **{"font": {"size": 11}, "bgcolor": "rgba(134,142,150,0.12)"},
        }
        for x, axis in enumerate(axes)
        for text, place in axis.ticks.items()
    ]
    names = {"tickvals": list(range(len(axes))), "ticktext": [_break(axis.title) for axis in axes], "tickangle": 0}
    return build_figure(
        lines,
        xaxis={**names, "range": [-0.55, len(axes) - 0.5], "showgrid": False, "zeroline": False, "fixedrange": True},
        yaxis={"range": [-0.06, 1.06], "visible": False, "fixedrange": True},
        shapes=shapes,
        annotations=ticks,
    )
