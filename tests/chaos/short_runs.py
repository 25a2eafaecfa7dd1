"""Short runs that faults are injected into, and the run that nothing happened to."""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from local_runs import build_job
from tiny_runs import build_config

from sftray.cluster.processes import Ended, Kill, run_processes
from sftray.platform.ledger_check import check_ledger
from sftray.platform.rehearsal import hash_state, read_values
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, EVENTS, METRICS, read_lines

SEED = int(os.environ.get("CHAOS_SEED", "1"))
STEPS = 12


@functools.cache
def straight_run(world_size: int) -> Path:
    """The directory of the run that nothing happened to, made once in a process."""
    job = start_run(Path(tempfile.mkdtemp(prefix="straight-")), world_size)
    assert run_processes(job, world_size).finished
    return Path(job["run_dir"])


def start_run(folder: Path, world_size: int, name: str = "run", **changes: Any) -> dict[str, Any]:
    """The job of a run of 12 steps that saves every second one."""
    sections = {"train": {"save_every": 2, "eval_every": 6}, "scaling": {"num_workers": world_size, "use_gpu": False}}
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    config = build_config(folder, **sections)
    job = build_job(config, folder, name)
    run_dir = Path(job["run_dir"])
    (run_dir / CONFIG).write_text(dump_config(Resolved(config, {})), encoding="utf-8")
    shutil.copy(Path(job["tokens"], DATA), run_dir / DATA)
    return job


def end_run(job: dict[str, Any], world_size: int) -> Ended:
    ended = run_processes(job, world_size)
    assert ended.finished, ended.why
    return ended


def is_straight(job: dict[str, Any], world_size: int) -> bool:
    """Whether it ended as if nothing had happened: weights, optimizer, random states, metrics and ledger."""
    run_dir, straight = Path(job["run_dir"]), straight_run(world_size)
    check = check_ledger(run_dir)
    assert check.holds and check.step == STEPS, check.describe()
    return hash_state(run_dir) == hash_state(straight) and read_values(run_dir) == read_values(straight)


def count_steps(run_dir: Path) -> int:
    """The last step that is logged; 0 where none is."""
    path = run_dir / METRICS
    return max((row["step"] for row in read_lines(path)), default=0) if path.exists() else 0


def list_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The events with which attempts began to train."""
    return [event for event in read_lines(run_dir / EVENTS) if event["state"] == "running"]


def kill_when(job: dict[str, Any], world_size: int, when: Any, ranks: tuple[int, ...]) -> Ended:
    return run_processes(job, world_size, Kill(0.0, ranks, when))


def find_drafts(run_dir: Path) -> list[Path]:
    return list((run_dir / CHECKPOINTS).glob(".draft-*"))


def newest_of(run_dir: Path) -> Path:
    """The folder of the newest checkpoint."""
    return max((run_dir / CHECKPOINTS).glob("step-*"))
