"""Checkpoints that exist whole or not at all.

A checkpoint is written into a local folder, hashed and flushed; then it is published, its manifest last, under a
name that no other has or had: nothing is ever replaced, so two writers cannot destroy each other's. It exists if
and only if its manifest is what was written and every file has the size and the hash that stand there. What is not
so is never loaded. Layout: Hugging Face's in the folder itself, so that `from_pretrained` takes it as it is; the
trainer's state in `trainer/` as safetensors and JSON.

All functions take a store, or the folder `checkpoints` of a run.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import cast

from safetensors import SafetensorError

from sftray.train_fn.attempts import check_attempt, describe_process, dump_record, is_fenced, read_starts
from sftray.train_fn.errors import CheckpointError, Problem, StoreError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.places import find_bucket
from sftray.train_fn.store import Store, connect_store
from sftray.train_fn.store_posix import FolderStore

MANIFEST = "MANIFEST.json"
BROKEN = "BROKEN.json"  # beside what is left of a checkpoint that was found broken: what is wrong
DRAFT = ".draft-"
_NO_HASH = "0" * 64
_MOST_NAMES = 100


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
    """`folder`: where it is on this machine, or would be once it is fetched from a bucket."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def name(self) -> str:
        return self.folder.name


def open_place(place: Store | Path) -> Store:
    """The run's store. A path is that of its folder `checkpoints`."""
    if not isinstance(place, Path) and find_bucket(place) is None:
        return place
    folder = cast(Path, place)
    if folder.name != CHECKPOINTS:
        raise ValueError(f"{place} is not the folder {CHECKPOINTS} of a run")
    return connect_store(folder.parent)


def name_checkpoint(step: int) -> str:
    return f"step-{step:06d}"


def _list_names(manifest: Manifest) -> Iterator[str]:
    """The name of a checkpoint, and others for where it is taken: by a broken one, or by another attempt's."""
    name = name_checkpoint(manifest.step)
    yield name
    yield f"{name}-attempt-{manifest.attempt}"
    yield from (f"{name}-attempt-{manifest.attempt}-{number}" for number in count(2))


def commit_checkpoint(place: Store | Path, manifest: Manifest, write: Callable[[Path], None]) -> Checkpoint:
    """Write a checkpoint of `manifest.step`, whole or not at all. May be called from any thread.

    Args:
        write: fills the local folder it is given.

    Raises:
        StoreError: the store refused; what was written is removed and older checkpoints are as they were.
        FencedError: a newer attempt owns the run.
    """
    store = open_place(place)
    name = name_checkpoint(manifest.step)
    staged: Path | None = None
    try:
        staged = store.stage(f"{CHECKPOINTS}/{DRAFT}{name}-attempt-{manifest.attempt}")
        write(staged)
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): (path.stat().st_size, _hash_and_flush(path)) for path in paths}
        complete = Manifest(**{**asdict(manifest), "files": files})
        write_flushed(staged / MANIFEST, dump_manifest(complete).decode())
        return Checkpoint(store.locate(f"{CHECKPOINTS}/{_publish(store, staged, complete)}"), complete)
    except (OSError, SafetensorError, StoreError) as error:  # the second: its word for a full disk
        check_attempt(store, manifest.attempt)  # who takes over clears away what others are writing
        if isinstance(error, StoreError):
            raise
        raise StoreError(_describe_refusal(store, manifest.step, error)) from error
    finally:
        if staged is not None:
            store.discard(staged)


def _publish(store: Store, staged: Path, manifest: Manifest) -> str:
    """Put a staged checkpoint under the first name that is free; returns the name."""
    claim = dump_record({"step": manifest.step, "attempt": manifest.attempt, **describe_process()})
    for name in islice(_list_names(manifest), _MOST_NAMES):
        folder = f"{CHECKPOINTS}/{name}"
        if store.publish(staged, folder, MANIFEST, claim, lambda: check_attempt(store, manifest.attempt)):
            return name
    raise FileExistsError(f"{_MOST_NAMES} names of it are taken")


def _describe_refusal(store: Store, step: int, error: Exception) -> Problem:
    return Problem(
        f"the checkpoint of step {step} cannot be written: {getattr(error, 'strerror', None) or error}",
        where=f"{store.place}/{CHECKPOINTS}/{name_checkpoint(step)}",
        fix="free space or mend the permissions of store.path; the run resumes at its newest checkpoint",
    )


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


def dump_manifest(manifest: Manifest) -> bytes:
    """JSON that ends in its own hash, so that a flipped digit of the step is found out too."""
    blank = json.dumps({**asdict(manifest), "sha256": _NO_HASH}, indent=1)
    return _fill_hash(blank, hashlib.sha256(blank.encode()).hexdigest()).encode()


