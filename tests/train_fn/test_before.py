"""Answers and validation before the first step are computed once for all runs that begin alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from local_runs import build_job, run_here
from tiny_runs import build_config

from sftray.train_fn.journal import METRICS, SAMPLES, read_lines

pytestmark = pytest.mark.slow


def run_with(folder: Path, name: str, before: Path | None, **changes: Any) -> tuple[list[Any], dict[str, Any]]:
    """The answers and the metrics of step 0 of a run of a few steps, without what was measured by clocks."""
    config = build_config(folder, **{**changes, "train": {"max_examples": 16, **changes.get("train", {})}})
    job = build_job(config, folder, name, before=None if before is None else str(before))
    run_here(job)
    samples = list(read_lines(Path(job["run_dir"], SAMPLES)))
    first = next(read_lines(Path(job["run_dir"], METRICS)))
    prompts = {when: [row["prompt"] for row in samples if row["when"] == when] for when in ("before", "after")}
    assert prompts["before"] == prompts["after"] != []
    timeless = {key: value for key, value in first.items() if key != "time" and not key.startswith("perf/")}
    return [row for row in samples if row["when"] == "before"], timeless


def mark(path: Path) -> None:
    """Make what is in the file recognisable: answers that no model gave, a loss it did not have."""
    found = json.loads(path.read_text())
    for row in found["start"]["samples"]:
        row["answer"] = "from the file"
    found["start"]["metrics"]["val/loss"] = 1.25
    path.write_text(json.dumps(found))


def test_the_start_is_the_same_computed_or_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    plain = run_with(tmp_path, "plain", None)
    assert not path.exists()
    assert run_with(tmp_path, "first", path) == plain
    assert [p.name for p in tmp_path.glob("*before.json*")] == ["before.json"]
    assert run_with(tmp_path, "second", path) == plain
    assert plain[1]["val/loss"] > 0 and plain[1]["step"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"learning_rate": 1e-3}},
        {"train": {"global_batch_size": 4, "epochs": 1}},
        {"train": {"max_examples": 8, "log_every": 0}},
    ],
    ids=["rate", "batch", "length"],
)
def test_runs_that_begin_alike_take_it_from_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "before.json"
    run_with(tmp_path, "first", path)
    mark(path)
    samples, metrics = run_with(tmp_path, "second", path, **changes)
    assert {row["answer"] for row in samples} == {"from the file"} and metrics["val/loss"] == 1.25


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"seed": 2}},
        {"train": {"precision": "bf16"}},
        {"train": {"packing": False}},
        {"train": {"micro_batch_size": 4}},
        {"data": {"train_on": "last"}},
    ],
    ids=["seed", "precision", "packing", "micro-batch", "data"],
)
def test_a_run_that_begins_otherwise_computes_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "before.json"
    run_with(tmp_path, "first", path)
    mark(path)
    marked = path.read_text()
    samples, metrics = run_with(tmp_path, "second", path, **changes)
    assert "from the file" not in {row["answer"] for row in samples} and metrics["val/loss"] != 1.25
    assert path.read_text() != marked
    assert run_with(tmp_path, "plain", None, **changes) == (samples, metrics)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"key": 3}', '{"start": {}}'])
def test_a_broken_file_is_no_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(text)
    assert run_with(tmp_path, "first", path) == run_with(tmp_path, "plain", None)
    assert json.loads(path.read_text())["start"]["metrics"]["val/loss"] > 0


def test_a_place_that_cannot_be_written_costs_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "before.json"
    assert run_with(tmp_path, "first", path) == run_with(tmp_path, "plain", None)
    assert not path.exists()
