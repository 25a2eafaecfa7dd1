"""Whether a mailbox still has an owner: by a lock on a disk, in a bucket by a sign of life that is watched."""

from pathlib import Path

import pytest
from s3_server import make_place

from sftray.cluster.crew_mail import Judge, open_mailbox
from sftray.train_fn.places import as_path, write_whole


class Clock:
    """One that stands until it is set forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def far(s3_endpoint: str) -> Path:
    folder = as_path(make_place(s3_endpoint)) / "workers-1"
    write_whole(folder / "director-lives", "1.5")  # by a clock that differs by decades
    return folder


def look(judge: Judge, folder: Path) -> bool:
    with judge.take_if_lost(folder) as is_lost:
        return is_lost


def watch(judge: Judge, folder: Path, clock: Clock, seconds: float, every: float) -> list[bool]:
    found = []
    for _ in range(round(seconds / every)):
        clock.now += every
        found.append(look(judge, folder))
    return found


def test_on_a_disk_the_first_look_knows_and_one_at_a_time_is_told(tmp_path: Path) -> None:
    give_up, one, another = open_mailbox(tmp_path / "workers-1"), Judge(), Judge()
    assert not look(one, tmp_path / "workers-1")
    give_up()
    with one.take_if_lost(tmp_path / "workers-1") as is_lost:
        assert is_lost and not look(another, tmp_path / "workers-1")
    assert look(another, tmp_path / "workers-1")


def test_in_a_bucket_a_sign_must_stand_still_whatever_time_it_says(far: Path) -> None:
    clock = Clock()
    judge = Judge(clock)
    assert not look(judge, far)
    assert watch(judge, far, clock, 30, 5) == [False] * 6
    assert watch(judge, far, clock, 5, 5) == [True]


@pytest.mark.slow
def test_in_a_bucket_a_sign_that_moves_is_one_of_life(far: Path) -> None:
    clock = Clock()
    judge = Judge(clock)
    for beat in range(20):
        write_whole(far / "director-lives", f"{beat}")
        assert not any(watch(judge, far, clock, 30, 5))


def test_a_long_time_without_a_look_proves_little(far: Path) -> None:
    """The bucket may have been away for everybody: who looks again knows of no more than that nobody could write."""
    clock = Clock()
    judge = Judge(clock)
    look(judge, far)
    assert watch(judge, far, clock, 3600, 1800) == [False] * 2
    assert watch(judge, far, clock, 20, 10) == [False, True]


def test_the_owner_of_a_mailbox_in_a_bucket_gives_signs(far: Path) -> None:
    folder = far.with_name("workers-2")
    give_up = open_mailbox(folder)
    try:
        assert float((folder / "director-lives").read_text()) > 0
    finally:
        give_up()
