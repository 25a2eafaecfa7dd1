"""Workers that are killed, frozen, stuck or wrong, on a real cluster: what is tried again, and what is said."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from local_runs import build_job, hash_newest
from outcomes import Outcome, record
from processes import has_ended
from tiny_runs import build_config, read_events, read_metrics, trace
from waiting import wait_until

from sftray.cluster.connection import connect_for
from sftray.cluster.launch import run_workers
from sftray.cluster.processes import run_processes
from sftray.cluster.resources import Placement
from sftray.train_fn.config import RunConfig
from sftray.train_fn.errors import BugError, ClusterError, ConfigError
from sftray.train_fn.failure import read_failures
from sftray.train_fn.token_store import TokenStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]


def make_job(folder: Path, **more: Any) -> tuple[RunConfig, dict[str, Any]]:
    config = build_config(folder, train={"epochs": 4, "save_every": 2, "eval_every": 0})
    job = build_job(config, folder, "run", **more)
    return config, job


def run(config: RunConfig, job: dict[str, Any], max_failures: int = 3) -> dict[str, Any]:
    with connect_for(config.scaling) as (placement, _):
        return run_workers(job, placement, max_failures)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run in plain processes, which start faster; with Ray Train it has the same bits."""
    _, job = make_job(tmp_path_factory.mktemp("reference"))
    assert run_processes(job, 2).finished
    return job


def find(run_dir: Path, state: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir) if event["state"] == state]


class Signalled(threading.Thread):
    """Sends a signal to the second worker once the run has a checkpoint."""

    def __init__(self, run_dir: Path, number: int) -> None:
        super().__init__(daemon=True)
        self.run_dir, self._number = run_dir, number
        self.pid, self.sent = 0, 0.0

    def run(self) -> None:
        path = self.run_dir / "events.jsonl"
        wait_until(lambda: path.exists() and bool(find(self.run_dir, "checkpoint")), 120)
        self.pid = find(self.run_dir, "running")[0]["pids"][1]
        os.kill(self.pid, self._number)
        self.sent = time.time()


def assert_equal_runs(job: dict[str, Any], reference: dict[str, Any]) -> None:
    assert trace(Path(job["run_dir"])) == trace(Path(reference["run_dir"]))
    assert hash_newest(job) == hash_newest(reference)


def record_recovery(fault: str, signalled: Signalled, reached: int, start: dict[str, Any]) -> None:
    """`start`: the event with which the run went on."""
    rows = read_metrics(signalled.run_dir)
    seconds = next(row["time"] for row in rows if row["time"] > start["time"]) - signalled.sent
    again = max(reached - start["step"], 0)
    record(Outcome("process", fault, 1, "rank, node, step and cause of the lost one", 1, again, seconds))


