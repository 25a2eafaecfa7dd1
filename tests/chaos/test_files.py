"""Files that rot, and Ray's own files torn: what is broken is never loaded, and the run goes on from before it."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, record
from short_runs import SEED, count_steps, end_run, is_straight, kill_when, newest_of, start_run

from sftray.train_fn.journal import CHECKPOINTS, EVENTS, read_lines

pytestmark = pytest.mark.slow

Spoil = Callable[[Path, random.Random], None]


def flip_a_byte(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def cut_short(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


SPOILS: dict[str, Spoil] = {
    "a flipped bit": flip_a_byte,
    "a truncated file": cut_short,
    "an empty file": lambda path, draw: path.write_bytes(b""),
    "a missing file": lambda path, draw: path.unlink(),
}


def interrupt(folder: Path) -> dict[str, Any]:
    """A run that was killed after its third checkpoint, and a step beyond it."""
    job = start_run(folder, 1)
    run_dir = Path(job["run_dir"])
    saved = run_dir / CHECKPOINTS / "step-000006"
    assert kill_when(job, 1, lambda: saved.exists() and count_steps(run_dir) > 6, (0,)).killed
    return job


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("name", SPOILS)
def test_a_spoilt_checkpoint_is_set_aside(name: str, times: int, tmp_path: Path) -> None:
    draw = random.Random(f"{SEED} {name}")
    job = interrupt(tmp_path)
    run_dir, equal, again = Path(job["run_dir"]), 0, 0
    for number in range(times):
        copy = {**job, "run_dir": str(run_dir.with_name(f"copy-{number}"))}
        shutil.copytree(run_dir, copy["run_dir"])
        newest = newest_of(Path(copy["run_dir"]))
        SPOILS[name](draw.choice(sorted(path for path in newest.rglob("*") if path.is_file())), draw)
        end_run(copy, 1)
        events = list(read_lines(Path(copy["run_dir"], EVENTS)))
        assert [event["checkpoint"] for event in events if event["state"] == "checkpoint_broken"] == [newest.name]
        (start,) = [event["step"] for event in events if event["state"] == "running"][1:]
        again = max(again, int(newest.name.split("-")[1]) - start)
        equal += is_straight(copy, 1)
    saw = "the broken checkpoint is named in the run's events"
    record(Outcome("files", f"{name} in the newest checkpoint", times, saw, equal, again))
    assert equal == times


def test_every_checkpoint_spoilt_begins_anew(tmp_path: Path) -> None:
    job = interrupt(tmp_path)
    for path in Path(job["run_dir"], CHECKPOINTS).glob("step-*/trainer/optimizer.safetensors"):
        flip_a_byte(path, random.Random(SEED))
    end_run(job, 1)
    equal = is_straight(job, 1)
    record(Outcome("files", "every checkpoint broken", 1, "all are named; the run begins anew", int(equal)))
    assert equal


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "samples.jsonl"])
def test_a_torn_line_is_mended(name: str, tmp_path: Path) -> None:
    job = interrupt(tmp_path)
    path = Path(job["run_dir"], name)
    path.write_bytes(path.read_bytes()[:-7])
    end_run(job, 1)
    equal = is_straight(job, 1)
    record(Outcome("files", f"a torn last line of {name}", 1, "nothing", int(equal)))
    assert equal
