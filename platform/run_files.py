"""Reading the files of one run directory, whatever state they are in.

A line that cannot be read is left out and counted; a file that is missing is empty.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, EVENTS, METRICS, SAMPLES


class BrokenRunError(Exception):
    """Of this run nothing can be said but why."""


@dataclass(frozen=True)
class Rows:
    """The JSON objects of a file, and how many whole lines hold none."""

    rows: list[dict[str, Any]]
    unreadable: int = 0


def read_rows(path: Path) -> Rows:
    """Raises BrokenRunError if the file is there and the system refuses it."""
    rows: list[dict[str, Any]] = []
    unreadable = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written, or was when its writer died
                row = _parse(line)
                if row is None:
                    unreadable += 1
                else:
                    rows.append(row)
    except FileNotFoundError:
        return Rows([])
    except OSError as error:
        raise BrokenRunError(f"{path.name}: {error.strerror}") from error
    return Rows(rows, unreadable)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return row if b"\\ud" not in line.lower() else _replace_surrogates(row)


def _replace_surrogates(row: dict[str, Any]) -> dict[str, Any]:
    """Half a character, which JSON can spell and no file, table or terminal can hold, becomes "?"."""
    clean: dict[str, Any] = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    return clean


def read_events(run_dir: Path) -> Rows:
    """The run's events in their order. Raises BrokenRunError if there is none."""
    found = read_rows(run_dir / EVENTS)
    events = [row for row in found.rows if _is_event(row)]
    if not events:
        raise BrokenRunError(f"{EVENTS} holds no event that can be read")
    return Rows(events, found.unreadable + len(found.rows) - len(events))


def _is_event(row: dict[str, Any]) -> bool:
    return (
        isinstance(row.get("state"), str)
        and isinstance(row.get("attempt"), int)
        and isinstance(row.get("time"), int | float)
    )


def load_events(run_dir: Path) -> pd.DataFrame:
    """One row an event, in their order: seq, time (Unix seconds), attempt, node, state, why, and facts."""
    rows = [row for row in read_rows(run_dir / EVENTS).rows if _is_event(row)]
    return _frame(rows, "seq", "time", "attempt", "node", "state", "why")


def load_metrics(run_dir: Path) -> pd.DataFrame:
    """One row a logged step, in their order; every column a number, NaN where a step has none."""
    return shape_metrics(read_rows(run_dir / METRICS).rows)


def shape_metrics(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of metrics as numbers; of a step that stands there twice, the later row."""
    frame = _frame([row for row in rows if isinstance(row.get("step"), int)], "step")
    # Not numbers, and infinities, are text in JSON.
    numbers = {name: pd.to_numeric(frame[name].map(_scalar), errors="coerce") for name in frame if name != "ledger"}
    frame = pd.DataFrame(numbers).drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
    return frame.astype({"step": "int64"})


def _scalar(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else None


def load_samples(run_dir: Path) -> pd.DataFrame:
    """The answers to the fixed prompts: when (before, after), step, prompt, reference, answer, exact_match."""
    return _frame(read_samples(run_dir).rows, "when", "step", "prompt", "reference", "answer", "exact_match")


def read_samples(run_dir: Path) -> Rows:
    found = read_rows(run_dir / SAMPLES)
    samples = [row for row in found.rows if _is_sample(row)]
    return Rows(samples, found.unreadable + len(found.rows) - len(samples))


def _is_sample(row: dict[str, Any]) -> bool:
    texts = [row.get(name) for name in ("prompt", "reference", "answer")]
    return (
        row.get("when") in ("before", "after")
        and isinstance(row.get("exact_match"), bool)
        and all(isinstance(text, str) for text in texts)
    )


def _frame(rows: list[dict[str, Any]], *columns: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(key for row in rows for key in row)])))


def load_receipt(run_dir: Path) -> dict[str, Any]:
    """The data receipt; {} where there is none that can be read."""
    try:
        receipt = json.loads((run_dir / DATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return receipt if isinstance(receipt, dict) else {}


def load_checkpoints(run_dir: Path) -> pd.DataFrame:
    """The checkpoints whose manifest can be read, oldest first: step, attempt, val_loss, bytes, path."""
    from sftray.train_fn.checkpoint import list_checkpoints  # brings torch, which nothing else here needs

    rows = [
        {
            "step": checkpoint.step,
            "attempt": checkpoint.manifest.attempt,
            "val_loss": checkpoint.manifest.val_loss,
            "bytes": sum(size for size, _ in checkpoint.manifest.files.values()),
            "path": str(run_dir / CHECKPOINTS / checkpoint.name),
        }
        for checkpoint in list_checkpoints(run_dir / CHECKPOINTS)
    ]
    frame = _frame(rows, "step", "attempt", "val_loss", "bytes", "path")
    return frame.astype({"val_loss": "float64"})


class _Loader(yaml.CSafeLoader):
    """Dates stay text, as they are in a config. In C: a store may hold a thousand runs."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_flat_config(run_dir: Path) -> dict[str, Any]:
    """The run's config as dotted keys, unchecked, so that it may be of another version.

    Raises:
        BrokenRunError: it cannot be read, or is no mapping.
    """
    try:
        config = yaml.load((run_dir / CONFIG).read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError) as error:
        raise BrokenRunError(f"{CONFIG}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise BrokenRunError(f"{CONFIG} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise BrokenRunError(f"{CONFIG} holds no settings")
    return dict(_flatten(config, ""))


def _flatten(tree: dict[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def to_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: what is missing is None, times are ISO 8601, infinities text."""
    return [{str(key): _to_json(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _to_json(value: Any) -> Any:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
