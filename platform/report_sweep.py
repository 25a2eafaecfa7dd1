"""The report of a sweep: its answer, its trials, their curves, who was stopped, and what mattered."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from sftray.platform.certainty import describe_answer
from sftray.platform.report_figures import format_percent
from sftray.platform.report_page import Cell, Facts, Fold, Listing, Page, Part, Section, Table, Words
from sftray.platform.report_run import describe_data, show_events
from sftray.platform.report_study import build_study_parts
from sftray.platform.report_sweep_figures import build_curves, build_stop_parts
from sftray.platform.report_trials import (
    Trial,
    describe_point,
    list_keys,
    load_trials,
    write_point_value,
)
from sftray.platform.results import load_receipt
from sftray.platform.run_files import load_events
from sftray.platform.sweep_files import BASE, SweepSettings, load_settings
from sftray.platform.sweep_table import shorten_keys
from sftray.platform.tables import as_run
from sftray.platform.terminal import format_seconds, format_time

_ORDER = ("finished", "pruned", "failed")  # of states, in the counts
_PBT = "Trials that took over others' weights and settings on their way are shown with those that they ended with."


def build_sweep_page(sweep_dir: Path) -> Page:
    settings, trials = load_settings(sweep_dir), load_trials(sweep_dir)
    repeats = load_trials(sweep_dir, "repeat")
    events = load_events(sweep_dir)
    changes = [as_run(event) for event in events.to_dict("records") if event["state"] != "exploited"]
    lineage = _show_lineage([*trials, *repeats])
    sections = [
        Section("Trials, best first", [_show_leaderboard(trials), *([Words([_PBT], "note")] if lineage else [])]),
        Section("The finalists with other seeds", _show_repeats(trials, repeats)),
        Section("Curves", build_curves(trials)),
        Section("Trials that were stopped early", build_stop_parts(trials)),
        Section("What mattered", build_study_parts(trials)),
        Section("Who took over from whom", lineage),
        Section("What was asked", _show_settings(sweep_dir, settings)),
        Section("Events", [Fold(f"{len(events)} events of the sweep", show_events(events))]),
    ]
    state = str(changes[-1]["state"]) if changes else "waiting"
    return Page(
        kind="sweep",
        name=settings.name,
        state=state,
        why=str(changes[-1]["why"] or "") if state in ("failed", "stopped", "interrupted") else "",
        origin=str(sweep_dir),
        head=[_show_answer(sweep_dir), _show_facts(trials, repeats, settings)],
        sections=[section for section in sections if section.parts],
    )


def _show_answer(sweep_dir: Path) -> Words:
    return Words([line[:1].upper() + line[1:] for line in describe_answer(sweep_dir)], "lead")


def _show_facts(trials: Sequence[Trial], repeats: Sequence[Trial], settings: SweepSettings) -> Facts:
    states = [trial.state for trial in trials]
    order = [*_ORDER, *sorted({*states} - {*_ORDER})]
    counts = ", ".join(f"{states.count(state)} {state}" for state in order if state in states)
    best = next((trial for trial in trials if trial.rank == 1), None)
    seconds = [trial.ranked.seconds for trial in [*trials, *repeats] if trial.ranked.seconds is not None]
    facts = [
        ("trials", f"{len(trials)} of {settings.trials}", counts),
        ("best validation loss", "–" if best is None else f"{best.ranked.loss:.4f}", best.name if best else ""),
        (
            "repeats",
            str(len(repeats)) if repeats else "–",
            f"{settings.finalists} settings × {settings.repeats} seeds",
        ),
        ("search", settings.searcher, f"seed {settings.seed}"),
        ("early stops", settings.scheduler, ", ".join(map(format_percent, settings.rungs))),
        ("examples of a whole trial", f"{settings.max_examples:,}", ""),
        ("time of all trials", format_seconds(sum(seconds)) if seconds else "–", "added up"),
    ]
    return Facts([fact for fact in facts if fact[1] != "–"])


def _show_leaderboard(trials: Sequence[Trial]) -> Part:
    if not trials:
        return Words(["No trial has started."], "note")
    keys = list_keys(trials)
    names = shorten_keys(keys)
    has_seeds = len({trial.ranked.record.seed for trial in trials}) > 1
    headers = [
        "rank",
        "trial",
        "best val loss",
        *(names[key] for key in keys),
        *["seed"] * has_seeds,
        "at step",
        "at",
        "state",
        "time",
        "tok/s",
    ]
    rows = [_show_trial(trial, keys, has_seeds) for trial in trials]
    count = len(keys) + has_seeds
    numbers = {0, *range(2, count + 5), count + 6, count + 7}
    return Table(headers, rows, numbers)


def _show_trial(trial: Trial, keys: Sequence[str], has_seeds: bool) -> list[Cell | str]:
    ranked = trial.ranked
    values = [write_point_value(trial.point[key]) if key in trial.point else "–" for key in keys]
    cause = "" if trial.state in ("finished", "running", "starting") else ranked.why
    return [
        "–" if trial.rank is None else str(trial.rank),
        Cell(trial.name, style="name"),
        Cell("–" if ranked.loss is None else f"{ranked.loss:.4f}", style="best" if trial.rank == 1 else ""),
        *values,
        *[str(ranked.record.seed)] * has_seeds,
        "–" if ranked.step is None else f"{ranked.step:,}",
        "–" if ranked.progress is None else format_percent(ranked.progress),
        Cell(trial.state, cause, trial.state),
        "–" if ranked.seconds is None else format_seconds(ranked.seconds),
        "–" if trial.speed is None else f"{trial.speed:,.0f}",
    ]


def _show_repeats(trials: Sequence[Trial], repeats: Sequence[Trial]) -> list[Part]:
    """Finalists × seeds; the run that made a setting a finalist stands apart, for it was chosen for being good."""
    if not repeats:
        return []
    seeds = sorted({trial.ranked.record.seed for trial in repeats})
    numbers = [number for t in repeats if (number := t.ranked.record.repeat_of) is not None]
    first = {trial.ranked.record.number: trial for trial in trials}
    rows = []
    for number in dict.fromkeys(numbers):
        own = {t.ranked.record.seed: t for t in repeats if t.ranked.record.repeat_of == number}
        losses = [t.ranked.loss for t in own.values() if t.is_finished and t.ranked.loss is not None]
        rows.append((fmean(losses) if losses else float("inf"), number, own, losses))
    table: list[list[Cell | str]] = []
    for mean, number, own, losses in sorted(rows, key=lambda row: row[:2]):
        table.append(
            [
                Cell(f"trial-{number:03d}", describe_point(next(iter(own.values())).point), "name"),
                _write_loss(first.get(number)),
                *(_write_loss(own.get(seed)) for seed in seeds),
                Cell(f"{mean:.4f}" if losses else "–", style="best" if not table and losses else ""),
                f"{max(losses) - min(losses):.3g}" if len(losses) > 1 else "–",
            ]
        )
    headers = ["setting", "in the search", *(f"seed {seed}" for seed in seeds), "mean of seeds", "spread"]
    return [Table(headers, table, range(1, len(headers)))]


def _write_loss(trial: Trial | None) -> str:
    if trial is None:
        return "–"
    return f"{trial.ranked.loss:.4f}" if trial.is_finished else trial.state


def _show_lineage(trials: Sequence[Trial]) -> list[Part]:
    events = [(event, trial) for trial in trials for event in trial.events if event["state"] == "exploited"]
    if not events:
        return []
    rows: list[list[Cell | str]] = []
    for event, trial in sorted(events, key=lambda pair: float(pair[0]["time"])):
        progress = event.get("progress")
        rows.append(
            [
                Cell(format_time(event["time"]), style="fixed"),
                Cell(trial.name, style="name"),
                format_percent(progress) if isinstance(progress, float) else "–",
                str(event.get("from", "–")),
                Cell(_describe_change(event.get("before"), event.get("after")), style="quote"),
            ]
        )
    return [Table(["time", "trial", "at", "took over from", "settings, before → after"], rows, {2})]


def _describe_change(before: Any, after: Any) -> str:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return "–"
    names = shorten_keys(list(dict.fromkeys([*before, *after])))
    changes = [
        f"{name} {write_point_value(before.get(key))} → {write_point_value(after.get(key))}"
        for key, name in names.items()
        if before.get(key) != after.get(key)
    ]
    return "\n".join(changes) or "the same"


def _show_settings(sweep_dir: Path, settings: SweepSettings) -> list[Part]:
    asked = [
        ("space", settings.space_name),
        ("evaluations", ", ".join(map(format_percent, settings.evaluations))),
        ("rungs", ", ".join(map(format_percent, settings.rungs)) or "–"),
        ("reduction factor", f"{settings.reduction_factor:g}"),
        ("trials at a time", str(settings.concurrent or "as many as fit")),
        ("minutes", "no limit" if settings.max_minutes is None else f"{settings.max_minutes:g}"),
    ]
    space = yaml.safe_dump(settings.space, sort_keys=False, allow_unicode=True, width=100)
    base = (sweep_dir / BASE).read_text(encoding="utf-8", errors="replace")
    receipt = load_receipt(sweep_dir)
    return [
        Table(["setting", "value"], [[Cell(key, style="fixed"), value] for key, value in asked]),
        *([Words(describe_data(receipt))] if receipt else []),
        Fold("The space", [Listing(space)]),
        Fold("The config that the trials change", [Listing(base)]),
    ]
