"""What follows from the jobs that a cluster knows. No cluster."""

import pytest

from sftray.cluster.ending import SAY_END, find_end
from sftray.cluster.jobs import Job, State
from sftray.platform.bundle import Bundle
from sftray.platform.cli import main
from sftray.platform.submit import choose_id, find_address, read_exit_code
from sftray.train_fn.errors import ConfigError


def job(id: str, state: State, exit_code: int | None = None, place: str = "/mnt/runs/mine", asked: str = "") -> Job:
    return Job(id, "mine", state, exit_code, "", None, place, asked)


@pytest.mark.parametrize(
    ("state", "given", "log", "code"),
    [
        ("succeeded", 0, "", 0),
        ("failed", 6, "", 6),  # diverged: the command's own
        ("stopped", None, "step 3/8\nsftray has ended with exit code 75\n", 75),
        ("stopped", None, "sftray has ended with exit code 130\n", 130),  # before anything was saved
        ("stopped", None, "sftray has ended with exit code 0\n", 0),  # it had just finished
        ("stopped", None, "step 3/8\n", 75),  # killed: it was too late for a word
        ("stopped", -9, "", 75),
        ("failed", None, "", 5),  # it never began
        ("failed", -9, "", 5),
    ],
)
def test_the_exit_code_is_the_commands_own(state: State, given: int | None, log: str, code: int) -> None:
    assert read_exit_code(job("sftray-mine", state, given), log) == code


@pytest.mark.parametrize("asked", [True, False])
def test_a_command_says_its_exit_code_last_where_it_is_asked_to(
    asked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SAY_END, "1" if asked else "")
    assert main(["nonsense"]) == 2
    assert find_end(capsys.readouterr().out) == (2 if asked else None)


def test_a_run_has_one_job_and_each_resumption_another() -> None:
    train, resume = (Bundle([command, "x"], {}, [], "mine", "/mnt/runs/mine") for command in ("train", "resume"))
    ended, active = job("sftray-mine", "stopped"), job("sftray-mine-resume-1", "running")
    assert choose_id(train, [ended]) == "sftray-mine"
    assert choose_id(resume, [ended]) == "sftray-mine-resume-1"
    assert choose_id(resume, [ended, active]) == "sftray-mine-resume-1", "the one that runs"
    assert choose_id(resume, [ended, job("sftray-mine-resume-1", "failed")]) == "sftray-mine-resume-2"
    elsewhere = job("sftray-mine-resume-1", "running", place="s3://other/mine")
    assert choose_id(resume, [ended, elsewhere]) == "sftray-mine-resume-2", "another run of the same name"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://ray.example.com", "https://ray.example.com"),
        (None, "http://api:8265"),
    ],
)
def test_who_is_asked_goes_before_who_stands_in_the_environment(
    asked: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://api:8265")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert find_address(asked) == found


@pytest.mark.parametrize("asked", ["head:6379", "ray://head:10001", "auto", "ftp://head"])
def test_what_is_no_dashboard_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a dashboard"):
        find_address(asked)
