"""A real run that is stopped by a signal, on Ray: what it saves, and that it goes on as if nothing had been."""

import io
import json
import signal
from pathlib import Path

import pytest
from commands import read_output, start_command, wait_for
from local_runs import build_job
from rich.console import Console
from tiny_runs import build_config, read_events, trace

from sftray.cluster.processes import run_processes
from sftray.platform.driver import resume_run
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.journal import CHECKPOINTS


@pytest.mark.ray
def test_sigterm_saves_in_this_step_and_resume_gives_the_straight_run(ray_address: str, tmp_path: Path) -> None:
    changes = {"train": {"epochs": 30, "save_every": 0, "eval_every": 0}}
    config = build_config(tmp_path, **changes)
    straight = build_job(config, tmp_path, "straight")
    assert run_processes(straight, 2).finished  # in plain processes, which start faster
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
    process = start_command(tmp_path, "train", "run.yaml", "--json", "name=stopped", address=ray_address)
    run_dir = tmp_path / "runs" / "stopped"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(trace(run_dir)) >= 3, process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, read_output(tmp_path)
    (saved,) = list_checkpoints(run_dir / CHECKPOINTS)
    stopped = read_events(run_dir)[-1]
    assert (stopped["state"], stopped["why"], stopped["step"]) == ("stopped", "SIGTERM", saved.step)
    assert saved.step == trace(run_dir)[-1][0] < 180, "nothing was trained that is not saved"
    output = read_output(tmp_path)
    assert json.loads(output[output.rindex('{\n "error"') : output.rindex("}") + 1])["exit_code"] == 75
    assert f"sftray resume {run_dir}" in output
    resume_run(run_dir, Console(file=io.StringIO()))
    assert trace(run_dir) == trace(Path(straight["run_dir"]))


@pytest.mark.ray
def test_ctrl_c_while_workers_wait_for_room_leaves_nothing(ray_address: str, tmp_path: Path) -> None:
    import ray

    ray.init(address=ray_address, log_to_driver=False, logging_level="ERROR")
    try:
        room = ray.util.placement_group([{"CPU": 4}])
        ray.get(room.ready(), timeout=60)
        config = build_config(tmp_path)
        (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})))
        process = start_command(tmp_path, "train", "run.yaml", "name=waiting", address=ray_address)
        run_dir = tmp_path / "runs" / "waiting"
        wait_for(lambda: (run_dir / "events.jsonl").exists(), process, tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, read_output(tmp_path)
        assert [event["state"] for event in read_events(run_dir)] == ["starting", "interrupted"]
        ray.util.remove_placement_group(room)
    finally:
        ray.shutdown()
    resumed = resume_run(run_dir, Console(file=io.StringIO()))
    assert resumed.run_dir == run_dir and read_events(run_dir)[-1]["state"] == "finished"
