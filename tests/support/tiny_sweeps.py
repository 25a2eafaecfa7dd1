"""Tiny but whole sweeps through the driver."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from tiny_runs import build_config, read_events

from sftray.platform.rehearsal import read_values
from sftray.platform.sweep import SweepOptions, tune_run
from sftray.platform.sweep_files import TrialRecord, read_ledger
from sftray.train_fn.config_file import Resolved


def sweep(folder: Path, space: dict[str, Any], changes: dict[str, Any] | None = None, **options: Any) -> Path:
    """Run a sweep of tiny runs of one worker each; returns its directory."""
    config = build_config(folder, **{"scaling": {"num_workers": 1, "use_gpu": False}, **(changes or {})})
    asked = SweepOptions(space=space, **{"scheduler": "none", **options})
    return tune_run(Resolved(config, {}), "tiny", asked, Console(file=io.StringIO()))


def read_states(sweep_dir: Path) -> dict[str, str]:
    """The last state of each trial."""
    return {record.name: read_events(sweep_dir / record.name)[-1]["state"] for record in read_ledger(sweep_dir)}


def read_results(sweep_dir: Path) -> list[Any]:
    """Of each trial what `read_result` gives, in the order of settings."""
    results = [read_result(record, sweep_dir / record.name) for record in read_ledger(sweep_dir)]
    return sorted(results, key=lambda result: result[:2])


def read_result(record: TrialRecord, run_dir: Path) -> tuple[str, int | None, list[dict[str, Any]]]:
    """A trial's settings and every number that does not measure time or memory."""
    return json.dumps(record.point, sort_keys=True), record.seed, read_values(run_dir)
