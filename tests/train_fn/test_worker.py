"""Runs one after another in one process: each is what it would be alone, and leaves nothing behind."""

import gc
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_runs import Metrics, build_job, hash_newest, run_here
from tiny_runs import build_config, read_events, read_metrics, trace

from sftray.cluster.connection import connect_for
from sftray.cluster.launch import run_workers
from sftray.cluster.processes import run_processes
from sftray.train_fn.config import RunConfig
from sftray.train_fn.journal import SAMPLES, read_lines

pytestmark = pytest.mark.slow

_LLAMA = {"architecture": "llama", "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
OTHER = {"scratch": {**_LLAMA, "hidden_size": 48, "intermediate_size": 96}}
LARGE = {"scratch": {**_LLAMA, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 60_000}}  # 250 MB and more


def count_held() -> int:
    """Tensors and modules that something still refers to."""
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor | torch.nn.Module) for o in gc.get_objects())


def describe_process() -> dict[str, Any]:
    """What a run might leave changed for the next one. Its own seed is set by each, so torch's state may differ."""
    return {
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def test_a_run_does_not_depend_on_what_ran_before_it(tmp_path: Path) -> None:
    job = build_job(build_config(tmp_path), tmp_path, "alone")
    (tmp_path / "job.json").write_text(json.dumps(job))
    support = Path(__file__).parents[1] / "support"
    code = (
        f"from pathlib import Path; from local_runs import run_file; run_file(Path({str(tmp_path / 'job.json')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=support, check=True, capture_output=True, timeout=120)

    other = build_config(tmp_path, model=OTHER, train={"precision": "bf16", "seed": 7, "max_examples": 16})
    run_here(build_job(other, tmp_path, "other"))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    torch.rand(3)
    again = {**job, "run_dir": build_job(build_config(tmp_path), tmp_path, "again")["run_dir"]}
    run_here(again)
    assert hash_newest(again) == hash_newest(job)


def test_a_run_leaves_nothing_behind(tmp_path: Path) -> None:
    config = build_config(tmp_path, train={"max_examples": 16})
    run_here(build_job(config, tmp_path, "first"))  # imports and caches that stay for good
    before, held = describe_process(), count_held()
    run_here(build_job(config, tmp_path, "second"))
    assert describe_process() == before
    assert count_held() == held

    def leave(metrics: Metrics, folder: Path | None) -> None:
        raise KeyError("left")

    with pytest.raises(KeyError):
        run_here(build_job(config, tmp_path, "third"), leave)
    assert describe_process() == before
    assert count_held() == held


def test_the_peak_of_a_run_is_not_that_of_a_larger_one_before_it(tmp_path: Path) -> None:
    large = build_job(build_config(tmp_path, model=LARGE, train={"max_examples": 8}), tmp_path, "large")
    small = build_job(build_config(tmp_path, train={"max_examples": 8}), tmp_path, "small")
    peaks = []
    for job in (large, small):
        run_here(job)
        peaks.append(read_metrics(Path(job["run_dir"]))[-1]["perf/peak_memory_gb"])
    assert peaks[1] < peaks[0] - 0.1


def run_on_ray(job: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    with connect_for(config.scaling) as (placement, _):
        return run_workers(job, placement, max_failures=0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_address")
def test_a_worker_of_ray_train_and_this_process_learn_the_same(tmp_path: Path) -> None:
    config = build_config(tmp_path, scaling={"num_workers": 1}, train={"precision": "bf16"})
    on_ray, here = build_job(config, tmp_path, "ray"), build_job(config, tmp_path, "here")
    assert run_on_ray(on_ray, config) == run_here(here) == {"step": 12, "stopped": False, "why": ""}
    assert hash_newest(on_ray) == hash_newest(here)
    assert trace(Path(on_ray["run_dir"])) == trace(Path(here["run_dir"]))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_address")
def test_two_workers_agree_on_the_start_on_milestones_and_on_stopping(tmp_path: Path) -> None:
    """With Ray Train and without it, which a run may change between its attempts."""
    config = build_config(tmp_path, train={"eval_every": 0, "save_every": 0})
    before, stop = tmp_path / "before.json", tmp_path / "stop"
    more = {"evaluations": [0.5, 1.0], "before": str(before), "stop_files": [str(stop)]}
    jobs = [build_job(config, tmp_path, name, **more) for name in ("one", "two")]
    assert run_processes(jobs[0], 2).finished
    stop.touch()
    assert run_on_ray(jobs[1], config) == {"step": 1, "stopped": True, "why": ""}
    stop.unlink()
    assert run_processes(jobs[1], 2).finished
    one, two = (Path(job["run_dir"]) for job in jobs)
    assert [row["step"] for row in read_metrics(one) if "milestone" in row] == [6, 12]
    assert [e["step"] for e in read_events(one) if e["state"] == "checkpoint"] == [6, 12]
    assert [e["step"] for e in read_events(two) if e["state"] == "checkpoint"] == [1, 6, 12]
    assert list(read_lines(one / SAMPLES)) == list(read_lines(two / SAMPLES))
    assert (
        read_metrics(one)[0]["val/loss"]
        == read_metrics(two)[0]["val/loss"]
        == json.loads(before.read_text())["start"]["metrics"]["val/loss"]
    )
    assert hash_newest(jobs[0]) == hash_newest(jobs[1])
