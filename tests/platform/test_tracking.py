"""W&B as a mirror, with the real wandb: offline, and online against servers that are dead, mute or slow."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until
from wandb_probe import (
    Backend,
    read_history,
    read_records,
    serve_backend,
    serve_silence,
    wait_for_offspring,
    wait_until_gone,
)

from sftray.platform.mirror import Follower
from sftray.platform.tracking import WandbMirror, build_wandb_mirror, load_run_id
from sftray.train_fn.config import TrackingConfig
from sftray.train_fn.journal import Journal

pytestmark = pytest.mark.slow

CANARY = "0badc0de" * 5  # has the form of a W&B key
CONFIG = {"optim": {"learning_rate": 2e-5}, "data": {"train": "data/train.jsonl"}}
MARGIN_SECONDS = 2.0  # closing may take this much longer than W&B is given


@pytest.fixture(autouse=True)
def own_wandb_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the settings nor the key of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "my run"
    folder.mkdir(parents=True)
    return folder


def build(run_dir: Path, told: list[str], close_seconds: float = 20.0, **tracking: Any) -> WandbMirror:
    mirror = build_wandb_mirror(
        TrackingConfig(**tracking), run_dir, "my-run", CONFIG, "sweep-1", told.append, close_seconds
    )
    assert mirror is not None
    return mirror


def give(mirror: WandbMirror, *steps: int) -> None:
    for step in steps:
        mirror.on_metrics({"step": step, "train/loss": 1.0 / (step + 1), "time": 1.7e9 + step})


def close(mirror: WandbMirror, state: str = "finished") -> float:
    """Seconds it took."""
    started = time.monotonic()
    mirror.close(state)
    return time.monotonic() - started


def test_disabled_is_no_mirror_and_nothing_starts_without_rows(run_dir: Path) -> None:
    assert build_wandb_mirror(TrackingConfig(wandb="disabled"), run_dir, "my-run", CONFIG) is None
    told: list[str] = []
    close(build(run_dir, told))
    assert (told, list(run_dir.iterdir())) == ([], [])


def test_offline_run_holds_the_rows_and_the_config(run_dir: Path) -> None:
    told: list[str] = []
    mirror = build(run_dir, told, project="cats", entity="me", tags=["a", "b"])
    give(mirror, 0, 1)
    mirror.on_metrics({"step": 2, "train/loss": "nan", "time": 1.7e9})
    close(mirror)

    runs = [record.run for record in read_records(run_dir) if record.HasField("run")]
    assert {(run.run_id, run.display_name, run.project, run.entity, run.run_group) for run in runs} == {
        (load_run_id(run_dir), "my-run", "cats", "me", "sweep-1")
    }
    assert list(runs[0].tags) == ["a", "b"]
    config = {update.key: update.value_json for update in runs[0].config.update if update.key in CONFIG}
    assert {key: json.loads(value) for key, value in config.items()} == CONFIG
    history = read_history(run_dir)
    assert [(row["step"], row["_timestamp"]) for row in history] == [(0, 1.7e9), (1, 1.7e9 + 1), (2, 1.7e9)]
    assert [row["train/loss"] for row in history[:2]] == [1.0, 0.5]
    assert history[2]["train/loss"] != history[2]["train/loss"]  # a number that is none

    assert [r.exit.exit_code for r in read_records(run_dir) if r.HasField("exit")] == [0]
    folder = next(run_dir.glob("wandb/offline-run-*"))
    assert told == [f"W&B: 3 rows mirrored; to upload them: wandb sync {shlex.quote(str(folder))}"]


def test_steps_written_anew_after_a_rewind_are_kept(run_dir: Path) -> None:
    journal = Journal(run_dir)
    with Follower(run_dir, [build(run_dir, [])]):
        for steps in ((1, 2, 3), (2, 3, 4)):
            journal.rewind(steps[0] - 1)
            for step in steps:
                journal.add_metrics({"step": step, "perf/step_seconds": time.perf_counter(), "time": time.time()})
            wait_until(lambda: bool(list(run_dir.glob("wandb/*/*.wandb"))))  # the rows so far are under way
    assert [row["step"] for row in read_history(run_dir)] == [1, 2, 3, 2, 3, 4]
    metrics = [record.metric for record in read_records(run_dir) if record.HasField("metric")]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"] == ["step"]


def test_resumed_run_goes_on_in_the_same_wandb_run(run_dir: Path) -> None:
    for steps in ((1, 2), (3,)):
        mirror = build(run_dir, [])
        give(mirror, *steps)
        close(mirror, "stopped")
    runs = [record.run for record in read_records(run_dir) if record.HasField("run")]
    assert {(run.run_id, run.resume) for run in runs} == {(load_run_id(run_dir), True)}
    assert [row["step"] for row in read_history(run_dir)] == [1, 2, 3]
    assert [r.exit.exit_code for r in read_records(run_dir) if r.HasField("exit")] == [1, 1]


def test_runs_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    for store in ("a", "b"):
        (tmp_path / store / "my-run").mkdir(parents=True)
    first, second = (load_run_id(tmp_path / store / "my-run") for store in ("a", "b"))
    assert first != second
    assert re.fullmatch("my-run-[0-9a-f]{8}", first)


def go_online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", CANARY)


def assert_all_dropped(told: list[str], rows: int, *reasons: str) -> None:
    """One of the reasons is given: a process may be frozen before or after it says that it is ready."""
    (line,) = told
    assert any(f"W&B: 0 rows mirrored, {rows} dropped ({why}" in line for why in reasons)
    assert line.endswith("wandb/mirror.log")


def test_dead_address_costs_a_bounded_time(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_online(monkeypatch, "http://127.0.0.1:9")
    told: list[str] = []
    mirror = build(run_dir, told, close_seconds=1.0, wandb="online")
    started = time.monotonic()
    give(mirror, *range(1000))
    assert time.monotonic() - started < 1.0
    offspring = wait_for_offspring(os.getpid())
    assert close(mirror) < 1.0 + MARGIN_SECONDS
    assert_all_dropped(told, 1000, "it was not ready within 1 s")
    wait_until_gone(offspring)


def test_mute_server_costs_a_bounded_time(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with serve_silence() as url:
        go_online(monkeypatch, url)
        mirror = build(run_dir, told, close_seconds=1.0, wandb="online")
        give(mirror, 1, 2)
        offspring = wait_for_offspring(os.getpid())
        assert close(mirror) < 1.0 + MARGIN_SECONDS
    assert_all_dropped(told, 2, "it was not ready within 1 s")
    wait_until_gone(offspring)


def test_working_server_gets_the_rows_and_the_key_is_written_nowhere(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with serve_backend(Backend) as url:
        go_online(monkeypatch, url)
        mirror = build(run_dir, told, wandb="online")
        give(mirror, 1, 2)
        close(mirror)
    assert told == [f"W&B: 2 rows mirrored to {url}/me/sftray/runs/{load_run_id(run_dir).replace(' ', '%20')}"]


def test_uploads_that_hang_leave_all_rows_on_the_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stuck(Backend):
        stuck = threading.Event()

    with serve_backend(Stuck) as url:
        go_online(monkeypatch, url)
        mirror = build(run_dir, told, close_seconds=3.0, wandb="online")
        give(mirror, *range(200))
        wait_until(lambda: bool(list(run_dir.glob("wandb/run-*/*.wandb"))))
        assert close(mirror) < 3.0 + MARGIN_SECONDS
    assert "200 rows mirrored, not all uploaded within 3 s; to upload the rest: wandb sync" in told[0]
    assert [row["step"] for row in read_history(run_dir)] == list(range(200))


def test_missing_key_is_told_at_once_and_the_rows_counted(run_dir: Path) -> None:
    told: list[str] = []
    mirror = build(run_dir, told, wandb="online")
    give(mirror, 1)
    wait_until(lambda: bool(told))
    give(mirror, 2, 3)
    assert told.pop().startswith("W&B: the mirror is off, and the run goes on (UsageError: No API key configured")
    assert close(mirror) < 1.0
    assert_all_dropped(told, 3, "UsageError: No API key configured")


def test_broken_wandb_is_told(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('built for another Python')\n")
    monkeypatch.syspath_prepend(tmp_path)
    told: list[str] = []
    mirror = build(run_dir, told)
    give(mirror, 1)
    close(mirror)
    assert_all_dropped(told, 1, "ImportError: built for another Python")


def test_folder_that_cannot_be_made_is_told(run_dir: Path) -> None:
    (run_dir / "wandb").write_text("a file is in the way")
    told: list[str] = []
    mirror = build(run_dir, told)
    give(mirror, 1)
    close(mirror)
    assert_all_dropped(told, 1, f"{run_dir / 'wandb'}")


def test_frozen_process_is_killed(run_dir: Path) -> None:
    told: list[str] = []
    mirror = build(run_dir, told, close_seconds=0.5)
    give(mirror, 1)
    offspring = wait_for_offspring(os.getpid())
    os.kill(offspring[0], signal.SIGSTOP)
    assert close(mirror) < 0.5 + MARGIN_SECONDS
    assert_all_dropped(told, 1, "its process gave no answer", "it was not ready within 0.5 s")
    wait_until_gone(offspring)


def test_full_queue_drops_and_counts(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftray.platform.tracking.QUEUE_ROWS", 10)
    told: list[str] = []
    mirror = build(run_dir, told, close_seconds=0.5)
    give(mirror, 0)
    os.kill(wait_for_offspring(os.getpid())[0], signal.SIGSTOP)
    started = time.monotonic()
    give(mirror, *range(1, 5000))  # far more than the queue and the pipe hold
    assert time.monotonic() - started < 1.0
    close(mirror)
    assert_all_dropped(told, 5000, "its process gave no answer", "it was not ready within 0.5 s")


DRIVER = """if True:
    import sys, time
    from pathlib import Path
    from sftray.platform.tracking import build_wandb_mirror
    from sftray.train_fn.config import TrackingConfig
    mode, folder, end = sys.argv[1:]
    config, folder = TrackingConfig(wandb=mode), Path(folder)
    mirror = build_wandb_mirror(config, folder, "x", {}, tell=print, close_seconds=1.0)
    for step in range(3):
        mirror.on_metrics({"step": step})
    if end == "close":
        mirror.close("finished")
    print("wandb" in sys.modules, sys.excepthook is sys.__excepthook__, time.time(), flush=True)
    if end == "wait":
        sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_process_of_the_run_stays_clean_and_ends_at_once(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    go_online(monkeypatch, "http://127.0.0.1:9")
    command = [sys.executable, "-c", DRIVER, mode, str(run_dir), "close"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    seconds = time.time() - float(done.stdout.split()[-1])
    told, facts = done.stdout.splitlines()
    assert (told[:5], facts[:11], done.stderr) == ("W&B: ", "False True ", "")
    assert seconds < 2.0


def test_killed_run_leaves_its_rows_and_no_process(run_dir: Path) -> None:
    command = [sys.executable, "-c", DRIVER, "offline", str(run_dir), "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        offspring = wait_for_offspring(process.pid)
        process.kill()
    wait_until(lambda: any(record.HasField("exit") for record in read_records(run_dir)))
    assert [row["step"] for row in read_history(run_dir)] == [0, 1, 2]
    wait_until_gone(offspring)
