"""What a finished run came to, read from its files, and as it is shown."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from run_dirs import add_answers, log_step, write_checkpoint, write_finished_run, write_run

from sftray.platform.exits import print_json
from sftray.platform.summary import show_summary, summarize


def show(run_dir: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_summary(summarize(run_dir), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_finished_run_is_summed_up(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    summary = summarize(folder)
    assert summary.run_dir == folder and summary.step == 40
    assert (summary.val_loss_before, summary.val_loss_after, summary.train_loss) == (3.0, 1.8, 1.0)
    assert summary.target_tokens_per_second == 1030  # of 1010, 1020, 1030 and 1040 the upper one of the middle
    assert summary.peak_memory_gb == pytest.approx(1.4)
    assert summary.checkpoint.name == "step-000040" and summary.best_checkpoint == folder / "checkpoints/step-000020"
    assert len(summary.samples) == 4


def test_the_answer_for_a_program_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_finished_run(tmp_path).folder
    print_json(summarize(folder).to_json())
    answer = json.loads(capsys.readouterr().out)
    assert answer["checkpoint"] == str(folder / "checkpoints/step-000040") and answer["val_loss_after"] == 1.8
    assert "samples" not in answer


def test_what_is_shown_says_where_to_go_on(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    text = show(folder)
    assert "alpha: finished at step 40" in text
    assert "validation loss 3.0000 before, 1.8000 after" in text
    assert "held-out answers exactly right: 0 of 2 before, 1 of 2 after" in text
    assert "1,030 target tokens/s (median), peak memory of a worker 1.40 GB" in text
    assert f"sftray chat {folder}" in text and f"checkpoint {folder}/checkpoints/step-000040" in text


def test_without_validation_data_no_answer_is_called_held_out(tmp_path: Path) -> None:
    journal = write_run(tmp_path, settings=["data.validation=null"])
    add_answers(journal, "before", 0, ["wrong"])
    log_step(journal, 10, train_loss=2.5, perf_target_tokens_per_second=7.0)
    write_checkpoint(journal, 10)
    add_answers(journal, "after", 10, ["right"])
    summary, text = summarize(journal.folder), show(journal.folder)
    assert (summary.val_loss_before, summary.val_loss_after, summary.best_checkpoint) == (None, None, None)
    assert "validation loss" not in text and "held-out" not in text
    assert "training answers exactly right: 0 of 1 before, 1 of 1 after" in text


def test_a_loss_that_is_no_number_is_shown_and_told_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = write_run(tmp_path)
    add_answers(journal, "before", 0, ["wrong"])
    log_step(journal, 0, val_loss=3.0)
    log_step(journal, 10, train_loss=float("inf"), val_loss=float("nan"), perf_target_tokens_per_second=7.0)
    write_checkpoint(journal, 10)
    assert "validation loss 3.0000 before, nan after" in show(journal.folder)
    print_json(summarize(journal.folder).to_json())
    assert json.loads(capsys.readouterr().out)["val_loss_after"] == "nan"


def test_a_run_that_logs_only_its_end_has_a_speed(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    add_answers(journal, "before", 0, ["wrong"])
    log_step(journal, 0, val_loss=3.0)
    write_checkpoint(journal, 0)
    assert summarize(journal.folder).target_tokens_per_second == 0.0  # no step was made
    log_step(journal, 3, train_loss=1.0, perf_target_tokens_per_second=7.0)
    assert summarize(journal.folder).target_tokens_per_second == 7.0
