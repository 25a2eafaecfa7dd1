"""Workers killed at any moment: the run goes on and ends as if nothing had been."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, record
from processes import has_ended
from short_runs import SEED, count_steps, end_run, find_drafts, is_straight, kill_when, start_run, straight_run

from sftray.cluster.processes import Kill, run_processes
from sftray.train_fn.journal import CHECKPOINTS, EVENTS, SAMPLES, read_lines

pytestmark = pytest.mark.slow

Moment = Callable[[Path], bool]


def has_event(state: str) -> Moment:
    return lambda run_dir: (
        (run_dir / EVENTS).exists() and any(e["state"] == state for e in read_lines(run_dir / EVENTS))
    )


def count_checkpoints(run_dir: Path) -> int:
    return sum(1 for path in (run_dir / CHECKPOINTS).glob("step-*") if (path / "MANIFEST.json").exists())


MOMENTS: dict[str, Moment] = {
    "while importing and joining": lambda run_dir: True,
    "once the attempt has its number": lambda run_dir: (run_dir / "leases").exists(),
    "while answering the prompts before": has_event("running"),
    "in the first step": lambda run_dir: (run_dir / SAMPLES).exists(),
    "in the middle": lambda run_dir: count_steps(run_dir) >= 5,
    "while a checkpoint is written": lambda run_dir: bool(find_drafts(run_dir)),
    "after a manifest, before its event": lambda run_dir: count_checkpoints(run_dir) >= 1,
    "in the last validation": lambda run_dir: count_steps(run_dir) >= 11,
}


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_killed_at_a_moment(moment: str, world_size: int, tmp_path: Path) -> None:
    job = start_run(tmp_path, world_size)
    run_dir = Path(job["run_dir"])
    rank = random.Random(SEED).randrange(world_size)
    killed = kill_when(job, world_size, lambda: MOMENTS[moment](run_dir), (rank,))
    assert killed.killed, "it ended before"
    reached = count_steps(run_dir)
    ended = end_run(job, world_size)
    starts = [event["step"] for event in read_lines(run_dir / EVENTS) if event["state"] == "running"]
    equal = is_straight(job, world_size)
    again = max(reached - starts[-1], 0)
    fault, saw = f"SIGKILL of 1 of {world_size}, {moment}", "nothing: the next start goes on"
    record(Outcome("process", fault, 1, saw, int(equal), again, ended.seconds))
    assert equal


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.chaos)])
def test_workers_killed_at_random(kills: int, world_size: int, tmp_path: Path) -> None:
    """Up to three kills a run, of one worker or of all, at any moment of its life."""
    draw = random.Random(SEED * 1000 + world_size)
    life = measure_life(tmp_path, world_size)
    hit, runs, equal, again = 0, 0, 0, 0
    while hit < kills:
        job = start_run(tmp_path, world_size, f"run-{runs}")
        runs += 1
        for _ in range(draw.randint(1, 3)):
            ranks = tuple(r for r in range(world_size) if draw.random() < 0.5) or (draw.randrange(world_size),)
            ended = run_processes(job, world_size, Kill(draw.uniform(0.0, life), ranks))
            if not ended.killed:
                break
            hit += 1
            again = max(again, count_steps(Path(job["run_dir"])) - newest_step(job))
        end_run(job, world_size)
        equal += is_straight(job, world_size)
    fault = f"1 to 3 SIGKILLs at random in a run, {world_size} worker(s)"
    record(Outcome("process", fault, runs, f"{hit} kills", equal, again))
    assert equal == runs


def measure_life(tmp_path: Path, world_size: int) -> float:
    straight_run(world_size)  # made before: what is measured has warm files
    return end_run(start_run(tmp_path, world_size, "measured"), world_size).seconds


def newest_step(job: dict[str, Any]) -> int:
    names = [
        path.name for path in Path(job["run_dir"], CHECKPOINTS).glob("step-*") if (path / "MANIFEST.json").exists()
    ]
    return max((int(name.split("-")[1]) for name in names), default=0)


def test_nothing_is_left_of_killed_processes(tmp_path: Path) -> None:
    """No process, no draft, no file of the group they had formed."""
    job = start_run(tmp_path, 2)
    run_dir = Path(job["run_dir"])
    kill_when(job, 2, lambda: bool(find_drafts(run_dir)), (0,))
    end_run(job, 2)
    assert find_drafts(run_dir) == []
    pids = [pid for event in read_lines(run_dir / EVENTS) if event["state"] == "running" for pid in event["pids"]]
    assert pids and all(has_ended(pid) for pid in pids)
    assert os.listdir(run_dir) and not list(run_dir.glob("*.draft"))
