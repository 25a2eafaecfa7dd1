"""The process in which a cluster keeps what it knows dies and comes back, with its memory in a redis."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from outcomes import Outcome, record
from ray_node import lead_node
from redis_server import run_redis
from short_runs import count_steps
from tiny_runs import build_config, read_events, trace

from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.system]

AWAY_S = 10.0  # after 60 Ray ends all that has not found it again (RAY_gcs_rpc_server_reconnect_timeout_s)


@dataclass(frozen=True)
class Server:
    """Ray's gcs_server: `environment` and `command` are those that it was started with."""

    pid: int
    command: list[str]
    environment: dict[str, str]

    @contextlib.contextmanager
    def run_again(self) -> Iterator[None]:
        process = subprocess.Popen(self.command, env=self.environment)
        try:
            yield
        finally:
            process.kill()  # asked to end, it waits for nodes that live
            process.wait()


def find_server(leader: int) -> Server:
    """The one in the process group of a node's leader."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_text().split("\0")[:-1]
            if command and command[0].endswith("gcs_server") and os.getpgid(int(entry.name)) == leader:
                pairs = (entry / "environ").read_text().split("\0")[:-1]
                return Server(int(entry.name), command, dict(pair.split("=", 1) for pair in pairs))
    raise AssertionError("no gcs_server")


def test_a_run_does_not_notice_that_the_head_forgets_and_remembers(tmp_path: Path) -> None:
    changes = {
        "train": {"epochs": 10_000, "save_every": 10, "eval_every": 0},
        "scaling": {"num_workers": 2, "use_gpu": False},
    }
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(build_config(tmp_path, **changes), {})))
    run_dir = tmp_path / "runs" / "run"
    with contextlib.ExitStack() as stack:
        redis, password = stack.enter_context(run_redis(tmp_path / "redis"))
        more = ("--redis-password", password)
        head = stack.enter_context(lead_node(2, more=more, RAY_REDIS_ADDRESS=redis))
        process = start_command(tmp_path, "train", "run.yaml", "name=run", address=head.address)
        wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, tmp_path)
        server, killed, reached = find_server(head.leader.pid), time.time(), count_steps(run_dir)
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: time.time() >= killed + AWAY_S, process, tmp_path)
        stack.enter_context(server.run_again())
        wait_for(lambda: count_steps(run_dir) >= reached + 100, process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, read_output(tmp_path)
    states = [event["state"] for event in read_events(run_dir) if event["state"] != "checkpoint"]
    assert states == ["starting", "running", "stopped"], "it is the first attempt still"
    whole = check_ledger(run_dir)
    assert whole.holds and whole.step == trace(run_dir)[-1][0], whole.describe()
    fault = f"SIGKILL of the head's gcs_server, back after {AWAY_S:.0f} s with its memory in redis"
    record(Outcome("node", fault, 1, "nothing: the run waits at its next checkpoint", 1, 0))
