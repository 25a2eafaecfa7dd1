"""The protocol of checkpoints, attempts and clean-up, tried in every order that hypothesis can think of, and shown to
need each of its parts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_machine import MACHINES, run_machine
from checkpoint_scenes import clear_at_every_moment, hand_over_at_every_moment

from sftray.train_fn import attempts, checkpoint, cleanup, resume
from sftray.train_fn.checkpoint import Checkpoint, Manifest
from sftray.train_fn.store import Store, name_claim
from sftray.train_fn.store_objects import ObjectStore
from sftray.train_fn.store_posix import FolderStore

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", MACHINES)
def test_whatever_happens_what_was_saved_stays(kind: str) -> None:
    run_machine(kind, examples=30, steps=20)


@pytest.mark.chaos
@pytest.mark.parametrize("clears", [True, False], ids=["clearing", "not clearing"])
@pytest.mark.parametrize("kind", MACHINES)
def test_whatever_happens_what_was_saved_stays_in_many_orders(
    kind: str, clears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not clears:
        monkeypatch.setattr(*NO_CLEARING)
    run_machine(kind, examples=1000, steps=40, derandomize=False)


@pytest.mark.parametrize(
    "clears", [True, pytest.param(False, marks=pytest.mark.chaos)], ids=["clearing", "not clearing"]
)
@pytest.mark.parametrize("kind", MACHINES)
def test_a_run_can_be_taken_over_at_every_moment_of_a_save(
    kind: str, clears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not clears:
        monkeypatch.setattr(*NO_CLEARING)
    hand_over_at_every_moment(kind)


@pytest.mark.parametrize("kind", MACHINES)
def test_two_attempts_may_clear_up_at_once(kind: str) -> None:
    clear_at_every_moment(kind)


def never_fence(step: int, attempt: int, starts: dict[int, int]) -> bool:
    return False


def begin_too_early(store: Store, run: str) -> resume.Beginning:
    """Looks for its checkpoint before it takes its number."""
    newest, broken = resume.take_newest(store)
    attempt = attempts.open_attempt(store, run)
    attempts.start_attempt(store, attempt, newest.step if newest else 0)
    return resume.Beginning(attempt, newest, tuple(broken))


def trust_all(store: Store, checkpoints: list[Checkpoint], trusted: set[str]) -> Checkpoint | None:
    return next(iter(checkpoints), None)


def compare_sizes(manifest: Manifest, sizes: Any, digest: Any) -> list[str]:
    return [name for name, (size, _) in manifest.files.items() if sizes.get(name) != size]


def publish_over(self: FolderStore, staged: Path, folder: str, last: str, claim: bytes, check: Any) -> bool:
    check()
    shutil.rmtree(self.root / folder, ignore_errors=True)
    staged.rename(self.root / folder)
    return True


def publish_unclaimed(self: FolderStore, staged: Path, folder: str, last: str, claim: bytes, check: Any) -> bool:
    check()
    if (self.root / folder).exists():
        return False
    staged.rename(self.root / folder)
    self.write(name_claim(folder), claim)
    return True


def remove_with_claim(self: ObjectStore, folder: str) -> None:
    for path in self.list_files(folder):
        self.bucket.delete(f"{folder}/{path}")
    self.bucket.delete(name_claim(folder))


def clear_nothing(place: Store, attempt: int) -> None:
    pass


BOTH = ("folder", "objects")
NO_CLEARING = (resume, "clear_unpublished", clear_nothing)
# Mistakes: on which kinds of store they must show, and what is replaced by what. Some show only where a new attempt
# does not clear away what others are writing, as it cannot where a mount shows it late.
MISTAKES: dict[str, tuple[tuple[str, ...], list[tuple[Any, str, Any]]]] = {
    "readers do not fence": (BOTH, [(checkpoint, "is_fenced", never_fence), NO_CLEARING]),
    "an older attempt prunes": (BOTH, [(cleanup, "find_newest_attempt", lambda store: 0), NO_CLEARING]),
    "the best is not kept": (BOTH, [(cleanup, "rank_by_loss", lambda found: [])]),
    "the newest is kept, whole or not": (BOTH, [(cleanup, "_find_whole", trust_all)]),
    "hashes are not compared": (BOTH, [(checkpoint, "compare_files", compare_sizes)]),
    "what stands there is replaced": (("folder",), [(FolderStore, "publish", publish_over), NO_CLEARING]),
    "a name is given again": (("folder",), [(FolderStore, "publish", publish_unclaimed)]),
    "a claim goes with its folder": (("objects",), [(ObjectStore, "remove", remove_with_claim)]),
    "the number is taken too late": (BOTH, [(resume, "begin_attempt", begin_too_early)]),
}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("mistake", "kind"), [(name, kind) for name, (kinds, _) in MISTAKES.items() for kind in kinds]
)
def test_a_mistake_in_the_protocol_is_found(mistake: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, wrong in MISTAKES[mistake][1]:
        monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError, match=r"has gone back|is gone|is not what was saved|is fenced"):
        hand_over_at_every_moment(kind)
        clear_at_every_moment(kind)
        run_machine(kind, examples=1500, steps=30)
