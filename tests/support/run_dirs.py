"""Run directories as the workers and the driver write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftray.train_fn.checkpoint import Checkpoint, Manifest, commit_checkpoint
from sftray.train_fn.config_file import dump_config, load_config
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, EVENTS, Journal

CONFIG_TEXT = """\
model: {scratch: {architecture: llama, hidden_size: 8}, tokenizer: quickstart}
data: {train: data/train.jsonl, validation: 0.05}
"""
RECEIPT = {
    "splits": {
        "train": {
            **{"rows": 12, "kept": 9, "cut": 1, "dropped_overlong": 2, "without_target": 1, "tokens": 900},
            **{"target_tokens": 400, "target_tokens_lost": 7, "typed_markers": 0},
            "places": {"cut": ["data/train.jsonl:3"]},
        }
    },
    "overlap": {"train_duplicates": 0, "validation_in_train": 0, "places": {}},
}


def write_run(store: Path, name: str = "alpha", settings: Sequence[str] = ()) -> Journal:
    """A run that has started: its config, with `settings` from the command line, a receipt and its first events."""
    source = store / ".source" / "run.yaml"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(CONFIG_TEXT, encoding="utf-8")
    folder = store / name
    folder.mkdir(parents=True)
    resolved = load_config(source, settings, label="run.yaml")
    (folder / CONFIG).write_text(dump_config(resolved), encoding="utf-8")
    (folder / DATA).write_text(json.dumps(RECEIPT), encoding="utf-8")
    journal = Journal(folder)
    journal.add_event("starting", 0, "2 workers on CPU")
    journal.add_event("running", 1, step=0)
    return journal


def log_step(journal: Journal, step: int, time: float = 0.0, **metrics: Any) -> None:
    """A row of metrics; names are written with `_` for `/`: train_loss, val_loss."""
    named = {key.replace("_", "/", 1): value for key, value in metrics.items()}
    row = {"step": step, "progress": step / 40, "time": time, "perf/peak_memory_gb": 1 + step / 100, **named}
    journal.add_metrics(row)


def add_answers(journal: Journal, when: str, step: int, answers: Sequence[str], prompt: str = "say") -> None:
    """Answers to the prompts `say 0`, `say 1`, …, of which `right` is the right one."""
    for index, answer in enumerate(answers):
        journal.add_sample(
            {
                **{"when": when, "step": step, "prompt": f"{prompt} {index}", "reference": "right"},
                **{"answer": answer, "exact_match": answer == "right"},
            }
        )


def write_finished_run(store: Path, name: str = "alpha", settings: Sequence[str] = ()) -> Journal:
    """Forty steps: validation loss 3.0 before, 1.5 at step 20 and 1.8 at the end; one of two answers is right."""
    journal = write_run(store, name, settings)
    add_answers(journal, "before", 0, ["wrong", "wrong"])
    log_step(journal, 0, val_loss=3.0)
    for step in (10, 20, 30, 40):
        val = {20: {"val_loss": 1.5}, 40: {"val_loss": 1.8}}.get(step, {})
        log_step(journal, step, train_loss=3 - step / 20, perf_target_tokens_per_second=1000.0 + step, **val)
    write_checkpoint(journal, 20, 1.5)
    write_checkpoint(journal, 40, 1.8)
    add_answers(journal, "after", 40, ["right", "wrong"])
    journal.add_event("finished", 1, step=40)
    return journal


def write_checkpoint(journal: Journal, step: int, val_loss: float | None = None) -> Checkpoint:
    """A whole checkpoint of 2,048 bytes, which no model can be loaded from."""
    manifest = Manifest(step, 1, "config", "data", val_loss)
    root = journal.folder / CHECKPOINTS
    made = commit_checkpoint(root, manifest, lambda folder: (folder / "weights").write_bytes(bytes(2048)) and None)
    journal.add_event("checkpoint", 1, step=step)
    return made


def write_lines(path: Path, rows: Sequence[dict[str, Any] | str]) -> None:
    """Rows as JSON lines; a text stands there as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def write_events(folder: Path, *events: tuple[float, int, str]) -> None:
    """The run's events anew, as (time, attempt, state)."""
    names = ("time", "attempt", "state")
    rows = [{"seq": seq, **dict(zip(names, event, strict=True)), "why": ""} for seq, event in enumerate(events)]
    write_lines(folder / EVENTS, rows)
