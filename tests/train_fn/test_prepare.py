"""From chat files to a store: what is kept of every row, counted by hand, and what is refused."""

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_data import prepare, save_byte_tokenizer, write_chats
from transformers import AutoTokenizer

from sftray.train_fn import prepare as module
from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.errors import DataError
from sftray.train_fn.files import PRESET, find_files, scan_files
from sftray.train_fn.prepare import Prepared, prepare_tokens
from sftray.train_fn.token_store import Split, TokenStore
from sftray.train_fn.tokenizer import load_tokenizer

END = "<|im_end|>"
SPLITS: tuple[Split, Split] = ("train", "validation")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return save_byte_tokenizer(tmp_path_factory.mktemp("toy"))


def read_texts(model: ModelConfig, prepared: Prepared, split: Split = "train") -> list[tuple[str, str]]:
    """Each example as text: all of it, and its targets."""
    tokenizer, store = AutoTokenizer.from_pretrained(model.tokenizer), TokenStore(prepared.folder, split)
    examples = [store[index] for index in range(len(store))]
    return [(tokenizer.decode(e.input_ids), tokenizer.decode(e.input_ids[e.loss_mask])) for e in examples]


def refuse(model: ModelConfig, root: Path, train: Path, **settings: Any) -> DataError:
    """The error; it must leave nothing in the store."""
    with pytest.raises(DataError) as caught:
        prepare(model, root, train, **settings)
    assert caught.value.exit_code == 3
    assert not root.exists() or list(root.iterdir()) == []
    return caught.value


def test_the_receipt_adds_up_to_the_token(toy: ModelConfig, tmp_path: Path) -> None:
    rows = [
        ["ab", "cd"],  # 10 + 15 tokens, 3 targets
        ["hello"],  # no answer
        ["a", "b", "c", "d"],  # cut behind its first answer: 9 + 13 tokens, 2 targets, and 2 are lost
        ["x" * 50, "y"],  # dropped: 2 targets are lost
        ["q", ""],  # 9 + 13 tokens: the end of the turn is a target
        [f"say {END}", "ok"],  # 22 + 15 tokens, 3 targets; the marker is ten letters
        ["a", "b", "c"],  # ends on a user turn: 9 + 14 + 9 tokens, 2 targets
    ]
    train = write_chats(tmp_path / "a.jsonl", rows)
    prepared = prepare(toy, tmp_path / "tokens", train, max_seq_len=40)
    counts = prepared.receipt["splits"]["train"]
    assert counts == {
        **{"rows": 7, "kept": 5, "cut": 1, "dropped_overlong": 1, "without_target": 1, "tokens": 138},
        **{"target_tokens": 11, "target_tokens_lost": 4, "typed_markers": 1},
        "places": {"without_target": [f"{train}:2"], "cut": [f"{train}:3"], "dropped_overlong": [f"{train}:4"]},
    }
    assert counts["rows"] == counts["kept"] + counts["dropped_overlong"] + counts["without_target"]
    store = TokenStore(prepared.folder, "train")
    assert store.lengths.tolist() == [25, 22, 22, 37, 32]
    assert store.target_counts.tolist() == [3, 2, 1, 3, 2]
    assert [store.get_place(i, prepared.receipt["files"]) for i in range(5)] == [
        f"{train}:{n}" for n in (1, 3, 5, 6, 7)
    ]
    assert json.loads((prepared.folder / "data.json").read_text(encoding="utf-8")) == prepared.receipt


# 9 + 14 + 9 + 14 tokens: the answers end at 22 and 45. How long it may be, what is done, what of it is kept and
# taught (None: nothing), and how many of its four targets are lost.
FIRST, SECOND = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb", "\n<|im_start|>user\nc<|im_end|>\n"
WHOLE = f"{FIRST}{END}{SECOND}<|im_start|>assistant\nd{END}\n"
OVERLONG = [
    (46, "turns", WHOLE, f"b{END}d{END}", 0),
    (45, "turns", WHOLE[:-1], f"b{END}d{END}", 0),
    (44, "turns", FIRST + END, f"b{END}", 2),
    (22, "turns", FIRST + END, f"b{END}", 2),
    (21, "turns", None, None, 4),
    (46, "truncate", WHOLE, f"b{END}d{END}", 0),
    (44, "truncate", WHOLE[:-11], f"b{END}d", 1),
    (21, "truncate", FIRST, "b", 3),
    (46, "drop", WHOLE, f"b{END}d{END}", 0),
    (45, "drop", None, None, 4),
]


@pytest.mark.parametrize(("max_seq_len", "overlong", "kept", "taught", "lost"), OVERLONG)
def test_what_is_kept_of_a_row_that_is_too_long(
    toy: ModelConfig, tmp_path: Path, max_seq_len: int, overlong: str, kept: str | None, taught: str, lost: int
) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b", "c", "d"], ["", ""]])  # the second has 21 tokens, 1 target
    prepared = prepare(toy, tmp_path / "tokens", train, max_seq_len=max_seq_len, overlong=overlong)
    counts = prepared.receipt["splits"]["train"]
    assert counts["target_tokens_lost"] == lost
    assert counts["dropped_overlong"] == (kept is None) and counts["cut"] == (kept is not None and kept != WHOLE)
    texts = read_texts(toy, prepared)
    assert texts[:-1] == ([] if kept is None else [(kept, taught)])


