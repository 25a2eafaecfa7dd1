"""Tiny but whole runs through the driver: a few sums, a model of thousands of parameters."""

import io
import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from sftray.platform.driver import train_run
from sftray.platform.summary import RunSummary
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.journal import EVENTS, METRICS, read_lines

_SCRATCH = {
    "architecture": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_sums(path: Path, count: int, seed: int = 0) -> Path:
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            a, b = draw.randrange(10), draw.randrange(10)
            steps = " ".join(["so"] * draw.randrange(1, 12))  # answers of unequal length
            messages = [
                {"role": "user", "content": f"{a} + {b} = ?"},
                {"role": "assistant", "content": f"{steps} {a + b}"},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def build_config(folder: Path, **changes: dict[str, Any]) -> RunConfig:
    """A run of 12 steps of 8 examples on two workers; `changes` go over its sections."""
    train = folder / "train.jsonl"
    if not train.exists():
        write_sums(train, 48)
        write_sums(folder / "validation.jsonl", 8, seed=1)
    sections: dict[str, dict[str, Any]] = {
        "model": {"scratch": _SCRATCH, "tokenizer": "quickstart"},
        "data": {"train": str(train), "validation": str(folder / "validation.jsonl"), "max_seq_len": 128},
        "optim": {"learning_rate": 1e-2},
        "train": {
            "epochs": 2,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "precision": "fp32",
            "log_every": 1,
            "eval_every": 4,
            "save_every": 4,
        },
        "scaling": {"num_workers": 2, "use_gpu": False},
        "store": {"path": str(folder / "runs")},
        "tracking": {"wandb": "disabled"},
    }
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section}
    return RunConfig.model_validate(sections)


def train(config: RunConfig, label: str = "tiny") -> RunSummary:
    return train_run(Resolved(config, {}), label, Console(file=io.StringIO()))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_lines(run_dir / METRICS))


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_lines(run_dir / EVENTS))


def trace(run_dir: Path) -> list[tuple[int, float]]:
    """(step, training loss) of every logged step."""
    return [(row["step"], row["train/loss"]) for row in read_metrics(run_dir) if "train/loss" in row]
