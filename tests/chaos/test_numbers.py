"""Numbers that break in the middle of a whole run, by a model that holds a NaN: what is trained, counted and told."""

import json
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, record
from safetensors.torch import load_file, save_file
from short_runs import SEED, newest_of, start_run, straight_run
from tiny_runs import read_events, read_metrics, write_sums
from transformers import AutoTokenizer

from sftray.cluster.processes import run_processes
from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.journal import CHECKPOINTS

pytestmark = pytest.mark.slow

NAN = float("nan")
RARE = "zebra"  # in one row alone


def write_model(folder: Path, word: str | None) -> Path:
    """The weights of the straight run, with NaN for the tokens of `word` that no other row has, or for all."""
    source = newest_of(straight_run(1))
    target = folder / "model"
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != "MANIFEST.json":
            (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    if word is None:
        embedding[:] = NAN
    else:
        embedding[find_rare_token(target, folder, word)] = NAN
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def find_rare_token(model: Path, folder: Path, word: str) -> int:
    tokenizer = AutoTokenizer.from_pretrained(model)
    usual = set(tokenizer((folder / "sums.jsonl").read_text(encoding="utf-8"))["input_ids"])
    return next(token for token in tokenizer(word)["input_ids"] if token not in usual)


def start(folder: Path, world_size: int, word: str | None, name: str) -> dict[str, Any]:
    """A run of 48 rows, of which one has the word."""
    if not (folder / "model").exists():
        write_sums(folder / "sums.jsonl", 47)
        rare = [{"role": "user", "content": "Which animal?"}, {"role": "assistant", "content": RARE}]
        rows = (folder / "sums.jsonl").read_text(encoding="utf-8") + json.dumps({"messages": rare}) + "\n"
        (folder / "train.jsonl").write_text(rows, encoding="utf-8")
        write_sums(folder / "validation.jsonl", 8, seed=SEED)
        write_model(folder, word)
    return start_run(folder, world_size, name, model={"scratch": None, "name": str(folder / "model")})


def test_a_step_with_a_nan_changes_nothing_and_names_its_rows(tmp_path: Path) -> None:
    """Two epochs meet the row twice. Whatever the number of workers, the same steps are left out."""
    told = []
    for world_size in (1, 2):
        job = start(tmp_path, world_size, RARE, f"run-{world_size}")
        assert run_processes(job, world_size).finished
        run_dir = Path(job["run_dir"])
        skipped = [event for event in read_events(run_dir) if event["state"] == "skipped_step"]
        told.append([event["step"] for event in skipped])
        for event in skipped:
            assert any(place.endswith(":48") for place in event["examples"]), "the row that did it is among them"
        broken = [row["step"] for row in read_metrics(run_dir) if row.get("train/loss") == "nan"]
        assert broken == told[-1] and check_ledger(run_dir).holds
        weights = load_file(newest_of(run_dir) / "model.safetensors")
        assert sum(int(tensor.isnan().any(-1).sum()) for tensor in weights.values()) == 1, "the NaN has not spread"
    assert told[0] == told[1] and len(told[0]) == 2
    saw = "skipped_step, with the rows of the step; the NaN does not spread"
    record(Outcome("numbers", "a NaN in the steps that hold one certain row", 2, saw, 2))


def test_nothing_but_nan_ends_the_run_with_6(tmp_path: Path) -> None:
    job = start(tmp_path, 1, None, "run")
    ended = run_processes(job, 1)
    assert not ended.finished and "diverged: 5 steps in a row" in ended.why
    run_dir = Path(job["run_dir"])
    assert [event["step"] for event in read_events(run_dir) if event["state"] == "skipped_step"] == [1, 2, 3, 4, 5]
    assert not any((run_dir / CHECKPOINTS).glob("step-00000[5-9]"))
    record(Outcome("numbers", "a NaN in every step", 1, "diverged, after five in a row; what to change", 1))


def test_a_learning_rate_beyond_all_measure_ends_the_run_with_6(tmp_path: Path) -> None:
    """The loss stays finite after the first step, and no gradient does."""
    job = start_run(tmp_path, 2, optim={"learning_rate": 1e4, "warmup_ratio": 0.0})
    ended = run_processes(job, 2)
    assert "diverged: 5 steps in a row" in ended.why
    rows = [row for row in read_metrics(Path(job["run_dir"])) if "train/loss" in row]
    assert isinstance(rows[0]["train/grad_norm"], float) and {row["train/grad_norm"] for row in rows[1:]} == {"nan"}
    record(Outcome("numbers", "a learning rate of 10,000", 1, "diverged, after five in a row; what to change", 1))
