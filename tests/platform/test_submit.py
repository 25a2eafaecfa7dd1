"""What follows from the jobs that a cluster knows. No cluster."""

import pytest

from sftray.cluster.jobs import Job, State
from sftray.platform.bundle import Bundle
from sftray.platform.submit import choose_id, read_exit_code


def job(id: str, state: State, exit_code: int | None = None) -> Job:
    return Job(id, "mine", state, exit_code, "", None)


@pytest.mark.parametrize(
    ("state", "given", "code"),
    [
        ("succeeded", 0, 0),
        ("failed", 6, 6),  # diverged: the command's own
        ("stopped", 75, 75),
        ("stopped", None, 75),
        ("stopped", -9, 75),
        ("failed", None, 5),  # it never began
        ("failed", -9, 5),
    ],
)
def test_the_exit_code_is_the_commands_own(state: State, given: int | None, code: int) -> None:
    assert read_exit_code(job("sftray-mine", state, given)) == code


def test_a_run_has_one_job_and_each_resumption_another() -> None:
    train, resume = (Bundle([command, "x"], {}, [], "mine") for command in ("train", "resume"))
    ended, active = job("sftray-mine", "stopped"), job("sftray-mine-resume-1", "running")
    assert choose_id(train, [ended]) == "sftray-mine"
    assert choose_id(resume, [ended]) == "sftray-mine-resume-1"
    assert choose_id(resume, [ended, active]) == "sftray-mine-resume-1", "the one that runs"
    assert choose_id(resume, [ended, job("sftray-mine-resume-1", "failed")]) == "sftray-mine-resume-2"
