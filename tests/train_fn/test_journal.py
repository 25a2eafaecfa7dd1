"""The growing files of a run: whole lines, whoever writes them and whenever they are killed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sftray.train_fn.errors import StoreError
from sftray.train_fn.journal import EVENTS, METRICS, SAMPLES, Journal, read_lines

WRITER = """
import sys
from pathlib import Path
from sftray.train_fn.journal import Journal

journal = Journal(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()  # all writers start together, when their input is closed
for number in range(50):
    journal.add_event("running", int(sys.argv[2]), number=number)
    journal.add_sample({"writer": sys.argv[2], "number": number, "answer": sys.argv[2] * 20_000})
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


@pytest.mark.slow
def test_writers_at_once_count_on_and_never_mix_their_lines(tmp_path: Path) -> None:
    """Lines of 20 kB, more than any buffer or pipe takes at once."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for i in range(1, 5)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    events = list(read_lines(tmp_path / EVENTS))
    assert [event["seq"] for event in events] == list(range(200))
    for attempt in range(1, 5):
        assert [event["number"] for event in events if event["attempt"] == attempt] == list(range(50))
    samples = list(read_lines(tmp_path / SAMPLES))
    assert len(samples) == 200 and all(s["answer"] == s["writer"] * 20_000 for s in samples)


def test_an_event_says_who_when_and_why(journal: Journal) -> None:
    journal.add_event("running", 1)
    journal.add_event("stopped", 1, "time limit", step=7)
    first, second = read_lines(journal.folder / EVENTS)
    assert list(first) == ["seq", "time", "attempt", "node", "state", "why"]
    assert {key: second[key] for key in ("seq", "attempt", "state", "why", "step")} == {
        "seq": 1,
        "attempt": 1,
        "state": "stopped",
        "why": "time limit",
        "step": 7,
    }
    assert second["time"] >= first["time"] > 1e9 and second["node"]


@pytest.mark.parametrize("torn", ['{"seq": 1, "ti', "{", '{"seq": 1, "attempt": 9}', "\u00e9"])
def test_a_torn_last_line_is_left_out_and_the_next_line_is_whole(torn: str, journal: Journal) -> None:
    journal.add_event("running", 1)
    with (journal.folder / EVENTS).open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [event["seq"] for event in read_lines(journal.folder / EVENTS)] == [0]
    assert journal.count_attempts() == 1
    journal.add_event("running", 2)
    assert [(event["seq"], event["attempt"]) for event in read_lines(journal.folder / EVENTS)] == [(0, 1), (1, 2)]
    assert journal.count_attempts() == 2


@pytest.mark.parametrize("name", [METRICS, SAMPLES])
def test_a_torn_line_spoils_no_metrics_and_no_samples(name: str, journal: Journal) -> None:
    add = journal.add_metrics if name == METRICS else journal.add_sample
    add({"step": 1})
    with (journal.folder / name).open("a") as file:
        file.write('{"step": 2, "train/lo')
    add({"step": 2})
    assert list(read_lines(journal.folder / name)) == [{"step": 1}, {"step": 2}]


def test_a_file_of_nothing_but_a_torn_line_starts_anew(journal: Journal) -> None:
    (journal.folder / METRICS).write_text('{"st')
    journal.add_metrics({"step": 1})
    assert list(read_lines(journal.folder / METRICS)) == [{"step": 1}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_text_that_float_reads(value: float, journal: Journal) -> None:
    journal.add_metrics({"step": 1, "train/loss": value, "val/loss": 2.5})
    line = (journal.folder / METRICS).read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(row["train/loss"], str) and row["val/loss"] == 2.5
    assert str(float(row["train/loss"])) == str(value)


def test_text_of_any_kind_is_one_line(journal: Journal) -> None:
    answer = "a\nb\r\n\u2028c\x00\U0001f600 \u4f60\u597d"
    journal.add_sample({"answer": answer})
    assert (journal.folder / SAMPLES).read_bytes().count(b"\n") == 1
    assert [row["answer"] for row in read_lines(journal.folder / SAMPLES)] == [answer]


def fill(journal: Journal) -> None:
    for step in (0, 1, 2, 3):
        journal.add_metrics({"step": step, "val/loss": math.nan})
    for when, step in (("before", 0), ("after", 3)):
        journal.add_sample({"when": when, "step": step})


def read_steps(journal: Journal, name: str) -> list[Any]:
    return [row["step"] for row in read_lines(journal.folder / name)]


@pytest.mark.parametrize(
    ("step", "metrics", "samples"),
    [
        pytest.param(2, [0, 1, 2], [0], id="in the middle"),
        pytest.param(3, [0, 1, 2, 3], [0], id="at the end, where the last answers are given again"),
        pytest.param(0, [], [], id="at the beginning, where all is measured again"),
    ],
)
def test_what_a_resumed_run_writes_again_is_forgotten(
    step: int, metrics: list[int], samples: list[int], journal: Journal
) -> None:
    fill(journal)
    journal.rewind(step)
    assert read_steps(journal, METRICS) == metrics and read_steps(journal, SAMPLES) == samples
    assert sorted(path.name for path in journal.folder.iterdir()) == [METRICS, SAMPLES]
    assert all(row["val/loss"] == "nan" for row in read_lines(journal.folder / METRICS))


def test_a_run_without_files_has_nothing_to_forget(journal: Journal) -> None:
    journal.rewind(5)
    assert journal.count_attempts() == 0 and list(journal.folder.iterdir()) == []


def test_a_rewind_drops_a_torn_line(journal: Journal) -> None:
    fill(journal)
    with (journal.folder / METRICS).open("a") as file:
        file.write('{"step": 4')
    journal.rewind(1)
    assert read_steps(journal, METRICS) == [0, 1]


def test_a_refused_line_is_an_error(journal: Journal) -> None:
    (journal.folder / METRICS).mkdir()
    with pytest.raises(IsADirectoryError):
        journal.add_metrics({"step": 1})
    (journal.folder / METRICS).rmdir()
    journal.add_metrics({"step": 2})
    assert list(read_lines(journal.folder / METRICS)) == [{"step": 2}], "who was told need not be told again"


def test_lines_wait_in_their_order_until_the_store_takes_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path, patient=True)
    for name in (METRICS, EVENTS):
        (tmp_path / name).mkdir()
    for step in (1, 2):
        journal.add_metrics({"step": step})
        journal.add_event("skipped_step", 1, step=step)
    with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        journal.write_waiting()
    for name in (METRICS, EVENTS):
        (tmp_path / name).rmdir()
    Journal(tmp_path).add_event("starting", 1)  # another process was faster
    journal.add_metrics({"step": 3})
    journal.write_waiting()
    journal.write_waiting()
    assert [row["step"] for row in read_lines(tmp_path / METRICS)] == [1, 2, 3]
    events = list(read_lines(tmp_path / EVENTS))
    assert [(event["seq"], event["state"], event.get("step")) for event in events] == [
        (0, "starting", None), (1, "skipped_step", 1), (2, "skipped_step", 2)
    ]  # fmt: skip


FULL = """
import resource, signal, sys
from pathlib import Path
from sftray.train_fn.journal import Journal, METRICS, read_lines

journal = Journal(Path(sys.argv[1]), patient=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(100):
    journal.add_metrics({"step": step, "text": "x" * 40})
assert len(list(read_lines(journal.folder / METRICS))) < 20
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.write_waiting()
"""


def test_a_line_that_fitted_by_half_is_whole_in_the_end(tmp_path: Path) -> None:
    """The process may write files of 1,000 bytes for a while, which ends in the middle of a line."""
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True)
    assert [row["step"] for row in read_lines(tmp_path / METRICS)] == list(range(100))


def test_lines_are_durable_before_a_checkpoint_says_that_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, flush = [], os.fsync

    def watch(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        flush(handle)

    monkeypatch.setattr(os, "fsync", watch)
    journal = Journal(tmp_path, patient=True)
    journal.add_metrics({"step": 1})
    journal.add_event("running", 1)
    assert flushed == [], "no step waits for the disk"
    journal.write_waiting()
    assert {tmp_path / METRICS, tmp_path / EVENTS, tmp_path} == set(flushed)
    flushed.clear()
    journal.write_waiting()
    assert flushed == []


def test_a_line_that_is_no_json_is_an_error_and_in_nobodys_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path, patient=True)
    with pytest.raises(TypeError):
        journal.add_event("skipped_step", 1, examples={1, 2})
    journal.add_event("running", 1)
    assert [(event["seq"], event["state"]) for event in read_lines(tmp_path / EVENTS)] == [(0, "running")]
