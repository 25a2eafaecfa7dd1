"""Runs side by side: the settings in which they differ, what they came to, and whether that can be compared."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from sftray.platform.certainty import compare_settings, describe_comparison
from sftray.platform.leaderboard import SEED, load_leaderboard
from sftray.platform.results import find_run, load_runs, to_records
from sftray.platform.run_files import load_flat_config, load_metrics, load_receipt
from sftray.platform.sweep_files import find_sweep
from sftray.platform.tables import as_run, is_missing, show_state, show_value
from sftray.platform.terminal import plain
from sftray.train_fn.checkpoint import find_best
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.journal import CHECKPOINTS

# What differs between any two runs and says nothing of what they learned.
_OWN = ("name", "store.path")
_METRICS = (
    *("val/loss_before", "val/loss", "train/loss", "best_step", "step", "progress", "exact_match"),
    *("perf/target_tokens_per_second", "perf/peak_memory_gb", "seconds"),
)
BEST = "val/loss_best"  # here: the lowest that has a checkpoint


@dataclass(frozen=True)
class Side:
    """One of the runs that are compared. `loss` is the lowest validation loss that has a checkpoint."""

    label: str
    folder: Path
    run: dict[str, Any]  # a row of load_runs
    settings: dict[str, Any]
    loss: float | None
    examples: int | None
    receipt: dict[str, Any]

    @property
    def seed(self) -> int | None:
        seed = self.settings.get(SEED)
        return seed if isinstance(seed, int) else None


def load_sides(names: Sequence[str], store: str) -> list[Side]:
    """The runs that `names` say, each a run, a trial (`sweep/trial-000`) or a sweep, which stands for its best trial.

    Raises:
        ConfigError: there is no such run, one is named twice, or there are not two.
    """
    if len(names) < 2:
        raise ConfigError(Problem("one run alone cannot be compared", fix="sftray runs compare A B"))
    folders = [_find(name, store) for name in names]
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise ConfigError(
                Problem(f"{folder.name} is named {count} times", str(folder), fix="name different runs")
            )
    return [_load_side(folder, label) for folder, label in zip(folders, _label(folders), strict=True)]


def _find(name: str, store: str) -> Path:
    sweep = find_sweep(name, store)
    if sweep is None:
        return find_run(name, store)
    best = next((each for each in load_leaderboard(sweep) if each.loss is not None), None)
    if best is None:
        raise ConfigError(Problem(f"{name} is a sweep of which no trial has a validation loss", str(sweep)))
    return sweep / best.record.name


def _label(folders: Sequence[Path]) -> list[str]:
    """Names as short as they can be: where two runs are called alike, with the folder that they are in."""
    names = Counter(folder.name for folder in folders)
    return [f.name if names[f.name] == 1 else f"{f.absolute().parent.name}/{f.name}" for f in folders]


def _load_side(folder: Path, label: str) -> Side:
    run = as_run(load_runs(folder).to_dict("records")[0])
    if run["state"] == "broken":
        raise ConfigError(Problem(f"{label} cannot be read: {run['why']}", str(folder)))
    best, metrics = find_best(folder / CHECKPOINTS), load_metrics(folder)
    counted = metrics["examples"].dropna() if "examples" in metrics else pd.Series(dtype="float64")
    return Side(
        label=label,
        folder=folder,
        run=run,
        settings=load_flat_config(folder),
        loss=best.manifest.val_loss if best else None,
        examples=int(counted.iloc[-1]) if len(counted) else None,
        receipt=load_receipt(folder),
    )


def list_differing(sides: Sequence[Side]) -> list[str]:
    """The config keys that do not have the same value in all runs, in the order of the configs."""
    keys = dict.fromkeys(key for side in sides for key in side.settings if key not in _OWN)
    return [key for key in keys if len({repr(side.settings.get(key)) for side in sides}) > 1]


def find_doubts(sides: Sequence[Side]) -> list[str]:
    """Why the losses cannot be compared, or say less than they seem to: one sentence each."""
    doubts = [f"{side.label} has no checkpoint with a validation loss" for side in sides if side.loss is None]
    doubts += [f"{side.label} has not come to its end ({side.run['state']})" for side in sides if _is_open(side)]
    for what, values in _list_grounds(sides):
        known = [str(value) for value in values]
        if len(set(known)) > 1:
            told = ", ".join(f"{side.label} {value:.12}" for side, value in zip(sides, known, strict=True))
            doubts.append(f"{what} ({told})")
    return doubts


def _is_open(side: Side) -> bool:
    return side.run["state"] not in ("finished", "pruned")


def _list_grounds(sides: Sequence[Side]) -> list[tuple[str, list[Any]]]:
    """What must be the same in runs that are compared, each with its value in every run."""
    prints = [side.receipt.get("fingerprints") or {} for side in sides]
    held_out = [(side.receipt.get("splits") or {}).get("validation") or {} for side in sides]
    return [
        (
            "they were validated on other rows, so the losses cannot be compared",
            [p.get("validation") for p in prints],
        ),
        (
            "the same rows came to other target tokens (tokenizer, template or length), so the losses per token "
            "cannot be compared",
            [counts.get("target_tokens") for counts in held_out] if _same(prints, "validation") else [],
        ),
        ("they learned from other rows: the difference is that of the data too", [p.get("train") for p in prints]),
        ("they saw other numbers of examples: the difference is that of length too", [s.examples for s in sides]),
    ]


def _same(rows: Sequence[dict[str, Any]], key: str) -> bool:
    return len({str(row.get(key)) for row in rows}) == 1


def describe_differences(sides: Sequence[Side]) -> list[str]:
    """The first run against each other one; runs that differ in their seed alone are taken together."""
    groups: dict[str, list[Side]] = {}
    for side in sides:
        setting = {k: side.settings.get(k) for k in list_differing(sides) if k != SEED}
        groups.setdefault(repr(setting), []).append(side)
    first, *others = groups.values()
    if not others:
        return (
            ["they differ in their seeds alone"] if SEED in list_differing(sides) else ["they have the same config"]
        )
    return [line for other in others for line in _describe_pair(first, other)]


def _describe_pair(first: list[Side], other: list[Side]) -> list[str]:
    losses = [{s.seed or 0: s.loss for s in group if s.loss is not None} for group in (first, other)]
    if not losses[0] or not losses[1]:
        return []
    names = [" + ".join(side.label for side in group) for group in (first, other)]
    found = compare_settings(losses[0], losses[1])
    if found.half_width is not None:
        return [describe_comparison(found, *names)]
    if not found.difference:
        return [f"{names[0]} and {names[1]} have the same loss"]
    lower, higher = names if found.difference > 0 else reversed(names)
    return [f"{lower} is {abs(found.difference):.3g} below {higher}; so few runs say nothing of chance"]


def comparison_to_json(sides: Sequence[Side]) -> dict[str, Any]:
    differing = list_differing(sides)
    first = sides[0].loss
    return {
        "runs": [
            {
                "label": side.label,
                "path": str(side.folder),
                "state": side.run["state"],
                "settings": {key: side.settings.get(key) for key in differing},
                "metrics": {**_read_metrics(side), BEST: side.loss, "examples": side.examples},
                "difference": None if side.loss is None or first is None else side.loss - first,
            }
            for side in sides
        ],
        "differences": describe_differences(sides),
        "doubts": find_doubts(sides),
    }


def _read_metrics(side: Side) -> dict[str, Any]:
    (row,) = to_records(pd.DataFrame([{name: side.run[name] for name in _METRICS}]))
    return row


def show_comparison(sides: Sequence[Side], console: Console) -> None:
    """A column for each run: settings that differ, then numbers; below, what follows and what speaks against it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold")
    for side in sides:
        table.add_column(plain(side.label), justify="right", overflow="fold")
    for key in list_differing(sides):
        table.add_row(plain(key, "dim"), *(plain(write_value(side.settings.get(key))) for side in sides))
    table.add_row(plain("state", "dim"), *(show_state(side.run) for side in sides))
    table.add_row(plain(BEST, "dim"), *(show_value(side.loss) for side in sides))
    first = sides[0].loss
    if first is not None:
        gaps = ("" if side is sides[0] else _write_gap(side.loss, first) for side in sides)
        table.add_row(plain("  to the first", "dim"), *map(plain, gaps))
    table.add_row(plain("examples", "dim"), *(show_value(side.examples) for side in sides))
    for name in _METRICS:
        values = [side.run[name] for side in sides]
        if not all(map(is_missing, values)):
            table.add_row(plain(name, "dim"), *map(show_value, values))
    console.print(table)
    for line in describe_differences(sides):
        console.print(plain(line, "bold"), soft_wrap=True)
    for line in find_doubts(sides):
        console.print(plain(f"careful: {line}", "yellow"), soft_wrap=True)


def _write_gap(loss: float | None, first: float) -> str:
    return "–" if loss is None else f"{loss - first:+.4f}"
