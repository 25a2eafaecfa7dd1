"""Checkpoints exist whole or not at all, and are read by plain transformers."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import commit, describe, list_steps, write_two_files
from tiny import (
    Layout,
    build_model,
    build_tokenizer,
    build_trainer,
    draw_examples,
    plan_run,
    run_steps,
    write_checkpoint,
    write_store,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftray.train_fn.checkpoint import (
    MANIFEST,
    Checkpoint,
    commit_checkpoint,
    find_best,
    find_newest,
    list_checkpoints,
    verify_checkpoint,
)
from sftray.train_fn.config import OptimConfig
from sftray.train_fn.errors import CheckpointError, StoreError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.step import Trainer
from sftray.train_fn.trainer_state import collect_optimizer, load_trainer_state, save_trainer_state

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder `checkpoints` of a run."""
    return tmp_path / CHECKPOINTS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    optim = OptimConfig(learning_rate=1e-3)
    store = write_store(tmp_path_factory.mktemp("tokens"), draw_examples(16))
    trainer = build_trainer(build_model(tie_word_embeddings=True), optim, precision="fp16")
    run_steps(trainer, plan_run(store, Layout(), total_steps=3), store, optim)
    return trainer


@pytest.mark.slow
def test_a_checkpoint_is_read_by_plain_transformers(trained: Trainer, root: Path) -> None:
    checkpoint = commit_checkpoint(
        root, describe(3), lambda folder: write_checkpoint(folder, trained, build_tokenizer(), {"step": 3})
    )
    assert checkpoint.folder == root / "step-000003" and verify_checkpoint(checkpoint) == []
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert AutoTokenizer.from_pretrained(checkpoint.folder)("w3 w4")["input_ids"] == [3, 4]
    suffixes = {path.suffix for path in checkpoint.folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}, "nothing that has to be unpickled"


def test_the_trainer_state_comes_back_whole(trained: Trainer, root: Path) -> None:
    checkpoint = commit_checkpoint(
        root, describe(3), lambda folder: write_checkpoint(folder, trained, build_tokenizer(), {"examples": 24})
    )
    fresh = build_trainer(build_model(seed=1, tie_word_embeddings=True), precision="fp16")
    state = load_trainer_state(checkpoint, fresh.model, fresh.optimizer, CPU)
    assert state == {"examples": 24, "scaler": trained.scaler.state_dict()}
    for one, other in zip(fresh.model.parameters(), trained.model.parameters(), strict=True):
        assert fresh.optimizer.state[one].keys() == trained.optimizer.state[other].keys()
        for key, value in trained.optimizer.state[other].items():
            assert torch.equal(fresh.optimizer.state[one][key], value)


def test_a_state_of_no_step_at_all_comes_back(tmp_path: Path) -> None:
    trainer = build_trainer(build_model())
    save_trainer_state(tmp_path, collect_optimizer(trainer.model, trainer.optimizer), {}, {"step": 0})
    checkpoint = Checkpoint(tmp_path, describe(0))
    assert load_trainer_state(checkpoint, trainer.model, trainer.optimizer, CPU) == {"step": 0}
    assert not trainer.optimizer.state


@pytest.mark.parametrize(
    "other",
    [{"hidden_size": 48}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"vocab_size": 98}, {"family": "gpt2"}],
    ids=["wider", "shallower", "deeper", "vocabulary", "family"],
)
def test_the_checkpoint_of_another_model_is_refused(other: dict[str, Any], trained: Trainer, root: Path) -> None:
    tensors = collect_optimizer(trained.model, trained.optimizer)
    checkpoint = commit_checkpoint(root, describe(3), lambda folder: save_trainer_state(folder, tensors, {}, {}))
    fresh = build_trainer(build_model(**{"tie_word_embeddings": True, **other}))
    with pytest.raises(CheckpointError, match="which this model") as caught:
        load_trainer_state(checkpoint, fresh.model, fresh.optimizer, CPU)
    assert caught.value.exit_code == 7 and caught.value.problems[0].where == str(checkpoint.folder)


