"""Where an attempt begins: its number, and the newest checkpoint that is whole."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from sftray.train_fn.attempts import dump_record, open_attempt, start_attempt
from sftray.train_fn.checkpoint import (
    BROKEN,
    MANIFEST,
    Checkpoint,
    commit_checkpoint,
    drop_fenced,
    open_place,
    read_manifests,
    verify_checkpoint,
    verify_in_store,
)
from sftray.train_fn.cleanup import clear_unpublished
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.places import find_bucket
from sftray.train_fn.store import Store


@dataclass(frozen=True)
class Beginning:
    """`broken`: names of checkpoints that were set aside on the way to the newest whole one, and what is wrong."""

    attempt: int
    newest: Checkpoint | None
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def start_step(self) -> int:
        return self.newest.step if self.newest else 0


def begin_attempt(place: Store | Path, run: str, owner: int | None = None, least: int = 1) -> Beginning:
    """Take the next attempt's number and the checkpoint to go on from, whose files are then on this machine.

    Raises:
        FencedError: a newer attempt has begun meanwhile.
    """
    store = open_place(place)
    attempt = open_attempt(store, run, owner, least)  # first: see attempts.py
    clear_unpublished(store, attempt)
    newest, broken = take_newest(store)
    start_attempt(store, attempt, newest.step if newest else 0)
    return Beginning(attempt, newest, tuple(broken))


def take_newest(store: Store) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """Fetch the newest whole checkpoint, and set aside what is broken before it: names, and what is wrong."""
    entries = read_manifests(store)
    unreadable = [(name, ["its manifest is not what was written"]) for name, entry in entries if entry is None]
    broken = [(name, "; ".join(wrong)) for name, wrong in unreadable if set_aside(store, name, wrong)]
    for checkpoint in reversed(drop_fenced(store, [entry for _, entry in entries if entry is not None])):
        wrong = verify_in_store(store, checkpoint, hashes=False)
        if not wrong:
            store.fetch(f"{CHECKPOINTS}/{checkpoint.name}", checkpoint.manifest.files)
            wrong = verify_checkpoint(checkpoint)
        if not wrong:
            return checkpoint, broken
        if set_aside(store, checkpoint.name, wrong):
            broken.append((checkpoint.name, "; ".join(wrong)))
    return None, broken


def set_aside(store: Store, name: str, wrong: list[str]) -> bool:
    """Say beside a broken checkpoint what is wrong, and take its manifest away. False where it is gone by now."""
    folder = f"{CHECKPOINTS}/{name}"
    if store.read(f"{folder}/{MANIFEST}") is None:
        return False
    store.write(f"{folder}/{BROKEN}", dump_record({"wrong": wrong}))
    store.delete(f"{folder}/{MANIFEST}")
    return True


def adopt_checkpoint(source: Checkpoint, donor: Path, root: Path, run: str, least: int) -> Checkpoint | None:
    """Go on from a checkpoint of another run, as an attempt of its own; those that stood here are deleted.

    Args:
        donor: the folder `checkpoints` of the run that has it.
        root: that of the run that adopts.

    Returns:
        None where the source is not whole; then nothing has changed.
    """
    near = None if find_bucket(root) else root.parent  # on the same disk, where that is the store's
    with tempfile.TemporaryDirectory(prefix=".adopting-", dir=near, ignore_cleanup_errors=True) as scratch:
        copy = Checkpoint(Path(scratch, source.name), source.manifest)
        with contextlib.suppress(OSError, shutil.Error):  # it may vanish meanwhile: then it is not whole
            here = open_place(donor).fetch(f"{CHECKPOINTS}/{source.name}", source.manifest.files)
            shutil.copytree(here, copy.folder)
        if verify_checkpoint(copy):
            return None
        store = open_place(root)
        attempt = open_attempt(store, run, least=least)
        start_attempt(store, attempt, source.step)
        (copy.folder / MANIFEST).unlink(missing_ok=True)

        def move(folder: Path) -> None:
            for path in copy.folder.iterdir():
                shutil.move(path, folder / path.name)

        adopted = commit_checkpoint(store, replace(source.manifest, attempt=attempt), move)
    for name in (name for name, _ in read_manifests(store) if name != adopted.name):
        store.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        store.remove(f"{CHECKPOINTS}/{name}")
    return adopted
