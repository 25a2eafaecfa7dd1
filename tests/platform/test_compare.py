"""Runs side by side, and what keeps them from being compared."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from run_dirs import RECEIPT, log_step, write_checkpoint, write_finished_run, write_run
from sweep_dirs import write_sweep

from sftray.platform.cli import main
from sftray.platform.compare import (
    comparison_to_json,
    describe_differences,
    find_doubts,
    list_differing,
    load_sides,
    show_comparison,
)
from sftray.platform.leaderboard import load_leaderboard
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, DATA

Capture = pytest.CaptureFixture[str]


def write(store: Path, name: str, loss: float, seed: int = 1, rate: str = "1e-4", examples: int = 320) -> Path:
    journal = write_run(store, name, [f"train.seed={seed}", f"optim.learning_rate={rate}"])
    log_step(journal, 40, 1.0, val_loss=loss, train_loss=loss, examples=examples)
    write_checkpoint(journal, 40, loss)
    journal.add_event("finished", 1, step=40)
    return journal.folder


def write_receipt(folder: Path, validation: str = "v", train: str = "t", targets: int = 100) -> None:
    splits = {**RECEIPT["splits"], "validation": {"target_tokens": targets}}
    receipt = {**RECEIPT, "splits": splits, "fingerprints": {"train": train, "validation": validation}}
    (folder / DATA).write_text(json.dumps(receipt), encoding="utf-8")


def show(store: Path, *names: str, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    show_comparison(load_sides(names, str(store)), console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_settings_that_differ_and_numbers_stand_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, "alpha", 1.5)
    write(tmp_path, "beta", 1.25, rate="3e-4")
    lines = show(tmp_path, "alpha", "beta")
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert lines[0].split() == ["alpha", "beta"]
    assert rows["optim.learning_rate"] == ["1.0e-4", "3.0e-4"]
    assert rows["val/loss_best"] == ["1.5000", "1.2500"]
    assert "  to the first" in lines[4] and lines[4].endswith("-0.2500")
    assert rows["examples"] == ["320", "320"]
    assert "train.seed" not in rows and "name" not in rows
    assert lines[-1] == "beta is 0.25 below alpha; so few runs say nothing of chance"


@pytest.mark.parametrize("width", [60, 160])
def test_names_and_keys_are_never_cut(tmp_path: Path, width: int) -> None:
    write(tmp_path, "a-run-with-a-long-name-of-many-letters", 1.5)
    write(tmp_path, "b-run-with-a-long-name-of-many-letters", 1.25)
    lines = show(tmp_path, *(f"{x}-run-with-a-long-name-of-many-letters" for x in "ab"), width=width)
    assert max(map(len, lines[:-1])) <= width
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("other", "doubt"),
    [
        ({"validation": "w"}, "they were validated on other rows, so the losses cannot be compared (a v, b w)"),
        ({"targets": 90}, "the same rows came to other target tokens"),
        ({"train": "u"}, "they learned from other rows: the difference is that of the data too (a t, b u)"),
    ],
)
def test_other_data_is_told(tmp_path: Path, other: dict[str, str], doubt: str) -> None:
    write_receipt(write(tmp_path, "a", 1.5))
    write_receipt(write(tmp_path, "b", 1.5), **other)  # type: ignore[arg-type]  # one of its keywords
    (found,) = find_doubts(load_sides(["a", "b"], str(tmp_path)))
    assert found.startswith(doubt)


def test_the_same_data_raises_no_doubt(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_receipt(write(tmp_path, name, 1.5))
    assert find_doubts(load_sides(["a", "b"], str(tmp_path))) == []


def test_other_lengths_and_missing_ends_are_told(tmp_path: Path) -> None:
    write(tmp_path, "a", 1.5)
    write(tmp_path, "b", 1.5, examples=160)
    write_run(tmp_path, "c")
    assert find_doubts(load_sides(["a", "b", "c"], str(tmp_path))) == [
        "c has no checkpoint with a validation loss",
        "c has not come to its end (running)",
        "they saw other numbers of examples: the difference is that of length too (a 320, b 160, c None)",
    ]


def test_runs_that_differ_in_their_seed_are_taken_together(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate([(1.0, 2.0), (1.1, 2.11), (0.9, 1.91)]):
        write(tmp_path, f"a{seed}", a, seed)
        write(tmp_path, f"b{seed}", b, seed, "3e-4")
    sides = load_sides(["a0", "a1", "a2", "b0", "b1", "b2"], str(tmp_path))
    assert list_differing(sides) == ["optim.learning_rate", "train.seed"]
    # Differences 1, 1.01, 1.01: mean 1.00667, half width 4.3027 × 0.0057735 / sqrt(3) = 0.01434.
    assert describe_differences(sides) == [
        "a0 + a1 + a2 beats b0 + b1 + b2 by 1.007 ± 0.014 (95 % interval, 3 paired seeds)"
    ]
    assert describe_differences(sides[:3]) == ["they differ in their seeds alone"]


def test_a_sweep_stands_for_its_best_trial(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=4)
    best = load_leaderboard(folder)[0]
    sides = load_sides(["sweep", "sweep/trial-001"], str(tmp_path))
    assert [side.label for side in sides] == [best.record.name, "trial-001"]
    assert sides[0].loss == best.loss
    write_sweep(tmp_path, "other", trials=4)
    assert [s.label for s in load_sides(["sweep/trial-000", "other/trial-000"], str(tmp_path))] == [
        "sweep/trial-000",
        "other/trial-000",
    ]


def test_json_has_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a", 1.5)
    write_finished_run(tmp_path, "b")
    found = json.loads(json.dumps(comparison_to_json(load_sides(["a", "b"], str(tmp_path))), allow_nan=False))
    assert [run["metrics"]["val/loss_best"] for run in found["runs"]] == [1.5, 1.5]
    assert [run["settings"]["optim.learning_rate"] for run in found["runs"]] == [1e-4, 2e-5]
    assert found["runs"][1]["difference"] == 0.0
    assert found["differences"] == ["a and b have the same loss"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a"], "one run alone"),
        (["a", "a"], "a is named 2 times"),
        (["a", "c"], "there is no run c"),
        (["a", "broken"], "broken cannot be read: config.yaml holds no settings"),
        (["a", "sweep"], "sweep is a sweep of which no trial has a validation loss"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, names: list[str], what: str) -> None:
    write(tmp_path, "a", 1.5)
    (write(tmp_path, "broken", 1.5) / CONFIG).write_text("")
    write_sweep(tmp_path, trials=0)
    with pytest.raises(ConfigError, match=what):
        load_sides(names, str(tmp_path))


def test_the_command(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, "a", 1.5)
    write(tmp_path, "b", 1.25)
    assert main(["runs", "compare", "a", "b", "--store", str(tmp_path)]) == 0
    assert "val/loss_best" in capsys.readouterr().out
    assert main(["runs", "compare", "a", "b", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["difference"] == -0.25


@pytest.mark.parametrize("as_json", [False, True])
def test_a_sweep_is_shown_by_the_command_for_runs(tmp_path: Path, capsys: Capture, as_json: bool) -> None:
    folder = write_sweep(tmp_path, trials=8)
    assert main(["runs", "show", "sweep", "--store", str(tmp_path), *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    assert all(each.record.name in out for each in load_leaderboard(folder))
    if as_json:
        assert json.loads(out)["sweep"]["name"] == "sweep"
    else:
        assert "chance is not measured" in out


def test_the_list_has_the_trials_of_sweeps(tmp_path: Path, capsys: Capture) -> None:
    write_sweep(tmp_path, trials=4)
    assert main(["runs", "list", "--store", str(tmp_path), "--sort", "val/loss_best"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[:2] for line in lines[1:5]) == [
        *(["sweep/trial-000", "pruned"], ["sweep/trial-001", "failed"]),
        *(["sweep/trial-002", "finished"], ["sweep/trial-003", "pruned"]),
    ]
    assert any(line.startswith("pruned sweep/trial-000: asha: ") for line in lines)