def test_an_overlong_row_is_an_error_where_that_is_asked_for(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"], ["a", "b", "c", "d"], ["a", "b" * 40]])
    error = refuse(toy, tmp_path / "tokens", train, max_seq_len=45, overlong="error")
    assert [(problem.where, problem.what) for problem in error.problems] == [
        (f"{train}:2", "the row has 46 tokens, 45 are allowed"),
        (f"{train}:3", "the row has 62 tokens, 45 are allowed"),
    ]


@pytest.mark.parametrize(
    ("max_seq_len", "overlong", "taught"),
    [(46, "turns", f"d{END}"), (44, "turns", None), (44, "truncate", "d"), (22, "truncate", None)],
)
def test_only_the_last_answer_is_taught_where_that_is_asked_for(
    toy: ModelConfig, tmp_path: Path, max_seq_len: int, overlong: str, taught: str | None
) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b", "c", "d"], ["", ""]])
    prepared = prepare(toy, tmp_path / "t", train, max_seq_len=max_seq_len, overlong=overlong, train_on="last")
    assert [text for _, text in read_texts(toy, prepared)] == [*([] if taught is None else [taught]), END]
    counts = prepared.receipt["splits"]["train"]
    assert counts["target_tokens_lost"] == 2 - len([] if taught is None else taught.replace(END, "."))


def test_nothing_left_to_train_is_refused_with_the_numbers(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"], ["a", "c"], ["only asked"]])
    (problem,) = refuse(toy, tmp_path / "tokens", train, max_seq_len=20).problems
    assert problem.what == "data.train: nothing is left to train"
    assert problem.why == "of 3 rows, 2 have no answer that fits in 20 tokens and 1 have no target token"


def test_a_share_that_takes_every_row_is_refused_by_its_name(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"]])
    (problem,) = refuse(toy, tmp_path / "tokens", train, validation=0.999999).problems
    assert "0.999999 for validation took all 1 rows" in str(problem.why) and "data.validation" in str(problem.fix)


@pytest.mark.parametrize("count", [3, 20, 25])
def test_bad_rows_are_listed_up_to_twenty_and_the_others_counted(
    toy: ModelConfig, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = json.dumps({"prompt": "a", "completion": "b"})
    train = write_chats(tmp_path / "a.jsonl", [good, *["{}", good] * count])
    monkeypatch.setattr(module, "scan_files", partial(scan_files, chunk_bytes=200))  # of several chunks
    problems = refuse(toy, tmp_path / "tokens", train).problems
    size = len(good) + 1
    places = [f"{train}:{2 + 2 * n}:{size + n * (size + 3)}" for n in range(count)]
    assert [problem.where for problem in problems[:20]] == places[:20]
    assert [problem.what for problem in problems[20:]] == (
        [f"{count - 20} more rows are bad; the first ones are above"] if count > 20 else []
    )


def test_missing_and_broken_files_of_both_splits_come_together(toy: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    error = refuse(toy, tmp_path / "tokens", tmp_path / "no.jsonl", validation=str(tmp_path / "empty.jsonl"))
    assert [problem.what.partition(":")[0] for problem in error.problems] == ["data.train", "the file is empty"]


def test_copies_and_leaks_are_counted_with_their_places(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"], ["c", "d"], ["a", "b"], ["a", "b"]])
    held_out = write_chats(tmp_path / "b.jsonl", [["e", "f"], ["c", "d"]])
    prepared = prepare(toy, tmp_path / "tokens", train, validation=str(held_out))
    assert prepared.receipt["overlap"] == {
        "train_duplicates": 2,
        "validation_in_train": 1,
        "places": {"train_duplicates": [f"{train}:3", f"{train}:4"], "validation_in_train": [f"{held_out}:2"]},
    }


def test_validation_is_a_file_a_pattern_or_a_list(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "train.jsonl", [["a", "b"]])
    names = [str(write_chats(tmp_path / f"val-{n}.jsonl", [[str(n), "x"]] * (n + 1))) for n in range(3)]
    for validation, expected in [
        (names[1], [1, 1]),
        (str(tmp_path / "val-*"), [0, 1, 1, 2, 2, 2]),
        (names[1::-1], [1, 1, 0]),
    ]:
        prepared = prepare(toy, tmp_path / "tokens", train, validation=validation)
        texts = [whole for whole, _ in read_texts(toy, prepared, "validation")]
        assert [int(text[len("<|im_start|>user\n")]) for text in texts] == expected
        assert prepared.receipt["splits"]["validation"]["kept"] == len(expected)
        assert prepared.receipt["files"] == [str(train), *dict.fromkeys(prepared.receipt["files"][1:])]


def share_out(model: ModelConfig, root: Path, rows: Sequence[list[str]], share: float) -> tuple[set[str], set[str]]:
    """The texts of train and of validation."""
    root.mkdir(parents=True, exist_ok=True)
    train = write_chats(root / f"{len(list(root.iterdir()))}.jsonl", rows)
    prepared = prepare(model, root / "tokens", train, validation=share)
    counts = prepared.receipt["splits"]
    assert counts["train"]["kept"] + counts["validation"]["kept"] == len(rows)
    train_texts, validation_texts = (read_texts(model, prepared, split) for split in SPLITS)
    return {whole for whole, _ in train_texts}, {whole for whole, _ in validation_texts}


def test_a_share_for_validation_goes_by_the_conversation_alone(toy: ModelConfig, tmp_path: Path) -> None:
    rows = [[f"question {n}", f"answer {n}"] for n in range(600)]
    train, validation = share_out(toy, tmp_path, rows, 0.2)
    assert 80 <= len(validation) <= 160  # four standard deviations about 120
    assert train.isdisjoint(validation)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert share_out(toy, tmp_path, shuffled + rows[:50], 0.2) == (train, validation)  # copies go with their like
    more = [[f"another {n}", "x"] for n in range(100)]
    longer_train, longer_validation = share_out(toy, tmp_path, more + rows, 0.2)
    assert train < longer_train and validation < longer_validation
    assert share_out(toy, tmp_path, rows, 0.1)[1] < validation


def test_the_same_data_is_prepared_once(toy: ModelConfig, tmp_path: Path) -> None:
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"], ["c", "d"]])
    first = prepare(toy, tmp_path / "tokens", train)
    again = prepare(toy, tmp_path / "tokens", train)
    renamed = prepare(toy, tmp_path / "tokens", train.rename(tmp_path / "b.jsonl"))
    assert [first.reused, again.reused, renamed.reused] == [False, True, True]
    assert first.folder == again.folder == renamed.folder and first.receipt == again.receipt
    assert list((tmp_path / "tokens").iterdir()) == [first.folder]


def test_all_that_decides_the_tokens_is_in_the_key(toy: ModelConfig, tmp_path: Path) -> None:
    rows = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    train = write_chats(tmp_path / "a.jsonl", rows)
    changed = write_chats(tmp_path / "b.jsonl", [*rows[:3], ["g", "H"]])
    halves = [write_chats(tmp_path / f"half-{n}.jsonl", rows[2 * n : 2 * n + 2]) for n in (0, 1)]
    other_words = save_byte_tokenizer(tmp_path / "words", special=("<|im_start|>", "<|im_end|>"))
    shipped = toy.model_copy(update={"chat_template": "chatml"})
    runs: list[tuple[ModelConfig, Path | list[Path], dict[str, Any]]] = [
        (toy, train, {}),
        (toy, changed, {}),
        (toy, halves, {}),
        (toy, halves[::-1], {}),
        (other_words, train, {}),
        (shipped, train, {}),
        (toy, train, {"max_seq_len": 1023}),
        (toy, train, {"overlong": "drop"}),
        (toy, train, {"train_on": "last"}),
        (toy, train, {"validation": 0.3}),
        (toy, train, {"validation": 0.4}),
        (toy, train, {"validation": str(changed)}),
    ]
    folders = [prepare(model, tmp_path / "t", data, **settings).folder for model, data, settings in runs]
    assert len(set(folders)) == len(runs)


def test_a_template_that_is_edited_between_two_calls_counts(tmp_path: Path, toy: ModelConfig) -> None:
    template = tmp_path / "chat.jinja"
    model = toy.model_copy(update={"chat_template": str(template)})
    train = write_chats(tmp_path / "a.jsonl", [["a", "b"]])
    source = str(AutoTokenizer.from_pretrained(toy.tokenizer).chat_template)
    for header in ("\n", "\n\n"):
        template.write_text(source.replace("m.role + '\n'", f"m.role + '{header}'").replace("t\n'", f"t{header}'"))
        ((text, taught),) = read_texts(toy, prepare(model, tmp_path / "tokens", train))
        assert (text, taught) == (f"<|im_start|>user{header}a{END}\n<|im_start|>assistant{header}b{END}\n", f"b{END}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "validation"])
def test_files_that_ship_are_prepared_whole(name: str, tmp_path: Path) -> None:
    model = ModelConfig(scratch={"architecture": "llama"}, tokenizer="quickstart")
    (path,) = find_files(f"{PRESET}quickstart/{name}.jsonl", "data.train")
    data = DataConfig(train=f"{PRESET}quickstart/{name}.jsonl", max_seq_len=128)
    counts = prepare_tokens(model, data, tmp_path, load_tokenizer(model)).receipt["splits"]["train"]
    assert counts["rows"] == counts["kept"] == path.read_bytes().count(b"\n")
    assert counts["cut"] == counts["target_tokens_lost"] == 0
