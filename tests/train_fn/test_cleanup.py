"""What is spare or unfinished is deleted, and nothing else."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import commit, describe, list_steps, write_two_files

from sftray.train_fn.checkpoint import commit_checkpoint, find_newest, list_checkpoints
from sftray.train_fn.cleanup import clear_unpublished, prune_checkpoints
from sftray.train_fn.journal import CHECKPOINTS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder `checkpoints` of a run."""
    return tmp_path / CHECKPOINTS


@pytest.mark.parametrize(
    ("losses", "keep", "left"),
    [
        ([None, None, None], 1, [3]),
        ([None, None, None], 2, [2, 3]),
        ([1.0, 2.0, 3.0, 4.0], 1, [1, 4]),
        ([3.0, 1.0, 2.0, 4.0], 2, [2, 3, 4]),
        ([3.0, 2.0, 1.0], 1, [3]),
        ([1.0, 1.0, 1.0], 1, [1, 3]),
        ([math.nan, 2.0, 3.0, 4.0], 1, [2, 4]),
        ([2.0, math.nan, math.inf], 1, [1, 3]),
        ([1.0], 5, [1]),
    ],
)
def test_the_newest_and_the_best_are_kept(losses: list[float | None], keep: int, left: list[int], root: Path) -> None:
    for step, loss in enumerate(losses, start=1):
        commit(root, step, loss)
    gone = prune_checkpoints(root, 1, keep)
    assert list_steps(root) == left
    assert len(gone) == len(losses) - len(left) and not any((root / name).exists() for name in gone)


def test_nothing_is_deleted_where_nothing_is(root: Path) -> None:
    assert prune_checkpoints(root, attempt=1, keep=1) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from sftray.train_fn.checkpoint import Manifest, commit_checkpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    (folder / "weights").write_bytes(b"half")
    if sys.argv[2] == "writing":
        die()

if sys.argv[2] == "renaming":
    Path.rename = die
commit_checkpoint(Path(sys.argv[1]), Manifest(2, 1, "c", "d"), write)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_killed_save_is_no_checkpoint_and_the_next_attempt_clears_it_away(moment: str, root: Path) -> None:
    older = commit(root, 1)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(root.glob(".draft-*"))) == 1
    assert list_checkpoints(root) == [older] and find_newest(root) == older
    clear_unpublished(root, attempt=1)
    assert len(list(root.glob(".draft-*"))) == 1, "it may be its own"
    clear_unpublished(root, attempt=2)
    newer = commit_checkpoint(root, describe(2, attempt=2), write_two_files)
    assert sorted(root.iterdir()) == [older.folder, newer.folder]
