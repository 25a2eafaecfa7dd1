"""Checkpoints that exist whole or not at all.

A checkpoint is written under a temporary name, flushed, hashed; its manifest is written last and then the
folder is renamed. It exists if and only if its manifest parses and every file in it has the size and the
hash that stand there. What is not so is never loaded. Layout: Hugging Face's in the folder itself, so that
`from_pretrained` takes it as it is; the trainer's state in `trainer/` as safetensors and JSON.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from sftray.train_fn.errors import Problem, StoreError

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Manifest:
    """`files` maps a path in the checkpoint to [bytes, sha256]."""

    step: int
    attempt: int
    config_hash: str
    data_fingerprint: str
    val_loss: float | None = None
    files: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step


def name_checkpoint(step: int) -> str:
    return f"step-{step:06d}"


def commit_checkpoint(root: Path, manifest: Manifest, write: Callable[[Path], None]) -> Checkpoint:
    """Write a checkpoint of `manifest.step` under `root`, whole or not at all.

    Args:
        write: fills the folder it is given.

    Raises:
        StoreError: the store refused; what was written is removed and older checkpoints are as they were.
    """
    final = root / name_checkpoint(manifest.step)
    draft = root / f".draft-{final.name}-attempt-{manifest.attempt}"
    try:
        for left in root.glob(".draft-*"):  # of attempts that were killed while saving
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        files = {str(p.relative_to(draft)): (p.stat().st_size, _hash_and_flush(p)) for p in _list_files(draft)}
        complete = Manifest(**{**asdict(manifest), "files": files})
        write_flushed(draft / MANIFEST, json.dumps(asdict(complete), indent=1))
        for folder in {draft, *(path.parent for path in _list_files(draft))}:
            _flush_folder(folder)
        shutil.rmtree(final, ignore_errors=True)  # a broken one, or the same step of an attempt that went back
        draft.rename(final)
        _flush_folder(root)
    except (OSError, SafetensorError) as error:  # the latter: safetensors' word for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(
            Problem(
                f"the checkpoint of step {manifest.step} cannot be written: "
                f"{getattr(error, 'strerror', None) or error}",
                where=str(final),
                fix="free space or mend the permissions of store.path; the run resumes at its newest checkpoint",
            )
        ) from error
    return Checkpoint(final, complete)


def _list_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _hash_and_flush(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Checkpoints whose manifest can be read, oldest first; their files are not looked at."""
    found = []
    for path in sorted(root.glob("step-*")):
        try:
            fields = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            fields["files"] = {name: (int(size), str(digest)) for name, (size, digest) in fields["files"].items()}
            found.append(Checkpoint(path, Manifest(**fields)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # no manifest that parses: by definition no checkpoint
    return sorted(found, key=lambda c: c.step)


def verify_checkpoint(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with its files, one line each; empty if it is whole."""
    wrong = []
    for name, (size, digest) in checkpoint.manifest.files.items():
        path = checkpoint.folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name} has {path.stat().st_size} bytes, not {size}")
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    wrong.append(f"{name} does not have the hash of its manifest")
    return wrong


def find_newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole."""
    return next((c for c in reversed(list_checkpoints(root)) if not verify_checkpoint(c)), None)


def find_best(root: Path) -> Checkpoint | None:
    """The checkpoint with the lowest finite validation loss."""
    scored = [(c.manifest.val_loss, c.step, c) for c in list_checkpoints(root) if c.manifest.val_loss is not None]
    finite = [entry for entry in scored if math.isfinite(entry[0])]  # nothing is below NaN, so it would win
    return min(finite, key=lambda entry: entry[:2])[2] if finite else None


def prune_checkpoints(root: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest and the best; returns what went."""
    checkpoints = list_checkpoints(root)
    best = find_best(root)
    spare = [c.folder for c in checkpoints[:-keep] if best is None or c.folder != best.folder]
    for folder in spare:
        (folder / MANIFEST).unlink()  # first: from here on it is no checkpoint, whatever happens meanwhile
        shutil.rmtree(folder)
    return spare
