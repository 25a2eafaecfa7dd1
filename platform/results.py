"""The runs of a store as pandas, read from their directories: no cluster and no server is asked.

Nothing here fails because one run is damaged: lines that cannot be read are left out and counted, and a run
without a readable config or event is a row of state `broken` that says why.
"""

import difflib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sftray.platform.run_directory import TOKENS
from sftray.platform.run_files import (
    BrokenRunError,
    load_checkpoints,
    load_events,
    load_flat_config,
    load_metrics,
    load_receipt,
    load_samples,
    read_events,
    read_rows,
    read_samples,
    shape_metrics,
    to_records,
)
from sftray.platform.sweep_files import list_candidates
from sftray.train_fn.errors import ConfigError, Problem, StoreError
from sftray.train_fn.journal import CONFIG, EVENTS, METRICS
from sftray.train_fn.places import as_path, find_bucket, is_file, is_folder

__all__ = [
    "find_run",
    "find_runs",
    "load_checkpoints",
    "load_events",
    "load_metrics",
    "load_receipt",
    "load_runs",
    "load_samples",
    "sort_runs",
    "to_records",
]

# States that a run can be in; other events, such as `checkpoint`, happen in one of them.
_STATES = ("prepared", "starting", "running", "finished", "pruned", "failed", "stopped", "interrupted")
_BEGINNINGS = ("prepared", "starting")
_DEPTH = 3  # a run of the store, a trial of a sweep, and a folder around either
COLUMNS = (
    *("name", "state", "why", "attempts", "started", "updated", "seconds", "step", "progress"),
    *("train/loss", "val/loss_before", "val/loss", "val/loss_best", "best_step"),
    *("perf/target_tokens_per_second", "perf/peak_memory_gb"),
    *("exact_match_before", "exact_match", "num_samples", "num_parameters", "unreadable_lines", "path"),
)
_COUNTS = ("attempts", "step", "best_step", "num_samples", "num_parameters", "unreadable_lines")
_TIMES = ("started", "updated")


def is_run(folder: Path) -> bool:
    return is_file(folder / CONFIG) and is_file(folder / EVENTS)


