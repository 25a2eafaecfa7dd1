"""Short runs of a person's own config, in processes without Ray: what a proof compares."""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftray.cluster.processes import Ended, Kill, run_processes
from sftray.platform.driver import build_job
from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.checkpoint import find_newest
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import Problem, UserError
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, METRICS, read_lines
from sftray.train_fn.prepare import Prepared

_MEASURED = ("perf/", "time")  # metrics that say how fast it was, and not what was learned
_KEPT = 10_000  # checkpoints: nothing is deleted that a proof may start from


class RehearsalError(UserError):
    """A run of a proof did not come to its end by itself."""

    exit_code = 70


@dataclass(frozen=True)
class Rehearsal:
    """Where runs of one config are made, with how many workers, and on which data."""

    folder: Path
    config: RunConfig
    prepared: Prepared
    num_workers: int

    def start(self, name: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """The job of a run `name` whose config has `changes` in its sections; its directory is made."""
        changed = {
            section: getattr(self.config, section).model_copy(update=dict(values))
            for section, values in (changes or {}).items()
        }
        config = self.config.model_copy(update={**changed, "name": name})
        run_dir = self.folder / name
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).write_text(dump_config(Resolved(config, {})), encoding="utf-8")
        (run_dir / DATA).write_text(json.dumps(self.prepared.receipt, ensure_ascii=False), encoding="utf-8")
        return build_job(config, run_dir, self.prepared.folder, None)


def shorten(config: RunConfig, steps: int) -> RunConfig:
    """The config of a rehearsal: so many steps, each logged, every second saved, validated at the end alone."""
    train = {"max_steps": steps, "max_examples": None, "epochs": 10**6}
    often = {"log_every": 1, "eval_every": 0, "save_every": 2}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={**train, **often}),
            "store": config.store.model_copy(update={"keep_checkpoints": _KEPT}),
            "tracking": config.tracking.model_copy(update={"wandb": "disabled"}),
        }
    )


def finish(job: Mapping[str, Any], num_workers: int) -> Ended:
    """Run a job, from its beginning or its newest checkpoint, to its end.

    Raises:
        RehearsalError: it failed; it says what the run said.
    """
    ended = run_processes(dict(job), num_workers)
    if not ended.finished:
        raise RehearsalError(
            Problem(
                f"a rehearsal on {num_workers} worker(s) did not come to its end",
                where=job["run_dir"],
                why=ended.why,
                fix="sftray plan and a short sftray train of this config say more",
            )
        )
    return ended


def finish_through_kills(
    job: Mapping[str, Any], num_workers: int, straight_seconds: float, draw: random.Random
) -> int:
    """Run a job and kill it up to three times at random moments of its life; returns how many kills hit it."""
    kills = 0
    for _ in range(draw.randint(1, 3)):
        ranks = tuple(rank for rank in range(num_workers) if draw.random() < 0.5) or (draw.randrange(num_workers),)
        ended = run_processes(dict(job), num_workers, Kill(draw.uniform(0.0, straight_seconds), ranks))
        if not ended.killed:
            break
        kills += 1
    finish(job, num_workers)
    return kills


def copy_until(source: Path, target: Path, step: int) -> None:
    """A copy of a run as it stood at `step`, which was saved: its files, and its checkpoints up to that one."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, DATA, METRICS):
        shutil.copy(source / name, target / name)
    for path in (source / CHECKPOINTS).iterdir():
        if path.name <= f"step-{step:06d}":
            shutil.copytree(path, target / CHECKPOINTS / path.name)


def hash_state(run_dir: Path) -> str:
    """Of weights, optimizer and random states in the newest checkpoint that is whole."""
    newest = find_newest(run_dir / CHECKPOINTS)
    if newest is None:
        return "no whole checkpoint"
    files = sorted((name, digest) for name, (_, digest) in newest.manifest.files.items() if _is_tensors(name))
    return hashlib.sha256(json.dumps([newest.step, files]).encode()).hexdigest()


def _is_tensors(name: str) -> bool:
    return name.endswith(".safetensors")


def read_values(run_dir: Path) -> list[dict[str, Any]]:
    """What the run's metrics say of the training itself, row by row."""
    rows = read_lines(run_dir / METRICS)
    return [{key: value for key, value in row.items() if not key.startswith(_MEASURED)} for row in rows]


def read_losses(run_dir: Path) -> list[tuple[int, float, float]]:
    """(step, training loss, gradient norm) of every step."""
    rows = [row for row in read_lines(run_dir / METRICS) if "train/loss" in row]
    return [(row["step"], float(row["train/loss"]), float(row["train/grad_norm"])) for row in rows]


def has_whole_ledger(run_dir: Path, steps: int) -> bool:
    check = check_ledger(run_dir)
    return check.holds and check.step == steps
