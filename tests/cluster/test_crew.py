"""Workers that take job after job, on a real cluster: what they share, and what they must not."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from local_runs import build_job, hash_newest
from processes import has_ended
from ray.util import placement_group, placement_group_table, remove_placement_group
from s3_server import make_place
from tiny_runs import build_config, read_events, trace
from waiting import wait_until

from sftray.cluster import crew
from sftray.cluster.connection import connect_for
from sftray.cluster.launch import run_workers
from sftray.cluster.resources import Placement
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import DivergedError
from sftray.train_fn.places import as_path, write_whole

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]

HERE, DIVERGING = {"learning_rate": 1e-2}, {"learning_rate": 1e30, "schedule": "constant"}


@pytest.fixture(scope="module")
def placement(ray_address: str) -> Iterator[Placement]:
    with connect_for(ScalingConfig(num_workers=2, use_gpu=False)) as (placement, _):
        yield placement
        crew.dismiss()


def make_job(folder: Path, name: str, optim: dict[str, Any] = HERE, **train: Any) -> dict[str, Any]:
    train = {"epochs": 1, "save_every": 2, "eval_every": 0, **train}
    return build_job(build_config(folder, train=train, optim=optim), folder, name)


def run(job: dict[str, Any], placement: Placement, max_failures: int = 1) -> dict[str, Any]:
    return crew.run_on_crew(job, placement, max_failures, lambda: None)


def find(job: dict[str, Any], state: str) -> list[dict[str, Any]]:
    run_dir = as_path(job["run_dir"])
    events = read_events(run_dir) if (run_dir / "events.jsonl").exists() else []
    return [event for event in events if event["state"] == state]


def find_pids(job: dict[str, Any]) -> list[int]:
    """Of the workers of the last attempt, first rank first."""
    pids: list[int] = find(job, "running")[-1]["pids"]
    return pids


def list_groups() -> list[str]:
    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def test_jobs_share_workers_and_none_differs_from_a_run_alone(tmp_path: Path, placement: Placement) -> None:
    jobs = [make_job(tmp_path, name, {"learning_rate": rate}) for name, rate in (("a", 1e-2), ("b", 5e-3))]
    calls: list[int] = []
    for job in jobs:
        outcome = crew.run_on_crew(job, placement, 1, lambda: calls.append(1))
        assert (outcome["step"], outcome["stopped"]) == (6, False)
        assert [event["step"] for event in find(job, "checkpoint")] == [2, 4, 6]
    assert find_pids(jobs[0]) == find_pids(jobs[1])
    assert len(calls) > 2
    alone = make_job(tmp_path, "alone", {"learning_rate": 5e-3})
    run_workers(alone, placement, 0)
    assert find_pids(alone) != find_pids(jobs[1])
    assert trace(Path(alone["run_dir"])) == trace(Path(jobs[1]["run_dir"]))
    assert hash_newest(alone) == hash_newest(jobs[1])


def test_a_job_that_fails_costs_only_itself(tmp_path: Path, placement: Placement) -> None:
    first, second, third = (make_job(tmp_path, n, o) for n, o in (("a", HERE), ("b", DIVERGING), ("c", HERE)))
    run(first, placement)
    with pytest.raises(DivergedError):
        run(second, placement)
    assert run(third, placement)["step"] == 6
    assert find_pids(first) == find_pids(second) and not set(find_pids(first)) & set(find_pids(third))
    assert len(find(second, "running")) == 1
    assert hash_newest(third) == hash_newest(first)


@pytest.mark.chaos
def test_a_killed_worker_costs_time_and_the_next_job_gets_workers_that_never_failed(
    tmp_path: Path, placement: Placement
) -> None:
    job, after = make_job(tmp_path, "job", epochs=20), make_job(tmp_path, "after")

    def kill() -> None:
        wait_until(lambda: bool(find(job, "checkpoint")), 120)
        os.kill(find_pids(job)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert run(job, placement)["step"] == 120
    killer.join()
    assert [event["attempt"] for event in find(job, "running")] == [1, 2]
    assert [step for step, _ in trace(Path(job["run_dir"]))] == list(range(1, 121))
    assert run(after, placement, max_failures=0)["step"] == 6
    assert not set(find_pids(after)) & set(find_pids(job))


@pytest.mark.chaos
def test_workers_that_were_lost_while_they_waited_are_nobody_s_failure(tmp_path: Path, placement: Placement) -> None:
    before, after = make_job(tmp_path, "before"), make_job(tmp_path, "after")
    run(before, placement, max_failures=0)
    first, second = find_pids(before)
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: has_ended(first))  # Ray ends the other one once it has heard of it
    assert run(after, placement, max_failures=0)["step"] == 6
    assert find(after, "worker_failed") == [] and len(find(after, "running")) == 1


@pytest.mark.chaos
def test_workers_without_a_job_go_home_and_leave_nothing(tmp_path: Path, placement: Placement) -> None:
    crew.dismiss()
    waiting = crew.Crew(tmp_path / "home", placement, max_failures=0, idle_s=0.5)
    wait_until(lambda: not waiting.is_there)
    assert waiting.take(make_job(tmp_path, "late"), lambda: None) is None
    waiting.dismiss()
    assert list((tmp_path / "home").iterdir()) == []
    assert list_groups() == []
    wait_until(lambda: ray.available_resources().get("CPU") == 4.0)


def test_what_a_killed_director_leaves_is_freed(tmp_path: Path, placement: Placement) -> None:
    crew.dismiss()
    job, mark = make_job(tmp_path, "job", epochs=400), tmp_path / "pid"
    director = ray.remote(num_cpus=0, max_retries=0)(crew.run_on_crew)
    ended = director.remote(job, placement, 1, lambda: mark.write_text(str(os.getpid())))
    wait_until(lambda: bool(find(job, "checkpoint")))
    os.kill(int(mark.read_text()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ended)
    wait_until(lambda: all(has_ended(pid) for pid in find_pids(job)))
    home = Path(job["run_dir"]).parent / crew.CREWS
    assert len(list(home.iterdir())) == 1
    crew.free_lost(home)
    assert list(home.iterdir()) == []
    wait_until(lambda: list_groups() == [], 5)


@pytest.mark.chaos
def test_in_a_bucket_what_is_left_is_freed_while_the_next_workers_wait_for_it(
    tmp_path: Path, placement: Placement, s3_endpoint: str
) -> None:
    crew.dismiss()
    far, job = as_path(make_place(s3_endpoint)), make_job(tmp_path, "job")
    job["run_dir"] = str(far / "job")
    left, room = placement_group([{"CPU": 2}]), placement_group([{"CPU": 2}])  # together the whole cluster
    ray.get([left.ready(), room.ready()], timeout=60)
    mailbox = far / crew.CREWS / "workers-left"
    write_whole(mailbox / "director-lives", "1.0")
    write_whole(mailbox / "placement-group", left.id.hex())
    try:
        assert run(job, placement)["step"] == 6
        assert left.id.hex() not in list_groups() and room.id.hex() in list_groups()
        assert not mailbox.exists()
    finally:
        crew.dismiss()
        remove_placement_group(room)
