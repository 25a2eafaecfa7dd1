"""What happens before the first step: the fixed prompts are answered and the model is validated, untrained.

Runs that differ only in how they train begin with the same model and data, and so with the same answers and the
same loss. The first of them leaves both in a file, from which the others take them.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from sftray.train_fn.distributed import share_first
from sftray.train_fn.places import write_whole
from sftray.train_fn.session import Session, compute_samples, evaluate_run, record, record_samples
from sftray.train_fn.token_store import read_receipt

Start = dict[str, Any]  # `samples`: rows of samples.jsonl; `metrics`: those of the validation


def run_before(session: Session, path: Path | None = None) -> None:
    """Record answers and validation of step 0: computed, or from the file at `path` where an equal run left them."""
    start = share_first(_load(session, path)) if path else None
    if start is None:
        start = {"samples": compute_samples(session, "before", 0), "metrics": evaluate_run(session)}
        if path and session.is_first:
            _save(path, compute_key(session), start)
    record_samples(session, start["samples"])
    record(session, {"step": 0, "epoch": 0, "progress": 0.0, "examples": 0, **start["metrics"]})


def compute_key(session: Session) -> str:
    """A hash of all that the start depends on: model, data, seed, and how a forward is computed."""
    config, place = session.config, session.place
    parts = {
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "fingerprints": read_receipt(session.train.folder)["fingerprints"],
        "train": config.train.model_dump(include={"seed", "precision", "packing", "micro_batch_size"}),
        "world_size": place.world_size,
        "device": place.device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(session: Session, path: Path) -> Start | None:
    """The start of an equal run. None on other ranks than the first, which is asked."""
    if not session.is_first:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["start"] if found["key"] == compute_key(session) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no file, or none of these: then it is computed


def _save(path: Path, key: str, start: Start) -> None:
    """Whole or not at all, for runs beside this one may be looking for it."""
    with contextlib.suppress(OSError):  # it would only have saved time
        write_whole(path, json.dumps({"key": key, "start": start}, ensure_ascii=False))
