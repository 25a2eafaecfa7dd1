"""Figures of a report: how all of them look, and curves, which most of them are."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftray.platform.report_page import Picture
from sftray.platform.terminal import show_controls

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# They are to be told apart on white and on black, and by those who do not see red and green.
BEST, SECOND, LAST = "#e8590c", "#1c7ed6", "#a3b1bf"
FAILED = "#e03131"
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
_WIDE_RANGE = 5.0  # highest ÷ lowest, from which on a loss is drawn on a logarithmic axis
_MOST_TICKS = 6

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of a figure. `about` is text that shows at the pointer, `end` the symbol of its last point."""

    name: str
    points: Points
    colour: str
    about: str = ""
    width: float = 2.0
    dash: str = "solid"
    markers: bool = False
    end: str = ""
    in_legend: bool = True


@dataclass(frozen=True)
class Axis:
    """`percent`: values are shares. `log` None: as the values are."""

    title: str
    percent: bool = False
    log: bool | None = False
    from_zero: bool = False


PROGRESS = Axis("progress", percent=True)
STEP = Axis("step")


def escape(value: object) -> str:
    """Text that Plotly shows as it is: it reads tags and entities in its texts."""
    return html.escape(show_controls(str(value)), quote=False)


def format_percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def blend(first: str, second: str, share: float) -> str:
    """The colour `share` of the way from `first` to `second`, both as #rrggbb."""
    pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def colour_by_rank(rank: int | None, count: int) -> str:
    """From the best, which stands out, to the last of `count`; without a rank, it failed."""
    if rank is None:
        return FAILED
    return BEST if rank == 1 else blend(SECOND, LAST, (rank - 2) / max(count - 2, 1))


def thin(points: Points, most: int) -> Points:
    """Every k-th of `points` and the last one, so that they are about `most`."""
    stride = -(-len(points) // most)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def plan_log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between positive `low` and `high`, fewer where that would be many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * 0.95 <= tick <= high * 1.05]
        if len(ticks) <= _MOST_TICKS:
            break
    stride = -(-len(ticks) // _MOST_TICKS)
    ticks = ticks[::stride] if ticks else []
    return ticks if len(ticks) > 1 else [low, high]


def write_tick(value: float) -> str:
    """`1e-4`, `0.02`, `1.5`, `2,000`"""
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def shape_axis(axis: Axis, values: Iterable[float]) -> dict[str, Any]:
    """Plotly's settings for an axis over `values`."""
    finite = [value for value in values if math.isfinite(value)]
    shape: dict[str, Any] = {
        **{"title": {"text": escape(axis.title), "standoff": 8}, "automargin": True, "zeroline": False},
        **{"showline": True, "ticks": "", "exponentformat": "e", "fixedrange": True},
    }
    if axis.percent:
        shape |= {"tickformat": ".0%", "range": [0, 1.02]}
    positive = bool(finite) and min(finite) > 0
    log = positive and max(finite) >= _WIDE_RANGE * min(finite) if axis.log is None else axis.log and positive
    if log:
        low, high = min(finite), max(finite)
        margin = max(0.05 * math.log10(high / low), 0.02)
        ticks = plan_log_ticks(low, high)
        shape |= {"type": "log", "range": [math.log10(low) - margin, math.log10(high) + margin]}
        shape |= {"tickvals": ticks, "ticktext": [write_tick(tick) for tick in ticks]}
    elif axis.from_zero:
        shape |= {"rangemode": "tozero", "separatethousands": True}
    return shape


def draw_curves(curves: Sequence[Curve], x: Axis, y: Axis) -> "Figure":
    """Lines in the order of `curves`: the last one lies on top, and the legend starts with it."""
    data = [_shape_curve(curve, x) for curve in curves]
    points = [point for curve in curves for point in curve.points]
    return build_figure(
        data,
        xaxis=shape_axis(x, (place for place, _ in points)),
        yaxis=shape_axis(y, (value for _, value in points)),
        showlegend=sum(curve.in_legend for curve in curves) > 1,
    )


def _shape_curve(curve: Curve, x: Axis) -> dict[str, Any]:
    count = len(curve.points)
    ends = [curve.end] if curve.end else ["circle"]
    sizes = [5 if curve.markers else 0] * (count - 1) + [9 if curve.end else 6 if curve.markers or count == 1 else 0]
    place = "%{x:.3p}" if x.percent else f"{escape(x.title)} %{{x}}"
    return {
        **{"type": "scatter", "name": escape(curve.name), "mode": "lines+markers", "connectgaps": True},
        **{"x": [place for place, _ in curve.points], "y": [value for _, value in curve.points]},
        "line": {"color": curve.colour, "width": curve.width, "dash": curve.dash},
        "marker": {
            **{"color": curve.colour, "size": sizes, "line": {"width": 0}},
            "symbol": ["circle"] * (count - 1) + ends,
        },
        "text": "<br>".join(filter(None, [f"<b>{escape(curve.name)}</b>", escape(curve.about)])),
        "hovertemplate": f"%{{text}}<br>{place}: %{{y:.4g}}<extra></extra>",
        "showlegend": curve.in_legend,
    }


def build_figure(data: Sequence[dict[str, Any]], **layout: Any) -> "Figure":
    """A figure of the page's look; colours of text and lines are the page's own, put in when it opens."""
    from plotly.graph_objects import Figure

    return restyle(Figure(list(data)), **layout)


def restyle(figure: "Figure", **layout: Any) -> "Figure":
    """Take from a figure, maybe a library's, what is not the page's look."""
    figure.update_layout(
        template={},
        title=None,
        autosize=True,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        font={"family": _FONT, "size": 12},
        hovermode="closest",
        dragmode=False,
        legend={
            **{"orientation": "h", "yanchor": "top", "y": -0.17, "x": 0, "traceorder": "reversed"},
            **{"itemclick": False, "itemdoubleclick": False, "title": {"text": ""}},
        },
    )
    figure.update_layout(layout)
    return figure


def build_picture(title: str, figure: "Figure", note: str = "", **shape: Any) -> Picture:
    """`shape`: height, wide, min_width of a Picture."""
    from plotly.io import to_json

    # Plotly's other engine refuses texts with half a character, which a damaged file may hold.
    text: str = to_json(figure, engine="json")
    return Picture(title, text, note, **shape)
