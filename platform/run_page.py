"""One run on one page: how it went, with what, on what data, and what it says now."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sftray.platform.before_after import describe_exact_match, show_samples
from sftray.platform.ledger_check import LedgerCheck, check_ledger
from sftray.platform.receipt_words import describe_receipt
from sftray.platform.results import (
    load_checkpoints,
    load_events,
    load_metrics,
    load_receipt,
    load_runs,
    load_samples,
    to_records,
)
from sftray.platform.run_files import BrokenRunError, load_flat_config
from sftray.platform.tables import (
    Run,
    as_run,
    is_missing,
    show_change,
    show_exact_match,
    show_progress,
    show_seconds,
    show_state,
    show_value,
)
from sftray.platform.terminal import format_bytes, format_time, plain
from sftray.train_fn.config_file import DEFAULT, load_config
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG

_LAST_EVENTS, _LAST_METRICS = 12, 8
_METRICS = (  # by importance: a narrow terminal gets the first ones
    *("step", "train/loss", "val/loss", "optim/learning_rate", "perf/target_tokens_per_second"),
    *("train/grad_norm", "progress", "perf/step_seconds", "perf/peak_memory_gb"),
)
_NOTHING = ("–", "– → –", "– at step –", "0")  # facts that a run does not have
_UNBROKEN = ("key", "time")  # columns that make others narrow before themselves
_METRIC_WIDTH = 16  # characters of one of them, on average


@dataclass(frozen=True)
class Setting:
    """A config value, and where it came from (None: nobody knows)."""

    key: str
    value: Any
    origin: str | None


def load_settings(run_dir: Path) -> list[Setting]:
    """The run's config with origins; a config of another version without them, and [] if it cannot be read."""
    try:
        resolved = load_config(run_dir / CONFIG, label=CONFIG)
        origin = resolved.origin
    except ConfigError:
        origin = {}
    try:
        return [Setting(key, value, origin.get(key)) for key, value in load_flat_config(run_dir).items()]
    except BrokenRunError:
        return []


def describe_run(run_dir: Path) -> dict[str, Any]:
    """All that `show_run` shows, and more, as JSON values; what is missing is null."""
    run, settings = to_records(load_runs(run_dir))[0], load_settings(run_dir)
    ledger = check_ledger(run_dir)
    return {
        "run": {key: value for key, value in run.items() if not key.startswith("config.")},
        "config": {setting.key: setting.value for setting in settings},
        "origin": {setting.key: setting.origin for setting in settings},
        "data": load_receipt(run_dir),
        "events": to_records(load_events(run_dir)),
        "metrics": to_records(load_metrics(run_dir)),
        "checkpoints": to_records(load_checkpoints(run_dir)),
        "samples": to_records(load_samples(run_dir)),
        "ledger": {**dataclasses.asdict(ledger), "holds": ledger.holds},
    }


def show_run(run_dir: Path, console: Console) -> None:
    run: Run = dict(load_runs(run_dir).iloc[0])
    console.print(_show_head(run))
    sections = {
        "attempts": _show_events(load_events(run_dir)),
        "config": _show_settings(load_settings(run_dir)),
        "data": _show_receipt(load_receipt(run_dir)),
        "metrics": _show_metrics(load_metrics(run_dir), console.width),
        "checkpoints": _show_checkpoints(load_checkpoints(run_dir)),
        "ledger": _show_ledger(check_ledger(run_dir)),
    }
    for title, body in sections.items():
        console.print()
        console.print(Text(title, "bold"))
        console.print(Padding(body, (0, 0, 0, 2), expand=False))
    samples = [as_run(row) for row in load_samples(run_dir).to_dict("records")]
    console.print(Text("\nsamples", "bold"))
    show_samples(console, samples)
    held_out = not is_missing(run.get("config.data.validation"))
    console.print(Text(f"  {describe_exact_match(samples, held_out)}"))