def test_the_manifest_names_every_file(root: Path) -> None:
    checkpoint = commit(root, 7, val_loss=1.5)
    manifest = json.loads((checkpoint.folder / MANIFEST).read_text())
    assert {name: size for name, (size, _) in manifest.pop("files").items()} == {
        "weights": 2048,
        "trainer/state.json": 2,
    }
    assert len(manifest.pop("sha256")) == 64
    assert manifest == {"step": 7, "attempt": 1, "config_hash": "c", "data_fingerprint": "d", "val_loss": 1.5}
    assert list_checkpoints(root) == [checkpoint]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flipped bit": ("weights", flip),
    "truncated": ("weights", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "grown": ("weights", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    "empty": ("weights", lambda path: path.write_bytes(b"")),
    "missing": ("weights", Path.unlink),
    "missing below": ("trainer/state.json", Path.unlink),
    "flipped bit below": ("trainer/state.json", flip),
    "no manifest": (MANIFEST, Path.unlink),
    "empty manifest": (MANIFEST, lambda path: path.write_text("")),
    "torn manifest": (MANIFEST, lambda path: path.write_text(path.read_text()[:-40])),
    "manifest of nothing": (MANIFEST, lambda path: path.write_text("{}")),
    "manifest of a list": (MANIFEST, lambda path: path.write_text("[]")),
    "manifest with a list of files": (MANIFEST, lambda path: path.write_text('{"step": 2, "files": []}')),
    "manifest that is not text": (MANIFEST, lambda path: path.write_bytes(b"\xff\xfe\0")),
    "manifest of another step": (
        MANIFEST,
        lambda path: path.write_text(path.read_text().replace('"step": 2', '"step": 3')),
    ),
    "manifest with a space more": (MANIFEST, lambda path: path.write_text(path.read_text() + " ")),
    "manifest with a new key": (MANIFEST, lambda path: path.write_text(path.read_text().replace("attempt", "other"))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_found(damage: str, root: Path) -> None:
    whole, broken = commit(root, 1), commit(root, 2)
    assert find_newest(root) == broken
    name, spoil = DAMAGES[damage]
    spoil(broken.folder / name)
    assert find_newest(root) == whole
    if name != MANIFEST:
        assert [line.split()[0] for line in verify_checkpoint(broken)] == [name]
    again = commit(root, 2)
    assert again == find_newest(root) and again.name == "step-000002-attempt-1", "what stands there is left alone"


def test_what_is_wrong_with_a_checkpoint_is_said_in_words(root: Path) -> None:
    checkpoint = commit(root, 1)
    (checkpoint.folder / "weights").write_bytes(b"short")
    (checkpoint.folder / "trainer" / "state.json").unlink()
    assert verify_checkpoint(checkpoint) == ["trainer/state.json is missing", "weights has 5 bytes, not 2048"]


def test_nothing_is_found_where_nothing_is(root: Path) -> None:
    assert find_newest(root) is None and find_best(root) is None


def test_checkpoints_are_in_the_order_of_their_steps(root: Path) -> None:
    for step in (1_000_000, 999_999, 5):
        commit(root, step)
    assert list_steps(root) == [5, 999_999, 1_000_000]


def fill_disk(folder: Path) -> None:
    """A device that is always full, for a user who may write anywhere else."""
    write_two_files(folder)
    (folder / "more").symlink_to("/dev/full")
    (folder / "more").write_bytes(b"x")


def test_a_full_disk_is_a_store_error_and_leaves_the_older_ones(root: Path) -> None:
    older = commit(root, 1)
    with pytest.raises(StoreError, match="the checkpoint of step 2 cannot be written: No space left") as caught:
        commit_checkpoint(root, describe(2), fill_disk)
    assert caught.value.exit_code == 4 and caught.value.__cause__.errno == errno.ENOSPC  # type: ignore[union-attr]
    assert [path.name for path in root.iterdir()] == [older.folder.name]
    assert find_newest(root) == older


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from sftray.train_fn.checkpoint import Manifest, commit_checkpoint
from sftray.train_fn.trainer_state import collect_optimizer, save_trainer_state
from sftray.train_fn.errors import StoreError

model = torch.nn.Linear(100, 100)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 100)).sum().backward()
optimizer.step()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    tensors = collect_optimizer(model, optimizer)
    commit_checkpoint(
        Path(sys.argv[1]), Manifest(2, 1, "c", "d"), lambda folder: save_trainer_state(folder, tensors, {}, {})
    )
except StoreError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_tensors_that_do_not_fit_are_a_store_error(root: Path) -> None:
    """The writer of tensors has errors of its own; here the process may write files of 10 kB at most."""
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(root)], check=False, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1 and "the checkpoint of step 2 cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr and "File too large" in ended.stderr
    assert list(root.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_a_store_error_or_left_alone(root: Path) -> None:
    root.write_text("")
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        commit(root, 2)
    root.unlink()
    root.mkdir()
    (root / "step-000002").write_text("somebody's")
    assert commit(root, 2).name == "step-000002-attempt-1" and (root / "step-000002").read_text() == "somebody's"
    assert not list(root.glob(".draft-*"))


def test_another_folder_than_that_of_a_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the folder checkpoints of a run"):
        list_checkpoints(tmp_path)
