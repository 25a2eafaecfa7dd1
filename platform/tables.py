"""The runs of a store as a table: as many columns as the terminal has room for."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftray.platform.terminal import format_number, format_seconds, format_time, plain

STATE_STYLES = {
    "finished": "green",
    "pruned": "magenta",
    "running": "cyan",
    "prepared": "cyan",
    "starting": "cyan",
    "stopped": "yellow",
    "interrupted": "yellow",
    "failed": "bold red",
    "broken": "bold red",
}
_WITH_REASON = ("failed", "pruned", "broken", "stopped", "interrupted")

Run = dict[str, Any]  # one row of load_runs


@dataclass(frozen=True)
class _Column:
    """`width` is what the terminal must have, in characters, for the column to be shown."""

    header: str
    width: int
    show: Callable[[Run], Text]
    justify: Any = "right"


def as_run(record: Mapping[Hashable, Any]) -> Run:
    return {str(key): value for key, value in record.items()}


def is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or value != value  # NaN


def show_state(run: Run) -> Text:
    return plain(run["state"], STATE_STYLES.get(run["state"], ""))


def show_value(value: object) -> Text:
    """A cell for whatever a column may hold."""
    if is_missing(value):
        return Text("–", "dim")
    if isinstance(value, pd.Timestamp):
        return plain(format_time(value.timestamp())[:16])
    return plain(format_number(value) if isinstance(value, float) else value)


def show_progress(run: Run) -> Text:
    if is_missing(run["step"]):
        return show_value(None)
    share = "" if is_missing(run["progress"]) else f" {run['progress']:.0%}"
    return plain(f"{run['step']}{share}")


def show_change(before: object, after: object) -> Text:
    return Text(" → ").join([show_value(before), show_value(after)])


def show_exact_match(run: Run) -> Text:
    if is_missing(run["exact_match"]):
        return show_value(None)
    before = "–" if is_missing(run["exact_match_before"]) else f"{run['exact_match_before']:.0%}"
    return plain(f"{before} → {run['exact_match']:.0%}")


def show_seconds(value: float) -> Text:
    return show_value(None) if is_missing(value) else plain(format_seconds(value))


_COLUMNS = (
    _Column("run", 0, lambda run: plain(run["name"], "bold"), "left"),
    _Column("state", 0, show_state, "left"),
    _Column("step", 0, show_progress),
    _Column("val/loss", 0, lambda run: show_change(run["val/loss_before"], run["val/loss"])),
    _Column("train/loss", 80, lambda run: show_value(run["train/loss"])),
    _Column("exact match", 100, show_exact_match),
    _Column("best at", 120, lambda run: show_value(run["best_step"])),
    _Column("tokens/s", 120, lambda run: show_value(run["perf/target_tokens_per_second"])),
    _Column("time", 140, lambda run: show_seconds(run["seconds"])),
    _Column("started", 140, lambda run: show_value(run["started"]), "left"),
    _Column("memory GB", 160, lambda run: show_value(run["perf/peak_memory_gb"])),
    _Column("attempts", 160, lambda run: show_value(run["attempts"])),
)


def show_runs(runs: pd.DataFrame, console: Console, sorted_by: str | None = None) -> None:
    """Print the rows of `load_runs`, and why those ended that did not finish.

    Args:
        sorted_by: a column that is shown whatever the width.
    """
    if runs.empty:
        console.print("no runs here", style="dim")
        return
    columns = [column for column in _COLUMNS if column.width <= console.width]
    if sorted_by is not None and sorted_by not in {"name", *(column.header for column in columns)}:
        header = sorted_by.removeprefix("config.")
        columns.append(_Column(header, 0, lambda run: show_value(run[sorted_by])))
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        is_name = column.header == "run"  # a name is folded and never cut: it must be possible to copy it
        overflow: Any = "fold" if is_name else "ellipsis"
        table.add_column(plain(column.header), justify=column.justify, no_wrap=not is_name, overflow=overflow)
    records = [as_run(record) for record in runs.to_dict("records")]
    for run in records:
        table.add_row(*(column.show(run) for column in columns))
    console.print(table)
    for run in records:
        if run["state"] in _WITH_REASON and not is_missing(run["why"]) and run["why"]:
            line = Text(": ").join([plain(run["name"], "bold"), plain(run["why"])])
            console.print(Text(" ").join([show_state(run), line]))
