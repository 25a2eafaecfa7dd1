"""What checkpoints cost the training that goes on beside them.

    python tests/bench/checkpointing.py [--workers 1] [--saves 4] [--steps-between 12]

A run of a model of 60 million parameters (0.7 GB a checkpoint) in plain processes. Each step is timed from the end of
the one before, so that whatever a save adds to a step is in it. The cost of a save is what the steps from its begin
to its end took beyond the median of the others; it says at which cadence saves cost two per cent.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from local_runs import build_job
from tiny_runs import build_config, read_events, read_metrics

from sftray.cluster.processes import run_processes

_SHAPE = {
    "architecture": "llama",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 7,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
_GOAL = 0.02


def run(folder: Path, workers: int, saves: int, between: int) -> Path:
    steps = saves * between + between // 2
    config = build_config(
        folder,
        model={"scratch": _SHAPE, "tokenizer": "quickstart"},
        train={
            **{"epochs": steps, "max_steps": steps, "save_every": between, "eval_every": 0, "log_every": 1},
            **{"global_batch_size": 32, "micro_batch_size": 8},
        },
        scaling={"num_workers": workers},
    )
    job = build_job(config, folder)
    if not run_processes(job, workers).finished:
        raise RuntimeError("the run did not end")
    return Path(job["run_dir"])


def measure(run_dir: Path) -> dict[str, Any]:
    """Seconds: of a step without a save, of the cost of each save, of its stall and of its writing."""
    rows = read_metrics(run_dir)
    ends = {row["step"]: row["time"] for row in rows}
    last = max(ends)
    saved = [event for event in read_events(run_dir) if event["state"] == "checkpoint" and event["step"] < last]
    steps = {step: ends[step] - ends[step - 1] for step in sorted(ends) if step - 1 in ends and 1 < step < last}
    # A save begins after its step has been recorded, so it is the next one that waits for its snapshot.
    touched = {
        event["step"]: [step for step in steps if step > event["step"] and ends[step - 1] < event["time"]]
        for event in saved
    }
    beside = {step for found in touched.values() for step in found}
    usual = statistics.median(seconds for step, seconds in steps.items() if step not in beside)
    costs = [sum(steps[step] - usual for step in found) for found in touched.values()]
    return {
        "step": usual,
        "costs": costs,
        "stalls": [event["stall_seconds"] for event in saved],
        "beside": [len(found) for found in touched.values()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--steps-between", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(run(Path(folder), options.workers, options.saves, options.steps_between))
    cost = statistics.median(found["costs"])
    print(f"a step without a save beside it: {found['step']:.2f} s")
    for added, stall, beside in zip(found["costs"], found["stalls"], found["beside"], strict=True):
        print(f"a save: {added:.2f} s in all, {stall:.2f} s of it the snapshot's stall, {beside} step(s) beside it")
    print(f"median cost of a save {cost:.2f} s: {_GOAL:.0%} of the time at one save in {cost / _GOAL:.0f} s")


if __name__ == "__main__":
    main()
