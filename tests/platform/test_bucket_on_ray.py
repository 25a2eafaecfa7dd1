"""Whole runs and sweeps with their store in a bucket, over HTTP, on a real Ray cluster: the same numbers as in a
folder."""

import hashlib
import threading
from pathlib import Path

import pytest
from killers import kill_a_worker_after
from s3_server import make_place
from tiny_runs import build_config, read_events, train
from tiny_sweeps import read_results, read_states, sweep

from sftray.cluster.crew import CREWS
from sftray.platform.rehearsal import read_values
from sftray.train_fn.places import as_path, find_bucket

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]

RATE = "optim.learning_rate"


def test_a_run_in_a_bucket_survives_a_kill_and_is_the_run_in_a_folder(tmp_path: Path, s3_endpoint: str) -> None:
    straight = train(build_config(tmp_path, train={"save_every": 2}))
    store = make_place(s3_endpoint)
    config = build_config(tmp_path, train={"save_every": 2}, store={"path": store})
    killer = threading.Thread(target=kill_a_worker_after, args=(as_path(store) / "tiny", "checkpoint"))
    killer.start()
    run = train(config)
    killer.join()
    running = [event for event in read_events(run.run_dir) if event["state"] == "running"]
    assert len(running) == 2 and running[1]["step"] >= 2
    assert [event["seq"] for event in read_events(run.run_dir)] == list(range(len(read_events(run.run_dir))))
    assert read_values(run.run_dir) == read_values(straight.run_dir)
    weights = [(each.checkpoint / "model.safetensors").read_bytes() for each in (run, straight)]
    assert len({hashlib.sha256(data).hexdigest() for data in weights}) == 1


def test_a_sweep_in_a_bucket_is_the_sweep_in_a_folder(tmp_path: Path, s3_endpoint: str) -> None:
    """Its trials follow each other's weights, so they read what others have saved."""
    space = {RATE: {"log_uniform": [1e-5, 1e-1]}}
    far = sweep(
        tmp_path,
        space,
        {"store": {"path": make_place(s3_endpoint)}, "train": {"epochs": 4}},
        **{"trials": 4, "scheduler": "pbt", "searcher": "random", "concurrent": 4, "seed": 3},
    )
    assert set(read_states(far).values()) == {"finished"}
    assert [event for event in read_events(far) if event["state"] == "exploited"]
    assert not [event for event in read_events(far) if event["state"] == "exploit_skipped"]


def test_trials_on_several_workers_speak_through_the_bucket(tmp_path: Path, s3_endpoint: str) -> None:
    changes = {"scaling": {"num_workers": 2, "use_gpu": False}}
    far = sweep(tmp_path, {RATE: {"grid": [1e-2, 1e-3]}}, {**changes, "store": {"path": make_place(s3_endpoint)}})
    assert read_states(far) == {"trial-000": "finished", "trial-001": "finished"}
    for _, _, rows in read_results(far):
        assert rows[-1]["progress"] == 1.0 and rows[-1]["val/loss"] < rows[0]["val/loss"]
        assert [row["milestone"] for row in rows if "milestone" in row] == [k / 8 for k in range(1, 9)]
    left = find_bucket(far / CREWS)
    assert left is not None and not left.list_marks()
