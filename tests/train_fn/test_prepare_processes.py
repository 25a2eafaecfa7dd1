"""Preparing in several processes, beside others, and into a store that refuses."""

import ast
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from outcomes import Outcome, record
from toy_data import join_others, prepare, prepare_at_once, save_byte_tokenizer, write_chats

from sftray.train_fn import prepare as module
from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.errors import ClusterError, StoreError
from sftray.train_fn.files import scan_files
from sftray.train_fn.prepare import map_on_cores, prepare_tokens
from sftray.train_fn.prepare_chunk import ChunkTask
from sftray.train_fn.receipt import ChunkReceipt
from sftray.train_fn.token_store import RECEIPT, TokenStore
from sftray.train_fn.tokenizer import load_tokenizer

PACKAGE = "sftray.train_fn."
# Settings are in the key by their values, and words of errors decide no token.
NOT_CODE = {
    *("config", "config_replay", "errors", "ledger", "minimind_layout", "order"),
    *("bucket_path", "local_copies", "patience", "places", "store_http", "store_s3", "store_objects", "store"),
    *("store_posix", "bucket_url"),
}  # they read settings, say what is wrong, count what is trained on, and carry files


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return save_byte_tokenizer(tmp_path_factory.mktemp("toy"))


def find_imported(name: str, found: set[str]) -> set[str]:
    """`name` and all of train_fn that it imports, at once or in a function, with what these import."""
    if name not in found:
        found.add(name)
        tree = ast.parse((Path(module.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE):
                find_imported(str(node.module).removeprefix(PACKAGE), found)
    return found


def test_the_key_knows_all_the_code_that_prepares() -> None:
    assert set(module._CODE) == find_imported("prepare", set()) - NOT_CODE


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_as_one(
    toy: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[f"question {n}", f"answer {n}" * (n % 7)] for n in range(300)]
    data = DataConfig(train=str(write_chats(tmp_path / "a.jsonl", rows)), validation=0.1, max_seq_len=90)
    loaded = load_tokenizer(toy)
    monkeypatch.setattr(module, "scan_files", partial(scan_files, chunk_bytes=4096))
    one = prepare_tokens(toy, data, tmp_path / "one", loaded)
    monkeypatch.setattr(module, "_POOL_ABOVE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    seen: set[int] = set()

    def map_and_look(tasks: Sequence[ChunkTask]) -> list[ChunkReceipt]:
        done = list(map_on_cores(tasks))
        seen.update(receipt.process_id for receipt in done)
        return done

    many = prepare_tokens(toy, data, tmp_path / "many", loaded, map_and_look)
    assert seen and os.getpid() not in seen
    files = [{path.name: path.read_bytes() for path in p.folder.glob("*.arrow")} for p in (one, many)]
    assert len(files[0]) > 8 and files[0] == files[1]
    assert {k: v for k, v in one.receipt.items() if k != "preparation"} == {
        k: v for k, v in many.receipt.items() if k != "preparation"
    }


@pytest.mark.slow
def test_two_that_prepare_the_same_at_once_share_one_store(toy: ModelConfig, tmp_path: Path) -> None:
    data = DataConfig(train=str(write_chats(tmp_path / "a.jsonl", [["a", "b"], ["c", "d"]])))
    context, root = get_context("spawn"), tmp_path / "tokens"
    barrier = context.Barrier(2)  # when both have prepared, and are about to publish
    with ProcessPoolExecutor(2, context, join_others, (barrier,)) as pool:
        both = [pool.submit(prepare_at_once, toy, data, root) for _ in range(2)]
        results = [one.result(180) for one in both]
    assert results[0] == results[1] == (str(next(root.iterdir())), False)
    assert len(list(root.iterdir())) == 1  # no draft is left
    assert prepare_tokens(toy, data, root, load_tokenizer(toy)).reused
    assert len(TokenStore(Path(results[0][0]), "train")) == 2


def test_a_draft_that_is_published_meanwhile_is_no_trouble(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"]])
    root = tmp_path / "tokens"
    root.mkdir()
    (root / ".draft-another").symlink_to(tmp_path / "gone")  # listed, and gone when it is looked at
    assert not prepare(toy, root, train).reused


@contextmanager
def limit_files(num_bytes: int) -> Iterator[None]:
    """A file that grows beyond this is refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_store_is_a_store_error_and_nothing_is_left(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a" * 900, "b"]])
    with pytest.raises(StoreError, match="File too large") as caught, limit_files(2000):
        prepare(toy, tmp_path / "tokens", train)
    assert caught.value.exit_code == 4
    assert list((tmp_path / "tokens").iterdir()) == []
    assert not prepare(toy, tmp_path / "tokens", train).reused


def test_what_is_left_of_a_store_is_named(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"]])
    folder = prepare(toy, tmp_path / "tokens", train).folder
    (folder / RECEIPT).unlink()
    with pytest.raises(StoreError) as caught:
        prepare(toy, tmp_path / "tokens", train)
    assert caught.value.problems[0].where == str(folder)
    assert list((tmp_path / "tokens").iterdir()) == [folder]


def test_a_file_where_the_store_should_be_is_a_store_error(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"]])
    (tmp_path / "tokens").touch()
    with pytest.raises(StoreError, match="File exists") as caught:
        prepare(toy, tmp_path / "tokens", train)
    assert caught.value.exit_code == 4 and caught.value.problems[0].where == str(tmp_path / "tokens")


@pytest.mark.slow
def test_a_killed_process_is_told_and_nothing_is_left(
    toy: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chats(tmp_path / "chats.jsonl", [["hi", "ho"]])
    monkeypatch.setattr(module, "_POOL_ABOVE_BYTES", 0)
    monkeypatch.setattr(module, "prepare_chunk", kill_myself)
    files = [str(tmp_path / "chats.jsonl")] * 2
    for number, name in enumerate(files):
        Path(name).with_name(f"{number}.jsonl").write_bytes(Path(name).read_bytes())
    data = DataConfig(train=str(tmp_path / "?.jsonl"), max_seq_len=64)
    with pytest.raises(ClusterError, match="was killed"):
        prepare_tokens(toy, data, tmp_path / "tokens", load_tokenizer(toy), map_on_cores)
    assert list((tmp_path / "tokens").iterdir()) == []
    record(Outcome("process", "SIGKILL of a process that prepares tokens", 1, "it was killed; nothing is left", 1))


def kill_myself(task: ChunkTask) -> ChunkReceipt:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")
