"""The token store: random access to mapped files, places, equal conversations, and one publisher of several."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny import digest_ids, draw_examples, example, write_store

from sftray.train_fn.batch import Example, count_target_tokens
from sftray.train_fn.token_store import (
    RECEIPT,
    SplitWriter,
    TokenStore,
    find_overlap,
    make_draft,
    publish_draft,
    read_receipt,
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [*draw_examples(23, without_target=(4,)), example([5], [1])]


@pytest.fixture
def store(examples: list[Example], tmp_path: Path) -> TokenStore:
    return write_store(tmp_path, examples, rows=5)


def assert_equal(one: Example, other: Example) -> None:
    assert np.array_equal(one.input_ids, other.input_ids) and one.input_ids.dtype == np.int32
    assert np.array_equal(one.loss_mask, other.loss_mask) and one.loss_mask.dtype == np.bool_


def test_any_example_can_be_read_in_any_order(store: TokenStore, examples: list[Example]) -> None:
    assert len(store) == len(examples)
    for index in np.random.default_rng(0).permutation(len(examples)).tolist():
        assert_equal(store[index], examples[index])
    assert store.lengths.tolist() == [len(e.input_ids) for e in examples]
    assert store.target_counts.tolist() == [count_target_tokens(e.loss_mask) for e in examples]


@pytest.mark.parametrize("index", [-1, 24, 10**9])
def test_an_index_outside_is_refused(index: int, store: TokenStore) -> None:
    with pytest.raises(IndexError, match=f"example {index} of 24"):
        store[index]


def test_files_of_a_split_follow_each_other(tmp_path: Path, examples: list[Example]) -> None:
    """train-00001 stands behind train-00000, and validation is another data set."""
    write_store(tmp_path, examples[:7])
    (tmp_path / "train-00000.arrow").rename(tmp_path / "train-00001.arrow")
    write_store(tmp_path, examples[7:9])
    write_store(tmp_path, examples[9:12], "validation")
    train, validation = TokenStore(tmp_path, "train"), TokenStore(tmp_path, "validation")
    for index, expected in enumerate([*examples[7:9], *examples[:7]]):
        assert_equal(train[index], expected)
    assert [len(train), len(validation)] == [9, 3]
    assert_equal(validation[2], examples[11])


def test_a_split_without_a_file_is_empty(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path / "validation-00000.arrow")
    writer.write({"input_ids": []})
    writer.close()
    store = TokenStore(tmp_path, "validation")
    assert len(store) == 0 and store.lengths.size == store.target_counts.size == store.get_digests().size == 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_a_file_and_a_row(store: TokenStore) -> None:
    assert [store.get_place(i, ["a.jsonl"]) for i in (0, 4, 5, 23)] == [
        "a.jsonl:1",
        "a.jsonl:5",
        "a.jsonl:6",
        "a.jsonl:24",
    ]


def test_digests_keep_all_their_bits(store: TokenStore, examples: list[Example]) -> None:
    expected = [digest_ids(e) for e in examples]
    assert store.get_digests().tolist() == expected and max(expected) > 2**63


def test_equal_conversations_are_found_with_their_places(tmp_path: Path) -> None:
    one, two, three, four = draw_examples(4)
    write_store(tmp_path, [one, two, one, three, two, one])
    write_store(tmp_path, [four, two, three, four], "validation")
    assert find_overlap(tmp_path, ["a.jsonl"]) == {
        "train_duplicates": 3,
        "validation_in_train": 2,
        "places": {
            "train_duplicates": ["a.jsonl:3", "a.jsonl:5", "a.jsonl:6"],
            "validation_in_train": ["a.jsonl:2", "a.jsonl:3"],
        },
    }


def test_distinct_conversations_do_not_overlap(tmp_path: Path) -> None:
    examples = draw_examples(12)
    write_store(tmp_path, examples[:8])
    assert find_overlap(tmp_path, ["a.jsonl"])["validation_in_train"] == 0
    write_store(tmp_path, examples[8:], "validation")
    found = find_overlap(tmp_path, ["a.jsonl"])
    assert (found["train_duplicates"], found["validation_in_train"]) == (0, 0)
    assert found["places"] == {"train_duplicates": [], "validation_in_train": []}


def test_a_store_travels_as_its_name_alone(store: TokenStore) -> None:
    content = pickle.dumps(store)
    assert len(content) < 500
    copy = pickle.loads(content)
    assert_equal(copy[17], store[17])
    assert copy.lengths.tolist() == store.lengths.tolist()


def test_tokens_stay_in_the_mapped_file(tmp_path: Path) -> None:
    """8 MB of tokens, read whole: arrow takes no memory for them but what the bits of the masks need."""
    ids = np.arange(100_000, dtype=np.int32)
    write_store(tmp_path, [Example(ids, np.zeros(ids.size, dtype=np.bool_))] * 20, rows=10)
    before = pa.total_allocated_bytes()
    store = TokenStore(tmp_path, "train")
    read = [store[i].input_ids for i in range(len(store))]
    assert pa.total_allocated_bytes() - before < 100_000
    assert not any(ids.flags.owndata or ids.flags.writeable for ids in read)


PUBLISHER = """
import json, sys
from pathlib import Path
from sftray.train_fn.token_store import RECEIPT, make_draft, publish_draft

root = Path(sys.argv[1])
draft = make_draft(root, "key")
(draft / "train-00000.arrow").write_bytes(sys.argv[2].encode() * 1000)
(draft / RECEIPT).write_text(json.dumps({"publisher": sys.argv[2]}))
print("ready", flush=True)
sys.stdin.read()  # all publish together, when their input is closed
folder = publish_draft(draft, root, "key")
print(folder, (folder / "train-00000.arrow").read_text()[0])
"""


@pytest.mark.slow
def test_of_publishers_at_once_one_wins_and_all_use_its_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path / "tokens")]
    publishers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    for publisher in publishers:
        assert publisher.stdout is not None and publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.close()
    answers = {publisher.stdout.read() for publisher in publishers if publisher.stdout}
    assert [publisher.wait() for publisher in publishers] == [0, 0, 0]
    final = tmp_path / "tokens" / "key"
    winner = read_receipt(final)["publisher"]
    assert answers == {f"{final} {winner}\n"}
    assert list((tmp_path / "tokens").iterdir()) == [final], "no draft is left"


def test_who_comes_second_uses_the_first_store(tmp_path: Path) -> None:
    for number in range(2):
        draft = make_draft(tmp_path, "key")
        (draft / RECEIPT).write_text(json.dumps({"number": number}))
        assert publish_draft(draft, tmp_path, "key") == tmp_path / "key"
    assert read_receipt(tmp_path / "key") == {"number": 0}
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_something_else_under_the_name_of_a_store_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "notes.txt").write_text("")
    draft = make_draft(tmp_path, "key")
    with pytest.raises(OSError, match="not empty"):
        publish_draft(draft, tmp_path, "key")
    assert draft.exists()


def test_drafts_of_dead_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    old, young = make_draft(tmp_path, "key"), make_draft(tmp_path, "key")
    day_ago = young.stat().st_mtime - 24 * 3600 - 60
    os.utime(old, (day_ago, day_ago))
    newest = make_draft(tmp_path, "other")
    assert sorted(tmp_path.iterdir()) == sorted([young, newest])
