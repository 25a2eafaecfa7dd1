"""The time from the kill of a worker to the first step of the next attempt.

    python tests/bench/recovery.py [--kills N]

A tiny run of two workers, on a cluster of two CPUs that is started here; one worker after another is killed with
SIGKILL, each once the attempt has saved a checkpoint. A tiny model, so that what is measured is what Ray and the
imports of a worker take.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from tiny_runs import build_config, read_events, read_metrics, train

from sftray.train_fn.errors import StoppedError

_NEVER = threading.Event()
_LOOK_S, _LIMIT_S = 0.02, 180.0


def run(folder: str, kills: int) -> None:
    """The run whose workers are killed: long enough not to end by itself."""
    config = build_config(
        Path(folder),
        train={"epochs": 100_000, "save_every": 20, "eval_every": 0, "log_every": 1},
        scaling={"max_failures": kills},
        store={"path": str(Path(folder) / "runs"), "keep_checkpoints": 2},
    )
    with contextlib.suppress(StoppedError):  # it is told to stop when all has been measured
        train(config)


def wait_for(run_dir: Path, state: str, attempt: int) -> dict[str, Any]:
    """The first event of this state in this attempt."""
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end:
        events = read_events(run_dir) if (run_dir / "events.jsonl").exists() else []
        for event in events:
            if event["state"] == state and event["attempt"] == attempt:
                return event
        _NEVER.wait(_LOOK_S)
    raise RuntimeError(f"attempt {attempt} was never {state}")


def find_first_step(run_dir: Path, attempt: int) -> tuple[float, float]:
    """Unix seconds at which the attempt began, with its model built, and at which its first step was recorded."""
    running = wait_for(run_dir, "running", attempt)
    end = time.monotonic() + _LIMIT_S
    while time.monotonic() < end:
        for row in read_metrics(run_dir):
            if row["step"] > running["step"] and row["time"] >= running["time"]:
                return running["time"], row["time"]
        _NEVER.wait(_LOOK_S)
    raise RuntimeError(f"attempt {attempt} made no step")


def measure(kills: int) -> list[float]:
    """Seconds from each kill to the first step after it."""
    seconds = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = get_context("spawn").Process(target=run, args=(folder, kills), name="sftray-bench-run")
        process.start()
        try:
            run_dir = Path(folder) / "runs" / "tiny"
            for attempt in range(1, kills + 1):
                wait_for(run_dir, "checkpoint", attempt)
                running = wait_for(run_dir, "running", attempt)
                killed = time.time()
                os.kill(running["pids"][attempt % 2], signal.SIGKILL)
                began, stepped = find_first_step(run_dir, attempt + 1)
                seconds.append(stepped - killed)
                print(f"{stepped - killed:.2f} s; the model was built after {began - killed:.2f} s", flush=True)
        finally:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3)
    seconds = sorted(measure(parser.parse_args().kills))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"kill to first new step: median {seconds[len(seconds) // 2]:.2f} s, load {load}")


if __name__ == "__main__":
    main()
