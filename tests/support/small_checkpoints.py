"""Checkpoints of two small files."""

from pathlib import Path

from sftray.train_fn.checkpoint import Checkpoint, Manifest, commit_checkpoint, list_checkpoints


def describe(step: int, val_loss: float | None = None, attempt: int = 1) -> Manifest:
    return Manifest(step=step, attempt=attempt, config_hash="c", data_fingerprint="d", val_loss=val_loss)


def write_two_files(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(256)) * 8)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state.json").write_text("{}")


def commit(root: Path, step: int, val_loss: float | None = None) -> Checkpoint:
    return commit_checkpoint(root, describe(step, val_loss), write_two_files)


def list_steps(root: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(root)]
