"""Whole runs in the test's own process: the worker function without a cluster."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sftray.train_fn.config import RunConfig
from sftray.train_fn.door import Report, open_alone
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.prepare import prepare_tokens
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.worker import train_worker

Metrics = dict[str, float]


def build_job(config: RunConfig, folder: Path, name: str = "run", **more: Any) -> dict[str, Any]:
    """What a worker is told; the run's directory is made, tokens are prepared. `more` goes into it as it is."""
    prepared = prepare_tokens(config.model, config.data, folder / "tokens", load_tokenizer(config.model))
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    return {
        "config": config.model_dump(mode="json"),
        "run_dir": str(run_dir),
        "tokens": str(prepared.folder),
        "config_hash": "config",
        "deadline": None,
        **more,
    }


def run_here(job: dict[str, Any], report: Report = lambda metrics, folder: None) -> dict[str, Any]:
    """What `train_worker` returns."""
    return train_worker(job, open_alone(report))


def hash_newest(job: dict[str, Any]) -> str:
    """Of the weights in the newest checkpoint."""
    newest = max(Path(job["run_dir"], CHECKPOINTS).glob("step-*"))
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def run_file(path: Path) -> None:
    """Run the job in a JSON file: for a process of its own."""
    run_here(json.loads(path.read_text(encoding="utf-8")))
