"""Saves in a thread: one at a time, tried again while the store refuses, and never lost in silence."""

import threading
from pathlib import Path

import pytest
from waiting import wait_until

from sftray.train_fn.checkpoint import Checkpoint, Manifest
from sftray.train_fn.errors import CheckpointError, Problem, StoreError
from sftray.train_fn.saver import Saver

DONE = Checkpoint(Path("step-000001"), Manifest(1, 1, "c", "d"))


def refuse() -> Checkpoint:
    raise StoreError(Problem("the store is full"))


def test_training_goes_on_while_a_save_is_in_flight() -> None:
    gate, saver = threading.Event(), Saver(lambda error, pause: None)
    saver.start(lambda: DONE if gate.wait(60) else refuse())
    assert not saver.has_saved()
    gate.set()
    wait_until(saver.has_saved)
    assert saver.take_saved() == DONE and saver.take_saved() is None and not saver.has_saved()


def test_a_refused_save_is_tried_until_the_store_takes_it() -> None:
    told: list[str] = []
    answers = iter([refuse, refuse, lambda: DONE])

    def tell(error: StoreError | None, pause: float) -> None:
        told.append("taken" if error is None else error.problems[0].what)

    saver = Saver(tell, first_wait=0.001)
    saver.start(lambda: next(answers)())
    assert saver.take_saved() == DONE
    assert told == ["the store is full", "the store is full", "taken"]


def test_a_store_that_refuses_for_too_long_ends_the_run() -> None:
    saver = Saver(lambda error, pause: None, patience=0.0)
    saver.start(refuse)
    wait_until(saver.has_saved)
    with pytest.raises(StoreError, match="the store is full"):
        saver.take_saved()
    saver.start(lambda: DONE)
    assert saver.take_saved() == DONE, "the error is told once"


def test_who_stops_in_a_hurry_does_not_wait_for_the_store() -> None:
    tried, saver = [], Saver(lambda error, pause: refused.set())
    refused = threading.Event()

    def save() -> Checkpoint:
        tried.append(1)
        return refuse()

    saver.start(save)
    assert refused.wait(60)
    with pytest.raises(StoreError):
        saver.take_saved(hurry=True)
    assert len(tried) == 2, "once more, at once, and then given up"


def test_what_is_not_the_stores_fault_is_not_tried_again() -> None:
    tried, saver = [], Saver(lambda error, pause: None)

    def save() -> Checkpoint:
        tried.append(1)
        raise CheckpointError(Problem("it is another model's"))

    saver.start(save)
    with pytest.raises(CheckpointError):
        saver.take_saved()
    assert len(tried) == 1
