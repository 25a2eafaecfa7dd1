"""The time from the end of a trial to the first step of the next one, in the trial's process and on workers.

    python tests/bench/trials.py [--trials N]

A tiny model, so that what is measured is what a sweep adds. Both are measured in one run, on a cluster of two CPUs
that is started here.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rich.console import Console
from tiny_runs import build_config, read_events, read_metrics

from sftray.platform.sweep import SweepOptions, tune_run
from sftray.platform.sweep_files import read_ledger
from sftray.train_fn.config_file import Resolved


def measure(folder: Path, workers: int, trials: int) -> list[float]:
    """Seconds from each trial's end to the first step of the one after it, one trial at a time."""
    config = build_config(folder, scaling={"num_workers": workers, "use_gpu": False})
    options = SweepOptions(
        space={"optim.learning_rate": {"log_uniform": [1e-3, 1e-2]}}, trials=trials, concurrent=1, scheduler="none"
    )
    sweep_dir = tune_run(Resolved(config, {}), f"w{workers}", options, Console(file=io.StringIO()))
    runs = [sweep_dir / record.name for record in read_ledger(sweep_dir)]
    ends = [read_events(run)[-1]["time"] for run in runs]
    firsts = [next(row["time"] for row in read_metrics(run) if row["step"] == 1) for run in runs]
    return [first - end for end, first in zip(ends[:-1], firsts[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5)
    trials = parser.parse_args().trials
    medians = {}
    for workers, name in ((1, "in the trial's process"), (2, "on two workers")):
        with tempfile.TemporaryDirectory() as folder:
            gaps = sorted(measure(Path(folder), workers, trials))
        medians[name] = gaps[len(gaps) // 2]
        print(f"{name}: {', '.join(f'{gap:.2f}' for gap in gaps)} s; median {medians[name]:.2f} s")
    here, there = medians.values()
    print(f"on workers / in process: {there / here:.0f}")


if __name__ == "__main__":
    main()
