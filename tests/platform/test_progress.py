"""The terminal: exact plain lines, and a live bar."""

import io
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from sftray.platform.progress import build_progress, describe_event, format_clock, format_loss

Row = dict[str, Any]

STEP_100 = {
    "step": 100,
    "train/loss": 1.23449,
    "optim/learning_rate": 2e-5,
    "perf/target_tokens_per_second": 811.6,
    "perf/step_seconds": 0.25,
    "time": 1000.0,
}


def write_lines(rows: list[Row], total_steps: int = 400, width: int = 20) -> list[str]:
    """What a file, or a pipe, gets. Rows with a `state` are events. Lines are longer than its width."""
    file = io.StringIO()
    console = Console(file=file, width=width)
    progress = build_progress(console, total_steps, "my-run")
    for row in rows:
        (progress.on_event if "state" in row else progress.on_metrics)(row)
    progress.close("finished")
    return file.getvalue().splitlines()


def test_rows_are_single_plain_lines() -> None:
    rows = [
        {"step": 0, "val/loss": 3.2, "time": 990.0},
        STEP_100,
        {**STEP_100, "step": 200, "val/loss": 1.301, "time": 1030.0},
        {
            **STEP_100,
            "step": 400,
            "train/loss": 0.01234567,
            "perf/target_tokens_per_second": 12345.6,
            "time": 1099.0,
        },
    ]
    assert write_lines(rows) == [
        "step 0/400  val 3.200",
        # 10 s for 100 steps, then 40 s for 200.
        "step 100/400  loss 1.234  lr 2.0e-05  812 target tok/s  eta 0:30",
        "step 200/400  loss 1.234  val 1.301  lr 2.0e-05  812 target tok/s  eta 0:40",
        "step 400/400  loss 0.01235  lr 2.0e-05  12,346 target tok/s",
    ]


def test_numbers_that_are_none_stay_readable() -> None:
    assert write_lines([{"step": 1, "train/loss": "nan", "val/loss": "inf", "time": 1.0}]) == [
        "step 1/400  loss nan  val inf"
    ]


def test_first_row_of_an_attempt_takes_its_own_pace() -> None:
    resumed = {"state": "running", "attempt": 2, "step": 100, "why": "", "time": 5000.0}
    rows = [
        {**STEP_100, "step": 90},
        {**STEP_100, "time": 1001.0},
        resumed,
        {**STEP_100, "step": 104, "time": 5010.0},
    ]
    assert write_lines(rows)[-2:] == [
        "attempt 2 resumed at step 100",
        "step 104/400  loss 1.234  lr 2.0e-05  812 target tok/s  eta 1:14",  # 296 steps of 0.25 s
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"state": "running", "attempt": 1, "step": 0, "why": ""}, "attempt 1 started"),
        ({"state": "running", "attempt": 2, "step": 120, "why": ""}, "attempt 2 resumed at step 120"),
        (
            {"state": "running", "attempt": 2, "step": 40, "why": "rank 1 was lost (its node died; node a, after …)"},
            "attempt 2 goes on from step 40: rank 1 was lost (its node died; node a, after …)",
        ),
        (
            {"state": "running", "attempt": 2, "step": 0, "why": "rank 1 was lost (…)"},
            "attempt 2 begins again: rank 1 was lost (…)",
        ),
        (
            {"state": "running", "attempt": 1, "step": 0, "why": "", "nodes": ["a", "a", "b"]},
            "attempt 1 started on a (ranks 0-1), b (rank 2)",
        ),
        (
            {"state": "running", "attempt": 3, "step": 7, "why": "rank 1 was lost", "nodes": ["a", "b", "a"]},
            "attempt 3 goes on from step 7 on a (ranks 0, 2), b (rank 1): rank 1 was lost",
        ),
        (
            {"state": "running", "attempt": 1, "step": 0, "why": "", "nodes": [f"n{i // 2}" for i in range(20)]},
            "attempt 1 started on "
            + ", ".join(f"n{i} (ranks {2 * i}-{2 * i + 1})" for i in range(8))
            + " and 2 more nodes",
        ),
        ({"state": "worker_failed", "attempt": 1, "step": 42, "rank": 1, "why": "its node died"}, None),
        ({"state": "frozen", "attempt": 1, "step": 42, "rank": 1, "why": "step 43 has taken 31 s"}, None),
        ({"state": "checkpoint", "step": 120, "why": ""}, "checkpoint saved at step 120"),
        (
            {"state": "skipped_step", "step": 33, "why": "loss nan, gradient norm inf"},
            "step 33 skipped: loss nan, gradient norm inf",
        ),
        (
            {"state": "loss_spike", "step": 90, "why": "loss 7.1, usual before 2.3"},
            "step 90: the loss jumped (loss 7.1, usual before 2.3); its examples stand in events.jsonl",
        ),
        ({"state": "starting", "why": "2 workers"}, "starting: 2 workers"),
        ({"state": "finished", "why": ""}, "finished"),
        ({"state": "failed", "why": "[bold]two\n lines\x1b[31m"}, r"failed: [bold]two lines\x1b[31m"),
        ({"state": "mirror_off", "why": "told by the log"}, None),
    ],
)
def test_events_are_short_lines(event: Row, line: str | None) -> None:
    assert describe_event(event) == line
    assert write_lines([event]) == ([] if line is None else [line])


