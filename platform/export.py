"""The runs of a store as one file for other tools: CSV, Parquet or JSON lines."""

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sftray.platform.results import load_runs, to_records
from sftray.train_fn.errors import ConfigError, Problem, StoreError

Format = Literal["csv", "parquet", "jsonl"]
FORMATS: tuple[Format, ...] = ("csv", "parquet", "jsonl")
_PLAIN = ({str}, {bool})


def export_runs(
    store: str, output: Path | None, asked: Format | None = None, force: bool = False
) -> tuple[Path, int]:
    """Write what `load_runs` finds in `store`: one row a run, trials of sweeps among them.

    Args:
        output: the file; default: `runs.` and the format, where the command runs.
        asked: default: what the name of `output` ends in, else CSV.

    Returns:
        The file, and how many rows it has.

    Raises:
        ConfigError: the file is there and `force` is not given, or its name says another format.
        StoreError: there is no such store, or the file cannot be written.
    """
    format = _choose_format(output, asked)
    target = output or Path(f"runs.{format}")
    if target.exists() and not force:
        raise ConfigError(Problem(f"{target} is there already", fix="--force to replace it, or another --output"))
    runs = load_runs(store)
    draft = target.with_name(f".{target.name}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(runs, draft, format)
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        problem = Problem(f"the runs cannot be written: {error.strerror}", str(target), fix="--output FILE")
        raise StoreError(problem) from error
    return target, len(runs)


def _choose_format(output: Path | None, asked: Format | None) -> Format:
    named = next((f for f in FORMATS if output is not None and output.suffix.lower() == f".{f}"), None)
    if asked is not None and named is not None and asked != named:
        raise ConfigError(Problem(f"--format {asked}, but --output {output} says {named}", fix=f"--format {named}"))
    return asked or named or "csv"


def _write(runs: pd.DataFrame, path: Path, format: Format) -> None:
    if format == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in to_records(runs)]
        path.write_text("".join(lines), encoding="utf-8")
    elif format == "csv":
        _make_flat(runs).to_csv(path, index=False)
    else:
        _make_flat(runs).to_parquet(path, index=False)


def _make_flat(runs: pd.DataFrame) -> pd.DataFrame:
    """Each column of one type: where lists stand, or texts beside numbers, all values are written as JSON."""
    flat = runs.copy()
    for name in flat.columns:
        if pd.api.types.is_object_dtype(flat[name]):
            kinds = {type(value) for value in flat[name] if not _is_missing(value)}
            if not kinds:
                flat[name] = flat[name].astype("string")  # nothing says what it would be
            elif not (kinds <= {int, float} or kinds in _PLAIN):
                flat[name] = [None if _is_missing(value) else _to_json(value) for value in flat[name]]
    return flat


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
