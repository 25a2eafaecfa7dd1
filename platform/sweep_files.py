"""The files of a sweep's directory: what was asked, and the ledger of its trials."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from sftray.platform.run_files import read_rows
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.places import as_path, find_bucket, is_file, spell, write_whole

SETTINGS, BASE, LEDGER = "sweep.json", "base.yaml", "trials.jsonl"

Point = dict[str, Any]  # dotted config keys -> values


@dataclass(frozen=True)
class SweepSettings:
    """What was asked of a sweep. `space` is as it was written, `evaluations` the values of progress at which
    every trial validates and saves, `rungs` those of them at which the scheduler decides."""

    name: str
    space_name: str
    space: dict[str, Any]
    searcher: Literal["tpe", "random", "grid"]
    scheduler: Literal["asha", "pbt", "none"]
    seed: int
    trials: int
    concurrent: int | None
    repeats: int
    finalists: int
    max_examples: int
    max_minutes: float | None
    evaluations: list[float]
    rungs: list[float]
    reduction_factor: float


@dataclass(frozen=True)
class TrialRecord:
    """A line of the ledger: one trial, as it was suggested."""

    number: int
    kind: Literal["search", "repeat"]
    point: Point
    seed: int
    repeat_of: int | None = None
    time: float = 0.0

    @property
    def name(self) -> str:
        return f"trial-{self.number:03d}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


def is_sweep(folder: Path) -> bool:
    return is_file(folder / SETTINGS) and is_file(folder / BASE)


def find_sweep(name_or_path: str, store: str) -> Path | None:
    """The directory of a sweep, given by its path or by its name in `store`."""
    return next((folder for folder in list_candidates(name_or_path, store) if is_sweep(folder)), None)


def list_candidates(name_or_path: str, store: str) -> list[Path]:
    """What a word may mean: the path of a run or of a sweep, or its name in `store`."""
    return [as_path(name_or_path), *([] if "://" in name_or_path else [as_path(store) / name_or_path])]


def refuse_overrides(overrides: Sequence[str]) -> None:
    """A sweep goes on as it began, for its trials are compared."""
    if overrides:
        raise ConfigError(
            Problem(
                f"{overrides[0]}: a sweep is resumed with the settings that it began with",
                why="trials of other settings could not be compared with those that have ended",
                fix="sftray resume without settings, or a new sweep: sftray tune … name=…",
            )
        )


def refuse_trial(run_dir: Path) -> None:
    """A trial goes on with its sweep only: alone it would miss the evaluations that all trials share."""
    if is_sweep(run_dir.absolute().parent):
        problem = Problem(
            f"{run_dir} is a trial of a sweep",
            why="it is compared with the others at the same progress, which its sweep sees to",
            fix=f"sftray resume {spell(run_dir.absolute().parent)}",
        )
        raise ConfigError(problem)


def save_settings(sweep_dir: Path, settings: SweepSettings) -> None:
    write_whole(sweep_dir / SETTINGS, json.dumps(dataclasses.asdict(settings), indent=1, ensure_ascii=False))


def load_settings(sweep_dir: Path) -> SweepSettings:
    return SweepSettings(**json.loads((sweep_dir / SETTINGS).read_text(encoding="utf-8")))


def add_trial(sweep_dir: Path, record: TrialRecord) -> None:
    """Append to the ledger, flushed: a trial that has started is known whatever happens next."""
    line = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if (there := find_bucket(sweep_dir / LEDGER)) is not None:
        there.change(lambda before: before + line)
        return
    with (sweep_dir / LEDGER).open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + line)
        file.flush()
        os.fsync(file.fileno())


def read_ledger(sweep_dir: Path) -> list[TrialRecord]:
    """The trials by number. A line that cannot be read is no trial: nothing had started under it."""
    return sorted(_read_records(sweep_dir), key=lambda record: record.number)


def _read_records(sweep_dir: Path) -> Iterator[TrialRecord]:
    for row in read_rows(sweep_dir / LEDGER).rows:
        try:
            yield TrialRecord.from_json(row)
        except (KeyError, TypeError):
            continue
