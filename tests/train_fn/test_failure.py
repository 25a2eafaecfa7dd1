"""Of what kind an error is, and what a worker leaves behind that fails."""

import errno
import pickle
from pathlib import Path

import pytest
import torch
from tiny_runs import read_events

from sftray.train_fn.errors import ConfigError, DataError, DivergedError, Problem, StoreError
from sftray.train_fn.failure import (
    Failure,
    WorkerFailed,
    classify_error,
    compute_wait,
    describe_failure,
    find_last_failure,
    read_failures,
    tell_failure,
)
from sftray.train_fn.journal import Journal
from sftray.train_fn.standing import Standing

WRONG = Problem("wrong")


class ActorDiedError(Exception):
    """Named as Ray's, which this floor does not know."""


class ActorUnavailableError(Exception):
    """As the other."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError(WRONG), "user"),
        (DataError(WRONG), "user"),
        (DivergedError(WRONG), "diverged"),
        (StoreError(WRONG), "store"),
        (OSError(errno.ENOSPC, "No space left on device"), "store"),
        (OSError(errno.ESTALE, "Stale file handle"), "store"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "bug"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "memory"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9"), "partner"),
        (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 120000ms for recv operation"), "partner"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a"), "partner"),
        (torch.distributed.DistStoreError("Socket Timeout"), "partner"),
        (torch.distributed.DistBackendError("NCCL error: unhandled cuda error"), "bug"),
        (ActorDiedError("the barrier is gone"), "partner"),
        (ActorUnavailableError("the network to the barrier is cut"), "partner"),
        (ConnectionError("Connection closed by peer"), "bug"),  # of a hub, for example
        (IndexError("index out of range in self"), "bug"),
    ],
)
def test_the_kind_of_an_error(error: Exception, kind: str) -> None:
    assert classify_error(error) == kind


@pytest.mark.parametrize(
    ("kind", "earlier", "seconds"),
    [("store", 0, 5), ("store", 1, 10), ("store", 3, 40), ("store", 9, 60), ("partner", 5, 15), ("bug", 5, 0)],
)
def test_who_waits_before_it_fails(kind: str, earlier: int, seconds: float) -> None:
    assert compute_wait(kind, earlier) == seconds  # type: ignore[arg-type]


def fail_with(error: Exception, folder: Path) -> WorkerFailed:
    journal = Journal(folder)
    journal.add_event("starting", 0)
    standing = Standing(rank=1, world_size=2, attempt=2, step=41)
    with pytest.raises(WorkerFailed) as caught, tell_failure(journal, standing):
        raise error
    return caught.value


def test_a_bug_leaves_a_line_and_its_traceback(tmp_path: Path) -> None:
    told = fail_with(KeyError("no such\nkey"), tmp_path)
    (event,) = [event for event in read_events(tmp_path) if event["state"] == "worker_failed"]
    assert {key: event[key] for key in ("attempt", "rank", "step", "kind", "error", "file")} == {
        "attempt": 2, "rank": 1, "step": 41, "kind": "bug", "error": "KeyError",
        "file": "crash-attempt-2-rank-1.txt",
    }  # fmt: skip
    assert "\n" not in event["why"]
    crash = (tmp_path / "crash-attempt-2-rank-1.txt").read_text()
    assert crash.startswith("Traceback") and "raise error" in crash
    sent = pickle.loads(pickle.dumps(told))
    assert sent.failure == told.failure and sent.user_error is None
    assert read_failures(read_events(tmp_path)) == [told.failure]


@pytest.mark.parametrize("error", [ConfigError(WRONG), DivergedError(WRONG)])
def test_what_a_person_must_mend_leaves_no_line(tmp_path: Path, error: Exception) -> None:
    told = fail_with(error, tmp_path)
    assert told.user_error is error
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl"}
    assert [event["state"] for event in read_events(tmp_path)] == ["starting"]


def test_an_error_that_cannot_be_sent_is_sent_in_words(tmp_path: Path) -> None:
    error = RuntimeError("held")
    error.held = lambda: None  # type: ignore[attr-defined]  # a function of a function cannot be pickled
    sent = pickle.loads(pickle.dumps(fail_with(error, tmp_path)))
    assert (sent.failure.error, sent.failure.why) == ("RuntimeError", "held")


def test_a_file_that_cannot_be_written_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftray.train_fn.failure._FIRST_BACKOFF_S", 0.0)
    told = fail_with(OSError(errno.ENOSPC, "No space left on device", "/runs/x/metrics.jsonl"), tmp_path)
    assert told.failure.kind == "store"
    assert isinstance(told.user_error, StoreError)
    assert told.user_error.problems[0].where == "/runs/x/metrics.jsonl"
    assert [event["state"] for event in read_events(tmp_path)] == ["starting", "worker_failed"]


def test_nothing_is_said_of_what_goes_well(tmp_path: Path) -> None:
    with tell_failure(Journal(tmp_path), Standing(0, 1, 1)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_first_line_of_an_attempt_is_its_cause() -> None:
    rows = [
        {"state": "worker_failed", "attempt": 1, "rank": 2, "kind": "bug", "step": 7, "node": "a"},
        {"state": "worker_failed", "attempt": 1, "rank": 0, "kind": "bug", "step": 7, "node": "b"},
        {"state": "running", "attempt": 2, "step": 4},
        {"state": "worker_failed", "attempt": 2, "rank": 1, "kind": "lost", "step": 9, "node": "a"},
    ]
    assert [(f.attempt, f.rank) for f in read_failures(rows)] == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("states", "attempt"),
    [
        ([], None),
        ([("running", 1), ("worker_failed", 1)], 1),
        ([("running", 1), ("worker_failed", 1), ("running", 2)], None),
        ([("running", 1), ("worker_failed", 1), ("worker_failed", 2)], 2),  # the second while it loaded
    ],
)
def test_why_there_is_another_attempt(states: list[tuple[str, int]], attempt: int | None) -> None:
    rows = [{"state": s, "attempt": a, "rank": 0, "kind": "lost", "step": 1, "node": "a"} for s, a in states]
    found = find_last_failure(rows)
    assert (found and found.attempt) == attempt


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            Failure("lost", 1, 1, 41, "a", "E", "its node died"),
            "rank 1 was lost (its node died; node a, after step 41)",
        ),
        (Failure("bug", 0, 1, 4, "a", "E", "x"), "rank 0 failed (E: x; node a, after step 4)"),
        (Failure("bug", 0, 1, 4, "a", "E", ""), "rank 0 failed (E; node a, after step 4)"),
        (Failure("frozen", 0, 1, 4, "a", "", "x"), "rank 0 was frozen (x; node a, after step 4)"),
    ],
)
def test_a_failure_in_a_line(failure: Failure, words: str) -> None:
    assert describe_failure(failure) == words