@pytest.mark.chaos  # test_train_on_ray.py has one that is killed, too
def test_a_killed_worker_is_named_and_the_run_ends_as_the_straight_one(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    config, job = make_job(tmp_path)
    run_dir = Path(job["run_dir"])
    killer = Signalled(run_dir, signal.SIGKILL)
    killer.start()
    assert run(config, job)["step"] == 24
    (failed,) = find(run_dir, "worker_failed")
    assert (failed["rank"], failed["kind"], failed["attempt"]) == (1, "lost", 1)
    assert failed["step"] >= 2 and failed["node"] == find(run_dir, "running")[0]["nodes"][1]
    second = find(run_dir, "running")[1]
    assert second["attempt"] == 2 and second["step"] >= 2
    assert second["why"].startswith("rank 1 was lost (its process died: it was killed or it crashed; node ")
    assert not list(run_dir.glob("crash-*"))
    assert_equal_runs(job, reference)
    record_recovery("SIGKILL of 1 of 2 workers of Ray Train", killer, failed["step"], second)


@pytest.mark.chaos
def test_a_frozen_worker_is_noticed_ended_and_replaced(
    tmp_path: Path, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "8")
    config, job = make_job(tmp_path, watchdog={"step": 3.0, "between": 3.0, "grace": 60.0, "look": 0.2})
    run_dir = Path(job["run_dir"])
    stopper = Signalled(run_dir, signal.SIGSTOP)
    stopper.start()
    assert run(config, job)["step"] == 24
    (failed,) = find(run_dir, "worker_failed")
    assert (failed["rank"], failed["kind"]) == (1, "lost") and failed["why"] == "it did not answer for 8 s"
    assert failed["time"] - stopper.sent < 60
    assert has_ended(stopper.pid)
    stacks = (run_dir / "stacks" / "attempt-1-rank-0.txt").read_text()  # of the one that waited for it
    assert "train_worker" in stacks and "has taken" in stacks
    assert_equal_runs(job, reference)
    fault = "SIGSTOP of 1 of 2 workers (noticed after 8 s, for this test)"
    record_recovery(fault, stopper, failed["step"], find(run_dir, "running")[1])


def plant_a_token_out_of_range(tokens: Path) -> None:
    """The last example of the training data gets an id that the model has no embedding for."""
    path = TokenStore(tokens, "train").folder / "train-00000.arrow"
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    column = table.column("input_ids").to_pylist()
    column[-1][0] = 1_000_000
    index = table.schema.get_field_index("input_ids")
    field = table.schema.field(index)
    table = table.set_column(index, field, pa.array(column, field.type))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def test_the_same_error_at_the_same_step_ends_the_run_after_the_second(tmp_path: Path) -> None:
    config, job = make_job(tmp_path)
    run_dir = Path(job["run_dir"])
    plant_a_token_out_of_range(Path(job["tokens"]))
    with pytest.raises(BugError) as caught:
        run(config, job, max_failures=5)
    assert caught.value.exit_code == 70
    (problem,) = caught.value.problems
    assert "IndexError: index out of range in self" in problem.what
    assert "attempts 1 and 2 ended alike" in str(problem.why)
    first, second = read_failures(read_events(run_dir))
    assert (first.attempt, second.attempt) == (1, 2)
    assert (first.rank, first.step, first.error) == (second.rank, second.step, "IndexError")
    for failure in (first, second):
        crash = run_dir / f"crash-attempt-{failure.attempt}-rank-{failure.rank}.txt"
        assert "Traceback" in crash.read_text() and crash.stat().st_mode == (run_dir / "events.jsonl").stat().st_mode
    assert problem.where == str(run_dir / str(second.file))
    assert find(run_dir, "running")[1]["why"].startswith(f"rank {first.rank} failed (IndexError: index out of range")


def test_what_the_person_caused_is_not_tried_again(tmp_path: Path) -> None:
    config, job = make_job(tmp_path)
    job["config"]["model"]["scratch"]["num_attention_heads"] = 5  # 32 is no multiple of it
    with pytest.raises(ConfigError):
        run(config, job)
    assert not Path(job["run_dir"], "events.jsonl").exists()  # no attempt ran, none was said to have failed


@pytest.fixture
def no_network(ray_address: str) -> Iterator[None]:
    """A job whose workers look for each other on a network that is not there."""
    ray.init(log_to_driver=False, runtime_env={"env_vars": {"GLOO_SOCKET_IFNAME": "nothere0"}})
    yield
    ray.shutdown()


@pytest.mark.chaos
@pytest.mark.usefixtures("no_network")
def test_workers_that_do_not_reach_each_other_are_tried_a_few_times(tmp_path: Path) -> None:
    _, job = make_job(tmp_path)
    with pytest.raises(ClusterError) as caught:
        run_workers(job, Placement(num_workers=2, cpus_per_worker=1, use_gpu=False), 3)
    (problem,) = caught.value.problems
    assert problem.what == "the workers did not start, though that was tried 4 times"
    assert "nothere0" in str(problem.why)  # each of the four got its CPUs, of which there are four
