"""What the controller writes and raises when workers fail, with a run directory and no cluster."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from tiny_runs import read_events

from sftray.cluster.failure_callback import FailureCallback, find_last_step
from sftray.train_fn.errors import ClusterError, ConfigError, Problem
from sftray.train_fn.failure import Failure, WorkerFailed, add_failure
from sftray.train_fn.journal import Journal

LOST = RayActorError(error_msg="its worker process has died.")


def start_run(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.add_event("starting", 0)
    return journal


def start_attempt(journal: Journal, attempt: int, step: int = 0) -> None:
    journal.add_event("running", attempt, step=step, pids=[1, 2], nodes=["one", "two"])


def find_failed(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["state"] == "worker_failed"]


def describe(event: dict[str, Any]) -> tuple[int, str, int, str, int]:
    return event["attempt"], event["kind"], event["rank"], event["node"], event["step"]


def test_a_lost_worker_gets_its_line_with_node_and_last_step(tmp_path: Path) -> None:
    journal = start_run(tmp_path)
    start_attempt(journal, 1)
    for step in (4, 5):
        journal.add_metrics({"step": step})
    partner = Failure("partner", 0, 1, 5, "one", "RuntimeError", "Connection closed by peer")
    FailureCallback(tmp_path, 3).after_exception(None, {0: WorkerFailed(partner), 1: LOST})
    (event,) = find_failed(tmp_path)
    assert describe(event) == (1, "lost", 1, "two", 5)


def test_the_run_ends_after_the_last_allowed_loss_whether_or_not_the_attempt_had_begun(tmp_path: Path) -> None:
    journal, callback = start_run(tmp_path), FailureCallback(tmp_path, 1)
    callback.after_exception(None, {1: RayActorError(error_msg="the first")})  # while it loaded the model
    with pytest.raises(ClusterError, match=r"more than 1 time\(s\); the last was rank 0"):
        callback.after_exception(None, {0: RayActorError(error_msg="the second")})
    assert [event["attempt"] for event in find_failed(tmp_path)] == [1, 2]
    journal.add_event("starting", 2)  # resumed: it counts anew
    start_attempt(journal, 3)
    callback.after_exception(None, {1: RayActorError(error_msg="the third")})
    assert find_failed(tmp_path)[-1]["attempt"] == 3


def test_one_that_ended_itself_was_frozen(tmp_path: Path) -> None:
    journal = start_run(tmp_path)
    start_attempt(journal, 1)
    journal.add_event("frozen", 1, "step 6 has taken 31 s", rank=1, step=5, file="stacks/attempt-1-rank-1.txt")
    FailureCallback(tmp_path, 3).after_exception(None, {0: LOST, 1: LOST})
    (event,) = find_failed(tmp_path)
    assert describe(event)[:3] == (1, "frozen", 1)
    assert event["why"] == "step 6 has taken 31 s" and event["file"] == "stacks/attempt-1-rank-1.txt"


def test_a_worker_that_wrote_its_line_itself_gets_no_second_one(tmp_path: Path) -> None:
    journal = start_run(tmp_path)
    start_attempt(journal, 1)
    bug = Failure("bug", 1, 1, 5, "two", "KeyError", "'x'")
    add_failure(journal, bug)
    FailureCallback(tmp_path, 3).after_exception(None, {1: WorkerFailed(bug)})
    assert len(find_failed(tmp_path)) == 1


def test_a_node_that_is_taken_back_is_told_once_and_costs_nothing(tmp_path: Path) -> None:
    journal, callback = start_run(tmp_path), FailureCallback(tmp_path, 0)
    start_attempt(journal, 1)
    taken = {1: RayActorError(error_msg="gone", preempted=True)}
    for _ in range(3):  # Ray asks at each of its looks until the node is gone
        callback.after_exception(None, taken)
    assert [describe(event)[:3] for event in find_failed(tmp_path)] == [(1, "preempted", 1)]


def test_what_a_person_must_mend_ends_the_run_and_gets_no_line(tmp_path: Path) -> None:
    start_attempt(start_run(tmp_path), 1)
    mine = ConfigError(Problem("wrong"))
    with pytest.raises(ConfigError) as caught:
        FailureCallback(tmp_path, 3).after_exception(
            None, {0: LOST, 1: WorkerFailed(Failure("user", 1, 1, 0, "two"), mine)}
        )
    assert caught.value is mine
    assert find_failed(tmp_path) == []


def test_a_run_whose_files_are_gone_is_decided_upon_all_the_same(tmp_path: Path) -> None:
    FailureCallback(tmp_path / "gone", 1).after_exception(None, {0: LOST})
    with pytest.raises(ClusterError):
        FailureCallback(tmp_path / "gone", 0).after_exception(None, {0: LOST})


@pytest.mark.parametrize(
    ("text", "step"), [(None, None), ("", None), ('{"step": 3}\n{"step": 4}\n', 4), ('{"step": 3}\n{"st', 3)]
)
def test_the_last_step_is_that_of_the_last_whole_line(tmp_path: Path, text: str | None, step: int | None) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert find_last_step(tmp_path) == step
