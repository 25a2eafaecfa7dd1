"""The report of one run: how it went, its curves, its answers, its data and its config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sftray.platform.before_after import describe_exact_match
from sftray.platform.receipt_words import describe_receipt
from sftray.platform.report_figures import BEST, SECOND, STEP, Axis, Curve, Points, build_picture, draw_curves, thin
from sftray.platform.report_page import Cell, Facts, Fold, Page, Part, Picture, Pictures, Section, Table, Words
from sftray.platform.results import (
    load_checkpoints,
    load_events,
    load_metrics,
    load_receipt,
    load_runs,
    load_samples,
)
from sftray.platform.run_page import Setting, load_settings
from sftray.platform.tables import Run, as_run, is_missing, show_value
from sftray.platform.terminal import format_bytes, format_seconds, format_time
from sftray.train_fn.config_file import DEFAULT
from sftray.train_fn.config_syntax import write_value

MOST_ROWS = 200  # of events and of answers: a page is to open on a phone
_MOST_POINTS = 2000  # of a curve


def build_run_page(run_dir: Path) -> Page:
    run: Run = as_run(load_runs(run_dir).iloc[0].to_dict())
    metrics = load_metrics(run_dir)
    events = load_events(run_dir)
    state, why = find_state(events, run)
    sections = [
        Section("Curves", build_curves(metrics)),
        Section("Answers before and after", _show_samples(run_dir, run)),
        Section("Data", [Words(describe_data(load_receipt(run_dir)))]),
        Section("Config", _show_config(run_dir)),
        Section("Checkpoints", _show_checkpoints(run_dir)),
        Section("Events", show_events(events)),
    ]
    return Page("run", str(run["name"]), state, why, str(run_dir), [_show_facts(run)], sections)


def find_state(events: pd.DataFrame, run: Run) -> tuple[str, str]:
    """The state of a run and why; of a trial that its sweep ended early, `pruned`."""
    last = [as_run(event) for event in events.to_dict("records") if event["state"] not in ("checkpoint", "exploited")]
    if last and last[-1]["state"] == "pruned":
        return "pruned", str(last[-1]["why"])
    return str(run["state"]), "" if is_missing(run["why"]) else str(run["why"])


def show(value: object) -> str:
    """A value of `load_runs` as text; – where it is missing."""
    return show_value(value).plain


def _show_facts(run: Run) -> Facts:
    progress = "" if is_missing(run["progress"]) else f"{run['progress']:.0%} of what was planned"
    best = "" if is_missing(run["best_step"]) else f"at step {run['best_step']:,}"
    seconds = "–" if is_missing(run["seconds"]) else format_seconds(run["seconds"])
    facts = [
        ("steps", show(run["step"]), progress),
        ("validation loss before", show(run["val/loss_before"]), ""),
        ("validation loss after", show(run["val/loss"]), ""),
        ("best validation loss", show(run["val/loss_best"]), best),
        ("training loss", show(run["train/loss"]), "of the last logged step"),
        ("speed, target tokens/s", show(run["perf/target_tokens_per_second"]), "median"),
        ("time", seconds, f"{show(run['attempts'])} attempt(s)"),
        ("peak memory of a worker", _show_memory(run["perf/peak_memory_gb"]), ""),
        ("parameters", _show_count(run["num_parameters"]), ""),
        ("last written", *_show_time(run["updated"])),
        ("unreadable lines", "–" if run["unreadable_lines"] in (0, None) else show(run["unreadable_lines"]), ""),
    ]
    return Facts([fact for fact in facts if fact[1] != "–"])


def _show_memory(value: Any) -> str:
    return "–" if is_missing(value) else f"{value:.2f} GB"


def _show_time(value: object) -> tuple[str, str]:
    day, _, time = show(value).partition(" ")
    return day, time


def _show_count(value: Any) -> str:
    return "–" if is_missing(value) else f"{value:,}"


def build_curves(metrics: pd.DataFrame) -> list[Part]:
    loss = [
        Curve("training", take(metrics, "train/loss"), SECOND, width=1.5),
        Curve("validation", take(metrics, "val/loss"), BEST, width=2.5, markers=True),
    ]
    load = [
        Curve("fullest", take(metrics, "moe/expert_load_max"), SECOND),
        Curve("emptiest", take(metrics, "moe/expert_load_min"), BEST),
    ]
    pictures = [
        *_picture("Loss, nats per target token", loss, Axis("loss", log=None), wide=True, height=380),
        *_picture_of(metrics, "optim/learning_rate", "Learning rate", Axis("learning rate", from_zero=True)),
        *_picture_of(metrics, "perf/target_tokens_per_second", "Throughput", Axis("target tokens/s", from_zero=True)),
        *_picture_of(metrics, "train/grad_norm", "Gradient norm, before clipping", Axis("norm", log=None)),
        *_picture_of(metrics, "train/aux_loss", "Auxiliary loss, before its weight", Axis("loss", log=None)),
        *_picture("Tokens of an expert, 1 is an even share", load, Axis("even shares", from_zero=True)),
    ]
    if not pictures:
        return [Words(["No step has been logged yet."], "note")]
    note = f"Of {len(metrics):,} logged steps, about {_MOST_POINTS:,} are drawn, evenly spread."
    return [Pictures(pictures), *([Words([note], "note")] if len(metrics) > _MOST_POINTS else [])]


def take(metrics: pd.DataFrame, name: str, over: str = "step", most: int = _MOST_POINTS) -> Points:
    """The finite values of a metric, about `most` of them, each with its step or progress."""
    if name not in metrics or over not in metrics:
        return []
    rows = metrics[[over, name]].replace([float("inf"), float("-inf")], float("nan")).dropna()
    return thin([(float(place), float(value)) for place, value in rows.itertuples(index=False, name=None)], most)


def _picture_of(metrics: pd.DataFrame, name: str, title: str, y: Axis) -> list[Picture]:
    return _picture(title, [Curve(y.title, take(metrics, name), SECOND)], y)


def _picture(title: str, curves: Sequence[Curve], y: Axis, **shape: Any) -> list[Picture]:
    drawn = [curve for curve in curves if curve.points]
    return [build_picture(title, draw_curves(drawn, STEP, y), **shape)] if drawn else []


def _show_samples(run_dir: Path, run: Run) -> list[Part]:
    samples = [as_run(row) for row in load_samples(run_dir).to_dict("records")]
    if not samples:
        return [Words(["No prompts were answered."], "note")]
    sides: dict[str, dict[tuple[str, str], Run]] = {"before": {}, "after": {}}
    for row in samples:  # of a prompt answered twice, as the run was cut off, the last counts
        sides[row["when"]][row["prompt"], row["reference"]] = row
    prompts = list(dict.fromkeys([*sides["before"], *sides["after"]]))
    rows = [
        [
            Cell(prompt[0] or "∅", style="quote"),
            _show_answer(sides["before"].get(prompt)),
            _show_answer(sides["after"].get(prompt)),
            Cell(prompt[1] or "∅", style="quote"),
        ]
        for prompt in prompts[:MOST_ROWS]
    ]
    words = describe_exact_match(samples, not is_missing(run.get("config.data.validation")))
    left_out = [f"The first {MOST_ROWS} of {len(prompts)} prompts."] if len(prompts) > MOST_ROWS else []
    lines = [words[0].upper() + words[1:] + ".", *left_out]
    return [Words(lines), Table(["prompt", "before", "after", "reference"], rows)]


def _show_answer(row: Run | None) -> Cell:
    if row is None:
        return Cell("not asked", style="note")
    return Cell(row["answer"] or "∅", style="right" if row["exact_match"] else "quote")


def describe_data(receipt: dict[str, Any]) -> list[str]:
    try:
        return [line.strip() for line in describe_receipt(receipt)]
    except (KeyError, TypeError, AttributeError, ValueError):  # of another version, or damaged
        return ["There is no receipt that can be read."]


def _show_config(run_dir: Path) -> list[Part]:
    settings = load_settings(run_dir)
    if not settings:
        return [Words(["The config cannot be read."], "note")]
    chosen = [setting for setting in settings if setting.origin != DEFAULT]
    defaults = [setting for setting in settings if setting.origin == DEFAULT]
    rows = [[*_show_setting(setting), Cell(setting.origin or "–")] for setting in chosen]
    rest = [_show_setting(setting) for setting in defaults]
    parts: list[Part] = [Table(["key", "value", "from"], rows)] if rows else []
    return [*parts, Fold(f"{len(rest)} settings left at their defaults", [Table(["key", "value"], rest)])]


def _show_setting(setting: Setting) -> list[Cell]:
    return [Cell(setting.key, style="code"), Cell(write_value(setting.value), style="code")]


def _show_checkpoints(run_dir: Path) -> list[Part]:
    checkpoints = load_checkpoints(run_dir)
    if checkpoints.empty:
        return [Words(["None is kept."], "note")]
    scored = checkpoints["val_loss"].notna()
    best = checkpoints["val_loss"].idxmin() if scored.any() else None
    rows: list[list[Cell | str]] = []
    for index, row in checkpoints.iterrows():
        marks = ["newest"] * (index == len(checkpoints) - 1) + ["best"] * (index == best)
        style = "best" if index == best else ""
        rows.append([f"{row['step']:,}", Cell(show(row["val_loss"]), style=style), format_bytes(row["bytes"])])
        rows[-1].append(" and ".join(marks))
    return [Table(["step", "validation loss", "size", ""], rows, numbers={0, 1, 2})]


def show_events(events: pd.DataFrame) -> list[Part]:
    rows: list[list[Cell | str]] = []
    for event in map(as_run, events.tail(MOST_ROWS).to_dict("records")):
        step = event.get("step")
        state = str(event["state"])
        rows.append(
            [
                Cell(format_time(event["time"]), style="fixed"),
                show(event["attempt"]),
                Cell(state, style=state),
                f"{step:.0f}" if isinstance(step, int | float) and not is_missing(step) else "",
                Cell(show(event["node"]), style="fixed"),
                Cell("" if is_missing(event["why"]) else str(event["why"]), style="quote"),
            ]
        )
    return [Table(["time", "attempt", "state", "step", "node", "why"], rows, numbers={1, 3})]