def test_a_line_is_out_before_the_next_row_comes() -> None:
    code = (
        "import sys\n"
        "from rich.console import Console\n"
        "from sftray.platform.progress import build_progress\n"
        "progress = build_progress(Console(), 2, 'x')\n"
        "for line in sys.stdin:\n"
        "    progress.on_metrics({'step': int(line), 'val/loss': 1.5})\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        for step in (2, 2):
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"step {step}/2  val 1.500\n"


def draw(rows: list[Row], width: int = 100) -> tuple[str, str]:
    """The last drawing of the bar, without control sequences, and all that was written."""
    file = io.StringIO()
    console = Console(force_terminal=True, record=True, width=width, file=file)
    bar = build_progress(console, 400, "my-run")
    for row in rows:
        (bar.on_event if "state" in row else bar.on_metrics)(row)
    bar.close("finished")
    drawn = console.export_text().rstrip("\n").rpartition("my-run")
    return "".join(drawn[1:]), file.getvalue()


NUMBERS = r"100/400 loss 1\.234  val 3\.200  812 target tok/s  eta 0:30 0:00:0\d"


def test_bar_shows_step_numbers_and_times() -> None:
    last, _ = draw([{"step": 0, "val/loss": 3.2, "time": 990.0}, STEP_100])
    assert re.fullmatch(f"my-run ━{{4}}[━╸╺]+ {NUMBERS}", last)


def test_bar_fits_a_terminal_of_80_columns() -> None:
    last, _ = draw([{"step": 0, "val/loss": 3.2, "time": 990.0}, STEP_100], width=80)
    assert len(last) <= 80
    assert re.fullmatch(f"my-run [━╸╺]+ {NUMBERS}", last)


def test_bar_goes_back_with_a_resumed_run_and_lets_events_stand() -> None:
    resumed = {"state": "running", "attempt": 2, "step": 50, "why": ""}
    last, everything = draw([STEP_100, resumed])
    assert " 50/400 " in last
    assert "attempt 2 resumed at step 50\n" in everything


def test_cursor_is_given_back() -> None:
    assert draw([STEP_100])[1].endswith("\x1b[?25h")


def test_bar_without_rows_leaves_the_terminal_alone() -> None:
    file = io.StringIO()
    build_progress(Console(force_terminal=True, file=file), 400, "my-run").close("failed")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (83, "1:23"), (7283, "2:01:23"), (3 * 86400 + 7283, "3d 02:01:23")],
)
def test_clock(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (1.3, "1.300"),
        (12.345, "12.35"),
        (12345.6, "1.235e+04"),
        (1234.5, "1234"),
        (0.00001, "1.000e-05"),
        (0, "0.000"),
    ],
)
def test_loss_keeps_four_digits(loss: float, text: str) -> None:
    assert format_loss(loss) == text
