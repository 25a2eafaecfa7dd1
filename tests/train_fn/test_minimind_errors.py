"""Files that are no MiniMind model: each is refused with what it is, where, and what to do; nothing in it is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_files import build_small, refuse, save_small
from minimind_model import ReferenceModel, Shape

from sftray.train_fn.errors import ConfigError, Problem, StoreError
from sftray.train_fn.minimind_file import load_file, save_file
from sftray.train_fn.minimind_folder import read_minimind, write_folder
from sftray.train_fn.minimind_shape import Asked, read_layout
from sftray.train_fn.minimind_weights import get_shapes, to_transformers

Maker = Callable[[Path], object]


class RunsCode:
    """A pickle of this makes a folder where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def refuse_file(path: Path) -> Problem:
    problem = refuse(lambda: read_minimind(path, Asked()))
    assert problem.where == str(path)
    return problem


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")


def truncate(path: Path) -> None:
    save_small(path)
    path.write_bytes(path.read_bytes()[:5000])


def save_optimizer(path: Path) -> None:
    torch.save(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(), path)


def prefix(word: str) -> Maker:
    return lambda path: torch.save(
        {f"{word}{key}": tensor for key, tensor in build_small("llama", 0)[0].items()}, path
    )


KINDS: list[tuple[str, Maker, str, str]] = [
    ("empty", lambda path: path.touch(), "the file is empty", "copy or download it again"),
    ("text", lambda path: path.write_text("not weights at all\n"), "no file of torch.save's", "out/pretrain_512.pth"),
    ("page", lambda path: path.write_text("<!DOCTYPE html><html>"), "no file of torch.save's", "download it again"),
    ("lfs", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
    ("zip", write_zip, "damaged, or a ZIP archive", "copy or download it again"),
    ("cut", truncate, "damaged, or a ZIP archive", "copy or download it again"),
    ("plain pickle", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickle", "download it again"),
    ("module", lambda path: torch.save(torch.nn.Linear(2, 2), path), "would run code", "model.state_dict()"),
    ("model", lambda path: torch.save({"model": build_small("llama", 0)[0], "epoch": 1}, path), "'model'", "torch."),
    ("optimizer", save_optimizer, "the state of an optimizer", "the file beside it"),
    ("nothing", lambda path: torch.save({}, path), "it holds a dict", "out/pretrain_512.pth"),
    ("list", lambda path: torch.save([torch.ones(2)], path), "it holds a list", "out/pretrain_512.pth"),
    ("settings", lambda path: torch.save({"dim": 512}, path), "a dict of other things", "out/pretrain_512.pth"),
    ("ddp", prefix("module."), "every key begins with 'module.'", "removeprefix('module.')"),
    ("compiled", prefix("_orig_mod."), "every key begins with '_orig_mod.'", "removeprefix('_orig_mod.')"),
    ("lora", lambda path: torch.save({"layers.0.lora.A.weight": torch.ones(2, 2)}, path), "a LoRA alone", "merge"),
    ("other", lambda path: torch.save({"transformer.wte.weight": torch.ones(2, 2)}, path), "not those", "MiniMind"),
    ("sparse", lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), "not plain ones", "MiniMind"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "what", "fix"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_what_is_no_state_dict_is_named(make: Maker, what: str, fix: str, tmp_path: Path) -> None:
    make(path := tmp_path / "in.pth")
    problem = refuse_file(path)
    assert what in problem.what and fix in str(problem.fix)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (torch.save, "would run code (posix.mkdir)"),
        (lambda value, path: path.write_bytes(pickle.dumps(value, 2)), "would run code (posix.mkdir)"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "a pickle that torch.save did not write"),
    ],
)
def test_no_code_in_a_file_is_run(save: Callable[[object, Path], object], said: str, tmp_path: Path) -> None:
    save({"layers.0.attention.wq.weight": RunsCode(tmp_path / "mark")}, tmp_path / "in.pth")
    problem = refuse_file(tmp_path / "in.pth")
    assert said in problem.what and "weights_only" not in str(problem)
    assert not (tmp_path / "mark").exists()


def test_a_path_that_is_no_file_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    save_small(tmp_path / "other.pth")
    missing = refuse(lambda: load_file(tmp_path / "in.pth"), ConfigError)
    assert "there is no file" in missing.what and missing.why == "beside it: other.pth"
    assert "Is a directory" in refuse(lambda: load_file(tmp_path), ConfigError).what


def test_a_table_says_what_is_missing_unexpected_and_misshapen(tmp_path: Path) -> None:
    path = save_small(
        tmp_path / "in.pth",
        layers__0__attention__wk__weight=None,
        layers__1__attention__wk__bias=torch.zeros(16),
        layers__0__feed_forward__w2__weight=torch.zeros(64, 191),
        layers__1__feed_forward__w2__weight=torch.zeros(64, 191),
    )
    problem = refuse_file(path)
    assert problem.what.endswith("1 missing, 1 unexpected, 2 misshapen")
    assert [line.split() for line in str(problem.why).split("\n")[1:]] == [
        ["key", "expected", "found"],
        ["missing", "layers.0.attention.wk.weight", "16×64", "-"],
        ["unexpected", "layers.1.attention.wk.bias", "-", "16"],
        ["misshapen", "layers.0-1.feed_forward.w2.weight", "64×192", "64×191"],
    ]


@pytest.mark.parametrize("name", ["attention.wq", "attention.wk", "feed_forward.w1"])
def test_sizes_are_those_of_most_layers(name: str, tmp_path: Path) -> None:
    """So that a first layer of another shape is what the table shows, and not all others."""
    key = f"layers.0.{name}.weight"
    state = ReferenceModel(Shape(dim=64, n_layers=3, vocab_size=96)).state_dict()
    torch.save({**state, key: torch.zeros(6, 64)}, tmp_path / "in.pth")
    problem = refuse_file(tmp_path / "in.pth")
    assert problem.what.endswith(": 1 misshapen") and key in str(problem.why)


@pytest.mark.parametrize("generation", ["original", "llama", "minimind-3"])
@pytest.mark.parametrize("experts", [0, 4])
def test_each_tensor_that_is_left_out_is_missed(generation: Any, experts: int) -> None:
    whole = build_small(generation, experts)[0]
    for key in whole:
        rest = {name: tensor for name, tensor in whole.items() if name != key}
        problem = refuse(lambda rest=rest: to_transformers(rest, read_layout(get_shapes(rest), "x", Asked())[0], "x"))  # type: ignore[misc]  # a default in a lambda
        pattern = key.replace("layers.0.", "layers.").replace("layers.1.", "layers.")
        assert pattern in f"{problem.what} {problem.why}".replace("layers.0.", "layers.").replace(
            "layers.1.", "layers."
        )


def test_a_long_table_is_cut(tmp_path: Path) -> None:
    path = save_small(tmp_path / "in.pth", **{f"other{n}": torch.zeros(1) for n in range(40)})
    lines = str(refuse_file(path).why).split("\n")
    assert len(lines) == 33 and lines[-1].strip() == "… and 10 more lines"


def test_tied_keys_that_differ_are_refused_with_the_difference(tmp_path: Path) -> None:
    changed = build_small("original", 0)[0]["output.weight"].clone()
    changed[3, 5] += 0.25
    problem = refuse_file(save_small(tmp_path / "in.pth", output__weight=changed))
    assert (
        "tok_embeddings.weight and output.weight are not equal: 1 of 6144 values differ, by up to 0.25"
        in problem.what
    )
    changed[3, 5] = float("nan")
    problem = refuse_file(save_small(tmp_path / "in.pth", output__weight=changed, tok_embeddings__weight=changed))
    assert "by up to nan" in problem.what and "without NaN" in str(problem.fix)


def test_types_that_are_mixed_or_no_numbers_of_a_model_are_refused(tmp_path: Path) -> None:
    problem = refuse_file(save_small(tmp_path / "in.pth", norm__weight=torch.ones(64, dtype=torch.float16)))
    assert "float32 (" in str(problem.why) and "float16 (norm.weight)" in str(problem.why)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tok_embeddings__weight": None}, "tok_embeddings.weight is not there"),
        ({"tok_embeddings__weight": torch.zeros(0, 64)}, "tok_embeddings.weight is 0×64, empty"),
        ({"layers__0__attention__wq__weight": torch.zeros(64)}, "layers.0.attention.wq.weight is 64"),
    ],
)
def test_shapes_that_say_nothing_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refuse_file(save_small(tmp_path / "in.pth", **changes)).what


