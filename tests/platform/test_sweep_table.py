"""A sweep as a table and as JSON, and the files of its directory."""

import io
import json
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console
from sweep_dirs import write_sweep

from sftray.platform.leaderboard import load_leaderboard
from sftray.platform.sweep_files import (
    TrialRecord,
    add_trial,
    find_sweep,
    is_sweep,
    load_settings,
    read_ledger,
    refuse_trial,
    save_settings,
)
from sftray.platform.sweep_table import show_leaderboard, sweep_to_json
from sftray.platform.trial_directory import is_final, read_end, read_validations
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import Journal


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    return write_sweep(tmp_path, trials=8, repeats=2)


def render(folder: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_leaderboard(folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 160])
def test_the_table_has_every_trial_and_the_answer(sweep_dir: Path, width: int) -> None:
    text = render(sweep_dir, width)
    assert all(record.name in text for record in read_ledger(sweep_dir))
    assert "learning_rate" in text and "best: trial-" in text
    assert ("at step" in text) == (width == 160)


def test_json_has_the_same(sweep_dir: Path) -> None:
    found = json.loads(json.dumps(sweep_to_json(sweep_dir), allow_nan=False))
    assert [row["name"] for row in found["leaderboard"]] == [r.record.name for r in load_leaderboard(sweep_dir)]
    assert len(found["repeats"]) == 4 and found["answer"]
    (comparison,) = found["comparisons"]
    assert (comparison["runs"], comparison["paired"], comparison["confidence"]) == (2, True, 0.95)
    means = [fmean(comparison[side]["losses"].values()) for side in ("a", "b")]
    assert comparison["difference"] == pytest.approx(means[1] - means[0]) and means[0] < means[1]


def test_failed_trials_have_no_rank_and_narrow_terminals_get_whole_names(sweep_dir: Path) -> None:
    ranks = [line.split()[:2] for line in render(sweep_dir, 80).splitlines()[1:9]]
    names = [each.record.name for each in load_leaderboard(sweep_dir)]
    assert ranks == [[*map(str, pair)] for pair in zip([*range(1, 8), "–"], names, strict=True)]
    narrow = render(sweep_dir, 40)
    assert all(name in narrow for name in names) and "rank" not in narrow


def test_a_torn_ledger_loses_only_what_had_not_started(sweep_dir: Path) -> None:
    before = read_ledger(sweep_dir)
    with (sweep_dir / "trials.jsonl").open("ab") as file:
        file.write(b'{"number": 99, "kin')
    assert read_ledger(sweep_dir) == before
    added = TrialRecord(99, "search", {"optim.learning_rate": 1e-4}, 1)
    add_trial(sweep_dir, added)
    assert read_ledger(sweep_dir) == [*before, added]


def test_settings_are_read_as_they_were_written(sweep_dir: Path) -> None:
    settings = load_settings(sweep_dir)
    save_settings(sweep_dir, settings)
    assert load_settings(sweep_dir) == settings


def test_a_sweep_is_found_by_name_or_path_and_a_trial_is_not_resumed_alone(sweep_dir: Path) -> None:
    assert is_sweep(sweep_dir)
    assert find_sweep(str(sweep_dir), "elsewhere") == sweep_dir
    assert find_sweep(sweep_dir.name, str(sweep_dir.parent)) == sweep_dir
    assert find_sweep("none", str(sweep_dir.parent)) is None
    with pytest.raises(ConfigError, match="is a trial of a sweep"):
        refuse_trial(sweep_dir / "trial-000")


def test_what_ended_for_its_own_sake_is_final(sweep_dir: Path) -> None:
    ends = {r.name: read_end(sweep_dir / r.name) for r in read_ledger(sweep_dir)}
    assert all(ends.values())
    finished = next(name for name, end in ends.items() if end and end["state"] == "finished")
    Journal(sweep_dir / finished).add_event("failed", 1, "the store is full", exit_code=4)
    assert not is_final(sweep_dir / finished)
    Journal(sweep_dir / finished).add_event("running", 2)
    assert not is_final(sweep_dir / finished)


def test_validations_are_read_by_milestone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step, milestone, loss in ((0, None, 3.0), (5, 0.25, 2.0), (10, 0.5, "nan")):
        row = {"step": step, "val/loss": loss}
        journal.add_metrics(row if milestone is None else {**row, "milestone": milestone})
    assert read_validations(tmp_path) == {0.25: (5, 2.0), 0.5: (10, float("inf"))}