def _show_head(run: Run) -> RenderableType:
    name = Text("  ").join([plain(run["name"], "bold"), show_state(run)])
    if run["why"]:
        name.append_text(plain(f": {run['why']}"))
    facts: list[tuple[str, Text]] = [
        ("step", show_progress(run)),
        ("validation loss", show_change(run["val/loss_before"], run["val/loss"])),
        ("best", Text(" at step ").join([show_value(run["val/loss_best"]), show_value(run["best_step"])])),
        ("training loss", show_value(run["train/loss"])),
        ("exact match", show_exact_match(run)),
        ("target tokens/s", show_value(run["perf/target_tokens_per_second"])),
        ("peak memory, GB", show_value(run["perf/peak_memory_gb"])),
        ("time", show_seconds(run["seconds"])),
        ("updated", show_value(run["updated"])),
        ("unreadable lines", show_value(run["unreadable_lines"])),
        ("directory", plain(run["path"])),
    ]
    table = _build_table("", "")
    for title, value in facts:
        if value.plain not in _NOTHING:
            table.add_row(Text(title, "dim"), value)
    return Group(name, Padding(table, (0, 0, 0, 2), expand=False))


def _build_table(*headers: str, right: Collection[str] = ()) -> Table:
    """A table without lines, whose cells are folded and never cut; without headers, if they are empty."""
    table = Table(box=None, header_style="dim", pad_edge=False, show_header=any(headers))
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in right else "left"
        table.add_column(plain(header), justify=justify, overflow="fold", no_wrap=header in _UNBROKEN)
    return table


def _show_events(events: pd.DataFrame) -> RenderableType:
    """Changes of state; checkpoints have a section of their own."""
    table = _build_table("time", "attempt", "node", "state", "why", right=["attempt"])
    changes = events[events["state"] != "checkpoint"]
    for event in changes.tail(_LAST_EVENTS).to_dict("records"):
        step = event.get("step")
        why = [] if is_missing(step) else [f"step {step:.0f}"]
        why += [str(event["why"])] if event["why"] else []
        row = (format_time(event["time"]), event["attempt"], event["node"])
        table.add_row(*map(plain, row), show_state(as_run(event)), plain(", ".join(why)))
    return table if len(changes) else Text("none that can be read", "dim")


def _show_settings(settings: list[Setting]) -> RenderableType:
    """What was chosen, with its origin; then, in one paragraph, what was left at its default."""
    chosen = [setting for setting in settings if setting.origin != DEFAULT]
    defaults = [setting for setting in settings if setting.origin == DEFAULT]
    table = _build_table("key", "value", "from")
    for setting in chosen:
        value = plain(write_value(setting.value))
        table.add_row(plain(setting.key), value, plain(setting.origin or "–", "dim"))
    rest = plain("default: " + ", ".join(f"{s.key}={write_value(s.value)}" for s in defaults), "dim")
    return Group(*([table] if chosen else []), *([rest] if defaults else []))


def _show_receipt(receipt: dict[str, Any]) -> RenderableType:
    try:
        return Group(*map(plain, describe_receipt(receipt)))
    except (KeyError, TypeError, AttributeError, ValueError):  # of another version, or damaged
        return Text("no receipt that can be read", "dim")


def _show_metrics(metrics: pd.DataFrame, width: int) -> RenderableType:
    if metrics.empty:
        return Text("none yet", "dim")
    names = [name for name in _METRICS if name in metrics][: max(3, width // _METRIC_WIDTH)]
    table = _build_table(*names, right=names)
    for row in metrics.tail(_LAST_METRICS).to_dict("records"):
        table.add_row(*(show_value(row[name]) for name in names))
    return table


def _show_checkpoints(checkpoints: pd.DataFrame) -> RenderableType:
    if checkpoints.empty:
        return Text("none", "dim")
    table = _build_table("step", "val/loss", "size", "", right=["step", "val/loss", "size"])
    best = checkpoints["val_loss"].idxmin() if checkpoints["val_loss"].notna().any() else None
    for index, row in checkpoints.iterrows():
        marks = ["newest"] * (index == len(checkpoints) - 1) + ["best"] * (index == best)
        size = plain(format_bytes(row["bytes"]))
        table.add_row(plain(row["step"]), show_value(row["val_loss"]), size, plain(" and ".join(marks), "dim"))
    return table


def _show_ledger(check: LedgerCheck) -> RenderableType:
    style = "" if check.holds else "dim" if check.unknown is not None else "bold red"
    return plain(check.describe(), style)