def test_options_that_contradict_the_file_are_refused(tmp_path: Path) -> None:
    path = save_small(tmp_path / "in.pth", "minimind-3", 4)
    assert "--heads 4, and the file has 8" in refuse(lambda: read_minimind(path, Asked(heads=4)), ConfigError).what
    problem = refuse(lambda: read_minimind(path, Asked(experts_per_token=5)), ConfigError)
    assert "5 experts per token, and the file has 4" in problem.what


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    converted = read_minimind(save_small(tmp_path / "in.pth"), Asked())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "is there already" in refuse(lambda: write_folder(converted, tmp_path / "out"), ConfigError).what
    assert "is there already" in refuse(lambda: write_folder(converted, tmp_path / "in.pth"), ConfigError).what
    before = (tmp_path / "in.pth").read_bytes()
    assert "is there already" in refuse(lambda: save_file({}, tmp_path / "in.pth"), ConfigError).what
    assert (tmp_path / "in.pth").read_bytes() == before and [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    converted = read_minimind(save_small(tmp_path / "in.pth"), Asked())
    inside = tmp_path / "in.pth" / "out"
    assert "cannot be written" in refuse(lambda: write_folder(converted, inside), StoreError).what
    assert "cannot be written" in refuse(lambda: save_file(converted.weights, inside), StoreError).what


def test_a_tokenizer_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    from sftray.train_fn.tokenizer import SHIPPED

    converted = read_minimind(save_small(tmp_path / "in.pth"), Asked())
    (tmp_path / "none").mkdir()
    for folder, said in ((tmp_path / "none", "no tokenizer.json"), (SHIPPED["quickstart"], "and the model has 96")):
        problem = refuse(lambda folder=folder: write_folder(converted, tmp_path / "out", folder), ConfigError)  # type: ignore[misc]  # a default in a lambda
        assert said in problem.what
    (tmp_path / "none" / "tokenizer.json").write_text("{}")
    assert (
        "cannot be loaded"
        in refuse(lambda: write_folder(converted, tmp_path / "out", tmp_path / "none"), ConfigError).what
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "none"]
