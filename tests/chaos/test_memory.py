"""Workers that are ended for want of memory: by the kernel, and by Ray before the kernel would have to."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import Group, make_group
from commands import read_output, start_command, wait_for
from outcomes import Outcome, record
from processes import has_ended
from ray_node import join_node, start_node
from short_runs import count_steps, list_starts
from tiny_runs import build_config, read_events, read_metrics, trace

from sftray.platform.ledger_check import check_ledger
from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.system]

MB = 1 << 20
NODE, THRESHOLD = 6144 * MB, 0.5  # of which Ray holds more for too much

# Takes as many bytes as it is told to, and holds them until its input ends.
BALLOON = """
import sys
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
print("full", flush=True)
sys.stdin.read()
"""


def begin(folder: Path, address: str) -> tuple[Path, "subprocess.Popen[bytes]", list[int]]:
    """A run of two workers, which are at work; their process ids."""
    changes = {
        "train": {"epochs": 10_000, "save_every": 10, "eval_every": 0},
        "scaling": {"num_workers": 2, "use_gpu": False},
    }
    (folder / "run.yaml").write_text(dump_config(Resolved(build_config(folder, **changes), {})))
    process = start_command(folder, "train", "run.yaml", "name=run", address=address)
    run_dir = folder / "runs" / "run"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and count_steps(run_dir) >= 15, process, folder)
    return run_dir, process, list_starts(run_dir)[0]["pids"]


def end_after_recovery(fault: str, ended: float, why: str, folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Stop the run once attempt 2 has clearly gone on, and record it. `ended`: when the worker was."""
    run_dir = folder / "runs" / "run"
    wait_for(lambda: len(list_starts(run_dir)) > 1, process, folder)
    second = list_starts(run_dir)[1]
    wait_for(lambda: read_metrics(run_dir)[-1]["time"] > second["time"], process, folder)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, read_output(folder)
    (failure,) = [event for event in read_events(run_dir) if event["state"] == "worker_failed"]
    assert (failure["kind"], failure["attempt"], second["attempt"]) == ("lost", 1, 2)
    said = f"rank {failure['rank']} was lost ({why}; node {failure['node']}, after step {failure['step']})"
    assert said in read_output(folder)
    whole = check_ledger(run_dir)
    assert whole.holds and whole.step == trace(run_dir)[-1][0], whole.describe()
    seconds = next(row["time"] for row in read_metrics(run_dir) if row["time"] > second["time"]) - ended
    saw = f"attempt 2 goes on: rank, node and step; {why}"
    again = max(failure["step"] - second["step"], 0)
    record(Outcome("process", f"{fault} (ledger whole)", 1, saw, 1, again, seconds))


def test_a_worker_that_the_kernel_ends_for_want_of_memory(tmp_path: Path) -> None:
    with start_node(2) as address, make_group(MB) as group:
        _, process, pids = begin(tmp_path, address)
        group.add(pids[1])
        wait_for(lambda: has_ended(pids[1]), process, tmp_path)
        ended = time.time()
        assert group.count_kills() == 1
        why = "its process died: it was killed or it crashed"
        end_after_recovery("1 of 2 workers, killed by the kernel for memory", ended, why, tmp_path, process)


@pytest.fixture
def small_node() -> Iterator[tuple[str, Group]]:
    """The address of a cluster whose workers are on a node of little memory, and that node's group."""
    settings = {"RAY_memory_usage_threshold": str(THRESHOLD)}
    with make_group(NODE) as group, start_node(0) as address, join_node(address, 2, group.as_host(), **settings):
        yield address, group


@contextlib.contextmanager
def take_memory(group: Group, size: int) -> Iterator[None]:
    """Another process in the group takes so many bytes for as long as this lasts."""
    command = [*group.as_host().enter, sys.executable, "-c", BALLOON, str(size)]
    balloon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert balloon.stdout and balloon.stdout.readline() == b"full\n"
        yield
    finally:
        balloon.communicate()


def test_workers_that_ray_ends_for_want_of_memory(small_node: tuple[str, Group], tmp_path: Path) -> None:
    address, group = small_node
    _, process, pids = begin(tmp_path, address)
    with take_memory(group, int(NODE * THRESHOLD) - group.measure() + 200 * MB):
        wait_for(lambda: any(has_ended(pid) for pid in pids), process, tmp_path)
        ended = time.time()
    assert group.count_kills() == 0
    why = "Ray ended it, for its node was running low on memory: a smaller train.micro_batch_size needs less"
    end_after_recovery("workers that Ray ends, for their node is low on memory", ended, why, tmp_path, process)
