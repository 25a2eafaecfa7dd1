"""The process that speaks to W&B ends by itself, whatever becomes of its parent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_probe import read_history, serve_silence

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sftray.platform.wandb_process"]


def write_input(tmp_path: Path, mode: str, *lines: str, finish_seconds: float = 20.0) -> str:
    init = {"mode": mode, "project": "p", "id": "x", "dir": str(tmp_path)}
    return "\n".join([json.dumps({"init": init, "finish_seconds": finish_seconds}), *lines])


def test_report_says_what_became_of_the_rows(tmp_path: Path) -> None:
    text = write_input(tmp_path, "offline", '{"step": 1}', '{"step": 2}', "0\n")
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, timeout=60, check=True)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    report = {"mirrored": 2, "finished": True, "folder": str(folder), "url": None, "error": None}
    assert json.loads(done.stdout) == report


def test_half_a_row_of_a_killed_parent_is_left_out(tmp_path: Path) -> None:
    text = write_input(tmp_path, "offline", '{"step": 1}', '{"step": 2, "tra')
    done = subprocess.run(COMMAND, input=text, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["mirrored"] == 1
    assert [row["step"] for row in read_history(tmp_path)] == [1]


def test_it_ends_in_time_where_neither_wandb_nor_parent_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0badc0de" * 5)
    with serve_silence() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        pipe = subprocess.PIPE
        with subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdin and process.stdout
            process.stdout.close()
            process.stdin.write(write_input(tmp_path, "online", '{"step": 1}\n', finish_seconds=1.0))
            process.stdin.close()
            assert process.wait(timeout=10) == 1  # wandb alone would take 20 s and more
