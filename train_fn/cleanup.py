"""Deleting checkpoints that are not needed any more, and what killed attempts have left.

Only the newest attempt deletes. It decides on a list that it has read before it looks whether it still is the
newest: whoever takes over later finds at least what that list keeps.
"""

from pathlib import Path

from sftray.train_fn.attempts import find_newest_attempt, read_record
from sftray.train_fn.checkpoint import (
    BROKEN,
    DRAFT,
    MANIFEST,
    Checkpoint,
    drop_fenced,
    open_place,
    rank_by_loss,
    read_manifests,
    verify_in_store,
)
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.store import Store, name_claim


def prune_checkpoints(place: Store | Path, attempt: int, keep: int, trusted: set[str] | None = None) -> list[str]:
    """Delete all but the `keep` newest, the newest that is whole, and the best that is whole.

    Nothing happens where this attempt is not the newest, or where no checkpoint is whole.

    Args:
        trusted: names of checkpoints whose hashes this process has compared or written itself; of these only names
            and sizes are compared. Those that are compared now are added.

    Returns:
        Names of what went.
    """
    store, trusted = open_place(place), set() if trusted is None else trusted
    everything = [entry for _, entry in read_manifests(store) if entry is not None]
    found = drop_fenced(store, everything)
    newest = _find_whole(store, found[::-1], trusted)
    if newest is None:
        return []
    best = _find_whole(store, rank_by_loss(found), trusted)
    kept = {checkpoint.name for checkpoint in [*found[-keep:], newest, *([best] if best else [])]}
    gone = []
    for name in (checkpoint.name for checkpoint in everything if checkpoint.name not in kept):
        if find_newest_attempt(store) > attempt:
            break
        store.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")  # from here on it is none, whatever happens meanwhile
        store.remove(f"{CHECKPOINTS}/{name}")
        gone.append(name)
    clear_unpublished(store, attempt)
    return gone


def _find_whole(store: Store, checkpoints: list[Checkpoint], trusted: set[str]) -> Checkpoint | None:
    """The first that is whole."""
    for checkpoint in checkpoints:
        if not verify_in_store(store, checkpoint, hashes=checkpoint.name not in trusted):
            trusted.add(checkpoint.name)
            return checkpoint
    return None


def clear_unpublished(place: Store | Path, attempt: int) -> None:
    """Remove what older attempts have begun to write or to delete, and not ended, if this is the newest attempt."""
    store = open_place(place)
    for name in store.list_folders(CHECKPOINTS):
        folder = f"{CHECKPOINTS}/{name}"
        writer = _find_writer(store, name)
        if writer is None or writer >= attempt or find_newest_attempt(store) > attempt:
            continue
        if name.startswith(DRAFT) or not {MANIFEST, BROKEN} & store.list_files(folder).keys():
            store.remove(folder)


def _find_writer(store: Store, name: str) -> int | None:
    """The attempt that fills or has filled a folder; None for a folder that no attempt has made."""
    if name.startswith(DRAFT):
        number = name.rpartition("-attempt-")[2]
        return int(number) if number.isascii() and number.isdigit() else None
    claim = read_record(store, name_claim(name))
    return int(claim["attempt"]) if claim else None
