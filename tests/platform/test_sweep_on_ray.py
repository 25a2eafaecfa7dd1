"""Whole sweeps on a real Ray cluster: budgets, early ends, crashes, lineage, and what a sweep says."""

import hashlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from rich.console import Console
from tiny_runs import read_events, read_metrics, train
from tiny_sweeps import read_results, read_states, sweep

from sftray.cluster.connection import connect_for
from sftray.platform.certainty import describe_answer
from sftray.platform.leaderboard import load_leaderboard
from sftray.platform.sweep import resume_sweep
from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.checkpoint import find_newest, list_checkpoints
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.config_file import load_config
from sftray.train_fn.errors import DivergedError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]

RATE, ACCUMULATION = "optim.learning_rate", "train.gradient_accumulation_steps"


def hash_weights(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def wait_for(look: Callable[[], Any]) -> Any:
    """What `look` finds, looked for at short intervals within a bounded time."""
    never = threading.Event()
    for _ in range(2400):
        if found := look():
            return found
        never.wait(0.05)
    raise AssertionError("it never came")


def count_events(run_dir: Path, state: str) -> int:
    events = read_events(run_dir) if (run_dir / "events.jsonl").exists() else []
    return [event["state"] for event in events].count(state)


@pytest.fixture(scope="module")
def grid(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three global batches, two trials at a time, of 45 examples each."""
    folder = tmp_path_factory.mktemp("grid")
    space = {ACCUMULATION: {"grid": [1, 2, 4]}}
    return sweep(folder, space, {"train": {"global_batch_size": None}}, max_examples=45, concurrent=2)


def test_every_trial_gets_the_same_examples_whatever_its_global_batch(grid: Path) -> None:
    assert read_states(grid) == {"trial-000": "finished", "trial-001": "finished", "trial-002": "finished"}
    rows = {record.name: read_metrics(grid / record.name) for record in read_ledger(grid)}
    assert [rows[name][-1]["step"] for name in sorted(rows)] == [23, 12, 6]
    assert {trial[-1]["examples"] for trial in rows.values()} == {45}
    assert len({trial[0]["val/loss"] for trial in rows.values()}) == 1  # the same weights and validation rows
    for trial in rows.values():
        milestones = [row["milestone"] for row in trial if "milestone" in row]
        assert milestones[-1] == 1.0 and milestones == sorted(set(milestones))


def test_tokens_are_prepared_once_and_nothing_is_left(grid: Path) -> None:
    assert len(list((grid.parent / "tokens").iterdir())) == 1
    assert not (grid / ".tune").exists()
    scaling = load_config(grid / "base.yaml").config.scaling
    with connect_for(scaling):
        left = [pg for pg in placement_group_table().values() if pg["state"] != "REMOVED"]
        assert left == []


def test_a_trial_has_the_weights_of_the_same_run_alone(grid: Path, tmp_path: Path) -> None:
    config = load_config(grid / "trial-001" / "config.yaml").config
    alone = train(
        config.model_copy(update={"store": config.store.model_copy(update={"path": str(tmp_path)}), "name": "alone"})
    )
    newest = find_newest(grid / "trial-001" / "checkpoints")
    assert newest is not None
    assert hash_weights(alone.checkpoint) == hash_weights(newest.folder)


def test_halving_ends_the_worse_trial_and_its_events_say_why(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {RATE: {"grid": [1e-2, 1e-6]}}, scheduler="asha", concurrent=1)
    assert read_states(folder) == {"trial-000": "finished", "trial-001": "pruned"}
    event = read_events(folder / "trial-001")[-1]
    assert event["progress"] == 0.25 and "number 2 of 2" in event["why"]
    assert read_metrics(folder / "trial-001")[-1]["progress"] == pytest.approx(0.25, abs=0.09)
    assert [each.record.name for each in load_leaderboard(folder)] == ["trial-000", "trial-001"]


def test_a_trial_that_diverges_is_marked_and_the_others_go_on(tmp_path: Path) -> None:
    space = {RATE: {"grid": [1e30, 1e-2]}}
    folder = sweep(tmp_path, space, {"optim": {"schedule": "constant"}}, concurrent=1)
    assert read_states(folder) == {"trial-000": "failed", "trial-001": "finished"}
    events = read_events(folder / "trial-000")
    assert events[-1]["why"].startswith("diverged") and events[-1]["exit_code"] == 6
    assert [event["state"] for event in events].count("running") == 1  # it was not tried again
    assert [each.record.name for each in load_leaderboard(folder)] == ["trial-001", "trial-000"]


def test_a_sweep_of_which_all_trials_diverge_has_failed(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="all 2 trials failed"):
        sweep(tmp_path, {RATE: {"grid": [1e30, 1e31]}}, {"optim": {"schedule": "constant"}}, concurrent=2)


def test_a_killed_trial_goes_on_and_the_others_do_not_notice(tmp_path: Path) -> None:
    store = tmp_path / "runs" / "tune-tiny"

    def kill() -> None:
        trial = store / "trial-000"
        wait_for(lambda: count_events(trial, "checkpoint"))
        (pids,) = [event["pids"] for event in read_events(trial) if event["state"] == "running"]
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    folder = sweep(tmp_path, {RATE: {"grid": [1e-2, 5e-3]}}, {"train": {"epochs": 24}}, concurrent=2)
    killer.join()
    assert read_states(folder) == {"trial-000": "finished", "trial-001": "finished"}
    assert count_events(folder / "trial-000", "running") == 2
    assert count_events(folder / "trial-001", "running") == 1
    steps = [row["step"] for row in read_metrics(folder / "trial-000")]
    assert steps == list(range(145))


def test_trials_of_several_workers_fill_the_cluster_without_a_deadlock(tmp_path: Path) -> None:
    space = {RATE: {"grid": [1e-2, 1e-6]}}
    folder = sweep(tmp_path, space, {"scaling": {"num_workers": 2, "use_gpu": False}}, scheduler="asha")
    states = read_states(folder)
    assert states["trial-000"] == "finished" and states["trial-001"] in ("finished", "pruned")
    starts = [read_events(folder / name)[0]["time"] for name in states]
    assert abs(starts[0] - starts[1]) < 20  # side by side: two of two workers on four CPUs
    assert all(len(event["pids"]) == 2 for event in read_events(folder / "trial-000") if event["state"] == "running")


def test_a_trial_that_follows_another_has_its_weights(tmp_path: Path) -> None:
    space = {RATE: {"log_uniform": [1e-5, 1e-1]}}
    folder = sweep(
        tmp_path, space, {"train": {"epochs": 4}}, trials=4, scheduler="pbt", searcher="random", concurrent=4, seed=3
    )
    assert set(read_states(folder).values()) == {"finished"}
    lineage = [event for event in read_events(folder) if event["state"] == "exploited"]
    assert lineage
    for event in lineage:
        assert event["after"][RATE] != event["before"][RATE]
    # The last one: neither of the two can have followed another since, and given its checkpoints up.
    last = lineage[-1]
    assert find_step(folder / last["trial"], last["step"]) == find_step(folder / last["from"], last["step"])
    config = load_config(folder / last["trial"] / "config.yaml").config
    assert config.optim.learning_rate == last["after"][RATE]


def find_step(run_dir: Path, step: int) -> dict[str, Any]:
    """The files of a checkpoint with their hashes: weights and optimizer."""
    (found,) = [c.manifest.files for c in list_checkpoints(run_dir / "checkpoints") if c.step == step]
    return found


def test_repeats_tell_a_planted_difference_and_cannot_tell_a_setting_from_itself(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {RATE: {"grid": [1e-2, 1e-4]}}, repeats=3, concurrent=4)
    repeats = [record for record in read_ledger(folder) if record.kind == "repeat"]
    assert [(r.repeat_of, r.seed) for r in repeats] == [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4)]
    words = " ".join(describe_answer(folder))
    assert "beats" in words and "95 %" in words
    (tmp_path / "same").mkdir()
    same = sweep(tmp_path / "same", {"train.seed": {"grid": [1, 2, 3, 4]}}, concurrent=4)
    assert "cannot tell" in " ".join(describe_answer(same))


def test_a_sweep_whose_driver_is_gone_runs_what_is_missing(grid: Path, tmp_path: Path) -> None:
    """What a killed driver leaves: one trial in the middle, one in the ledger only, one not begun, a torn ledger."""
    space = {ACCUMULATION: {"grid": [1, 2, 4]}}
    folder = sweep(tmp_path, space, {"train": {"global_batch_size": None}}, max_examples=45, concurrent=2)
    straight = read_results(folder)
    cut_off(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        resume_sweep(folder, Console(file=io.StringIO()))
    assert read_results(folder) == straight
    assert [len(results[2]) for results in read_results(grid)] == [len(results[2]) for results in straight]
    assert count_events(folder / "trial-000", "running") == 1  # it had ended: it was left alone


def cut_off(folder: Path) -> None:
    """Make of a finished sweep what stands there when its driver was killed."""
    trial = folder / "trial-001"
    checkpoints = list_checkpoints(trial / "checkpoints")
    shutil.rmtree(checkpoints[-1].folder)
    lines = (trial / "events.jsonl").read_bytes().splitlines(keepends=True)
    (trial / "events.jsonl").write_bytes(b"".join(lines[:-1]))
    shutil.rmtree(folder / "trial-002")
    ledger = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "trials.jsonl").write_bytes(b"".join(ledger[:2]) + ledger[2][:20])
    (folder / ".tune").mkdir()
    (folder / ".tune" / "experiment_state-torn.json").write_text('{"torn')


def test_the_shared_cluster_is_free_again() -> None:
    with connect_for(ScalingConfig(num_workers=1, use_gpu=False)):
        assert wait_for(lambda: ray.available_resources().get("CPU") == 4.0)
