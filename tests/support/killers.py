"""Killing what a run has started, at a moment that its files tell."""

import os
import signal
import threading
from pathlib import Path

from sftray.train_fn.journal import EVENTS, read_lines


def kill_a_worker_after(run_dir: Path, state: str) -> None:
    """SIGKILL the second worker as soon as the run's events say `state`."""
    never = threading.Event()
    for _ in range(12_000):
        events = list(read_lines(run_dir / EVENTS)) if (run_dir / EVENTS).exists() else []
        if any(event["state"] == state for event in events):
            (pids,) = [event["pids"] for event in events if event["state"] == "running"]
            os.kill(pids[1], signal.SIGKILL)
            return
        never.wait(0.005)  # the way to the run's end is short
    raise AssertionError(f"the run in {run_dir} never came to {state}")