def find_runs(store: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Run directories under `store`, by name; `store` itself, if it is one. Hidden folders and tokens are not."""
    if is_run(store):
        yield store
        return
    try:
        names = sorted(entry.name for entry in store.iterdir() if entry.is_dir())
    except PermissionError:
        return
    for name in names:
        if is_run(store / name) or (depth > 1 and name != TOKENS and not name.startswith(".")):
            yield from find_runs(store / name, depth - 1)


def _find_store(path: str | Path) -> Path:
    """`path` as a folder that can be read. Raises StoreError where it is none."""
    place = as_path(path)
    if not is_folder(place):
        raise StoreError(
            Problem(
                f"there is no store at {path}",
                why="no object is below it" if find_bucket(place) else f"{place.absolute()} is not a directory",
                fix="--store PATH: the store.path that the runs were started with",
            )
        )
    return place


def load_runs(path: str | Path) -> pd.DataFrame:
    """The runs of the store at `path`, newest first: one row each, with the columns COLUMNS and `config.…`.

    `val/loss_before` is that of step 0, `val/loss` the last and `val/loss_best` the lowest, at `best_step`;
    `exact_match…` are shares of `num_samples` answers; `seconds` is the time in which something ran, over all
    attempts; `updated` the time of the last thing that was written. What a run does not have is missing (NA).

    Raises:
        StoreError: there is no such store.
    """
    store = _find_store(path)
    rows = [_summarize(folder, store) for folder in find_runs(store)]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])))
    frame = frame.astype(dict.fromkeys(_COUNTS, "Int64"))
    for name in _TIMES:
        frame[name] = pd.to_datetime(frame[name].astype("float64"), unit="s", utc=True)
    return frame.sort_values("started", ascending=False, kind="stable", na_position="last", ignore_index=True)


def find_run(name_or_path: str, store: str = "./runs") -> Path:
    """The directory of a run, given by its path or by its name in `store`.

    Raises:
        ConfigError: there is none; the nearest names are told.
    """
    candidates, root = list_candidates(name_or_path, store), as_path(store)
    for folder in candidates:
        if is_run(folder):
            return folder
    names = []
    if is_folder(root):
        names = [str(folder.relative_to(root)) for folder in find_runs(root)]
    near = difflib.get_close_matches(name_or_path, names, n=3, cutoff=0.5)
    if is_folder(candidates[0]):
        what = f"{name_or_path} is a directory, but not of a run: {CONFIG} or {EVENTS} is missing."
    else:
        what = f"there is no run {name_or_path}."
    raise ConfigError(
        Problem(
            what + (f" Did you mean {' or '.join(near)}?" if near else ""),
            why=f"the store {store} holds {len(names)} runs" if names else f"no run is in the store {store}",
            fix="sftray runs list --store PATH shows the runs of a store",
        )
    )


def sort_runs(runs: pd.DataFrame, column: str | None, limit: int | None = None) -> tuple[pd.DataFrame, str | None]:
    """The first `limit` runs by `column`, lowest first or, with a leading `-`, highest; missing values last.

    Config keys may be named without `config.`. Returns the runs, and the column's whole name.

    Raises:
        ConfigError: no such column.
    """
    if column is None:
        return runs.head(limit) if limit else runs, None
    name = column.removeprefix("-")
    key = next((k for k in (name, f"config.{name}") if k in runs.columns), None)
    if key is None:
        known = [str(k).removeprefix("config.") for k in runs.columns]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            Problem(
                f"--sort: runs have no column {name}.{hint}",
                why=f"columns: {', '.join(COLUMNS)}, and the keys of configs",
                fix=f"--sort {near[0] if near else 'val/loss'}",
            )
        )
    values = runs[key]
    if not pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_datetime64_any_dtype(values):
        values = values.map(str, na_action="ignore")  # lists and mixtures have no order of their own
    order = values.sort_values(ascending=not column.startswith("-"), kind="stable", na_position="last").index
    runs = runs.loc[order].reset_index(drop=True)
    return runs.head(limit) if limit else runs, key


def _summarize(folder: Path, store: Path) -> dict[str, Any]:
    """The row of one run: what its events say, then its metrics, its samples and its config."""
    name = folder.name if folder == store else str(folder.relative_to(store))
    row: dict[str, Any] = {"name": name, "path": str(folder)}
    try:
        config = load_flat_config(folder)
        events, metrics, samples = (
            read_events(folder),
            read_rows(folder / METRICS),
            read_samples(folder),
        )
    except BrokenRunError as error:
        return {**row, "state": "broken", "why": str(error)}
    return {
        **row,
        **_summarize_events(events.rows, [float(m["time"]) for m in metrics.rows if _is_time(m.get("time"))]),
        **_summarize_metrics(shape_metrics(metrics.rows)),
        **_summarize_samples(samples.rows),
        "unreadable_lines": events.unreadable + metrics.unreadable + samples.unreadable,
        **{f"config.{key}": value for key, value in config.items()},
    }


def _is_time(value: object) -> bool:
    return isinstance(value, int | float)


def _summarize_events(events: Sequence[dict[str, Any]], metric_times: Sequence[float]) -> dict[str, Any]:
    states = [event for event in events if event["state"] in _STATES] or events
    times = [float(event["time"]) for event in events]
    parameters = [event["num_parameters"] for event in events if isinstance(event.get("num_parameters"), int)]
    return {
        "state": states[-1]["state"],
        "why": str(states[-1].get("why") or ""),
        "attempts": max(event["attempt"] for event in events),
        "started": times[0],
        "updated": max(times[-1], *metric_times) if metric_times else times[-1],
        "seconds": count_active_seconds(events, metric_times),
        "num_parameters": parameters[-1] if parameters else None,
    }


def count_active_seconds(events: Sequence[dict[str, Any]], metric_times: Sequence[float]) -> float:
    """The time between neighbouring signs of life, without the waits before it was started anew."""
    signs = [(float(event["time"]), event["state"] in _BEGINNINGS) for event in events]
    # No earlier than the first event: clocks of two nodes may differ.
    signs = sorted([*signs, *((time, False) for time in metric_times if time >= signs[0][0])])
    pairs = itertools.pairwise(signs)
    return sum(later - earlier for (earlier, was_begin), (later, begins) in pairs if was_begin or not begins)


def _summarize_metrics(metrics: pd.DataFrame) -> dict[str, Any]:
    metrics = metrics.set_index("step", drop=False)

    def column(name: str) -> pd.Series:
        return metrics[name].dropna() if name in metrics else pd.Series(dtype="float64")

    def last(name: str) -> Any:
        values = column(name)
        return values.iloc[-1] if len(values) else None

    val = column("val/loss")
    return {
        "step": last("step"),
        "progress": last("progress"),
        "train/loss": last("train/loss"),
        "val/loss_before": val.get(0),
        "val/loss": last("val/loss"),
        "val/loss_best": val.min(),
        "best_step": val.idxmin() if len(val) else None,
        "perf/target_tokens_per_second": column("perf/target_tokens_per_second").median(),
        "perf/peak_memory_gb": column("perf/peak_memory_gb").max(),
    }


def _summarize_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of exact answers. Of a prompt that was answered twice, as the run was cut off, the last counts."""
    exact: dict[str, dict[tuple[str, str], bool]] = {"before": {}, "after": {}}
    for row in samples:
        exact[row["when"]][row["prompt"], row["reference"]] = row["exact_match"]
    before, after = (list(answers.values()) for answers in exact.values())
    return {
        "exact_match_before": sum(before) / len(before) if before else None,
        "exact_match": sum(after) / len(after) if after else None,
        "num_samples": len(after or before) or None,
    }