def _fill_hash(text: str, digest: str) -> str:
    head, _, tail = text.rpartition(_NO_HASH)
    return head + digest + tail


def parse_manifest(data: bytes) -> Manifest | None:
    """None where it is not, to the byte, what `dump_manifest` wrote."""
    try:
        text = data.decode()
        fields = json.loads(text)
        digest = fields.pop("sha256")
        head, _, tail = text.rpartition(digest)
        if hashlib.sha256((head + _NO_HASH + tail).encode()).hexdigest() != digest:
            return None
        fields["files"] = {name: (int(size), str(known)) for name, (size, known) in fields["files"].items()}
        return Manifest(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def list_checkpoints(place: Store | Path) -> list[Checkpoint]:
    """Checkpoints whose manifest can be read, oldest first; their files are not looked at.

    Those that an older attempt saved beyond the step from which a newer one went on are left out.
    """
    store = open_place(place)
    found = [entry for _, entry in read_manifests(store) if entry is not None]
    return drop_fenced(store, found)


def drop_fenced(store: Store, found: list[Checkpoint]) -> list[Checkpoint]:
    starts = read_starts(store, min((c.manifest.attempt for c in found), default=0))
    return [c for c in found if not is_fenced(c.step, c.manifest.attempt, starts)]


def read_manifests(store: Store) -> list[tuple[str, Checkpoint | None]]:
    """Folders that have a manifest, by (step, attempt), with their checkpoint; None where the manifest is broken."""
    found: list[tuple[str, Checkpoint | None]] = []
    for name in store.list_folders(CHECKPOINTS):
        folder = f"{CHECKPOINTS}/{name}"
        data = store.read(f"{folder}/{MANIFEST}") if not name.startswith(DRAFT) else None
        if data is not None:
            manifest = parse_manifest(data)
            found.append((name, Checkpoint(store.locate(folder), manifest) if manifest else None))
    return sorted(found, key=lambda entry: _rank(entry[1]) if entry[1] else (-1, -1, entry[0]))


def _rank(checkpoint: Checkpoint) -> tuple[int, int, str]:
    return checkpoint.step, checkpoint.manifest.attempt, checkpoint.name


def verify_checkpoint(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with its files on this machine, one line each; empty if it is whole."""
    here = FolderStore(checkpoint.folder)
    return compare_files(checkpoint.manifest, here.list_files(), here.digest)


def verify_in_store(store: Store, checkpoint: Checkpoint, hashes: bool = True) -> list[str]:
    """What is wrong with its files in the store; without `hashes` only names and sizes are compared."""
    folder = f"{CHECKPOINTS}/{checkpoint.name}"
    digest = (lambda name: store.digest(f"{folder}/{name}")) if hashes else None
    return compare_files(checkpoint.manifest, store.list_files(folder), digest)


def compare_files(
    manifest: Manifest, sizes: Mapping[str, int], digest: Callable[[str], str | None] | None
) -> list[str]:
    """What differs from a manifest, one line each."""
    wrong = []
    for name, (size, known) in manifest.files.items():
        if name not in sizes:
            wrong.append(f"{name} is missing")
        elif sizes[name] != size:
            wrong.append(f"{name} has {sizes[name]} bytes, not {size}")
        elif digest is not None and digest(name) != known:
            wrong.append(f"{name} does not have the hash of its manifest")
    return wrong


def fetch_checkpoint(place: Store | Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its files on this machine, as its manifest says.

    Raises:
        CheckpointError: they are not.
    """
    store = open_place(place)
    here = Checkpoint(store.fetch(f"{CHECKPOINTS}/{checkpoint.name}", checkpoint.manifest.files), checkpoint.manifest)
    if wrong := verify_checkpoint(here):
        where = f"{store.place}/{CHECKPOINTS}/{checkpoint.name}"
        raise CheckpointError(Problem(f"the checkpoint is broken: {wrong[0]}", where, fix="sftray resume the run"))
    return here


def find_newest(place: Store | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole."""
    store = open_place(place)
    return next((c for c in reversed(list_checkpoints(store)) if not verify_in_store(store, c)), None)


def find_best(place: Store | Path) -> Checkpoint | None:
    """The checkpoint with the lowest finite validation loss; its files are not looked at."""
    return next(iter(rank_by_loss(list_checkpoints(place))), None)


def rank_by_loss(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Those with a finite validation loss, the lowest first; nothing is below NaN, so it would win."""
    scored = [(c.manifest.val_loss, c.step, c) for c in checkpoints if c.manifest.val_loss is not None]
    finite = [entry for entry in scored if math.isfinite(entry[0])]
    return [entry[2] for entry in sorted(finite, key=lambda entry: entry[:2])]
