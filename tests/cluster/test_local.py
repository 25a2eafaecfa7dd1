"""The Ray that a run starts for itself: who may reach it, and who may read its files."""

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from listening import list_listeners
from processes import list_offspring
from tiny_runs import build_config, read_events

from sftray.cluster.local import make_private_folder, start_ray
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
def test_a_run_that_starts_ray_listens_on_the_loopback_alone_behind_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_here(tmp_path) as driver:
        (pids,) = [event["pids"] for event in read_events(tmp_path / "runs" / "mine") if event["state"] == "running"]
        listeners = list_listeners(list_offspring(driver))
        named = {name for name in ("gcs_server", "raylet", "ray::") for each in listeners if name in each.command}
        assert named == {"gcs_server", "raylet", "ray::"} and set(pids) <= {each.pid for each in listeners}
        assert [each for each in listeners if each.address != "127.0.0.1"] == []
        for pid in list_offspring(driver) - {driver}:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert b"RAY_AUTH_MODE=token" in Path("/proc", str(pid), "environ").read_bytes()
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
