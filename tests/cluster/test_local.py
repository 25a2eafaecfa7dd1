"""The Ray that a run starts for itself: who reaches it, and who reads its files."""

import contextlib
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from knocking import ask_as_stranger
from listening import list_listeners
from processes import list_offspring, list_processes
from tiny_runs import build_config, read_events
from waiting import wait_until

from sftray.cluster.local import LOOPBACK, make_private_folder
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import ClusterError


@contextlib.contextmanager
def run_here(folder: Path) -> Iterator[int]:
    """A run of two workers that goes on until this ends; gives its driver's process id once it trains."""
    config = build_config(folder, train={"epochs": 10_000, "eval_every": 0, "save_every": 0})
    (folder / "run.yaml").write_text(dump_config(Resolved(config.model_copy(update={"name": "mine"}), {})))
    driver = start_command(folder, "train", "run.yaml")
    try:
        wait_for(lambda: (folder / "runs" / "mine" / "metrics.jsonl").exists(), driver, folder)
        yield driver.pid
    finally:
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(60)
    assert code == 75, read_output(folder)


@pytest.mark.ray
def test_a_run_that_starts_ray_keeps_it_to_the_loopback_and_behind_a_token(tmp_path: Path) -> None:
    with run_here(tmp_path) as driver:
        (pids,) = [event["pids"] for event in read_events(tmp_path / "runs" / "mine") if event["state"] == "running"]
        family = list_offspring(driver)
        listeners = list_listeners(family)
        assert {*pids, driver} <= {each.pid for each in listeners}
        assert [each for each in listeners if each.address != LOOPBACK] == []
        answers = ask_as_stranger(each.port for each in listeners)
        assert answers.pop("RayletDriver/ListNamedActors") == set(), "it has no port for foreign clients"
        assert answers == {question: {"UNAUTHENTICATED"} for question in answers}
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        commands = " ".join(process.command for process in list_processes() if process.pid in family)
        (session,) = set(re.findall(r"--session-dir=(\S+)", commands))
        assert any(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in Path(session).parents)
        assert (tmp_path / "token").read_text() not in commands


@pytest.mark.ray
@pytest.mark.parametrize("started", ["gcs_server", "raylet/raylet"])
def test_sigterm_while_ray_starts_is_an_interrupt_and_leaves_nothing(started: str, tmp_path: Path) -> None:
    """Ray's own way would be to end with 1 or 15, without a word.

    Agents that its raylet was just starting find out by themselves that it is gone, in a minute.
    """
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(build_config(tmp_path), {})))
    driver = start_command(tmp_path, "train", "run.yaml")
    family: set[int] = set()

    def is_started() -> bool:
        family.update(list_offspring(driver.pid))
        return any(started in process.command for process in list_processes() if process.pid in family)

    wait_for(is_started, driver, tmp_path)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 130, read_output(tmp_path)
    assert "interrupted" in read_output(tmp_path) and "SIGTERM" in read_output(tmp_path)
    wait_until(lambda: all(p.pid not in family or "agent" in p.command.lower() for p in list_processes()))
    assert not list((tmp_path / "runs").glob("run*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray's files would go."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path / f"sftray-{os.geteuid()}"


def test_rays_files_go_where_only_their_owner_enters(place: Path) -> None:
    before = os.umask(0)
    try:
        assert make_private_folder() == place and stat.S_IMODE(place.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    place.chmod(0o777)
    assert make_private_folder() == place and stat.S_IMODE(place.stat().st_mode) == 0o700


def test_rays_files_do_not_go_where_somebody_else_has_laid_a_link(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match="it is not a folder of this user\n  fix  RAY_TMPDIR"):
        make_private_folder()
    place.unlink()
    place.touch()
    with pytest.raises(ClusterError, match="File exists\n  fix  RAY_TMPDIR"):
        make_private_folder()
