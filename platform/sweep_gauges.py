"""The trials of a sweep in Ray's metrics: `ray_sftray_trials{sweep="…", state="…"}` counts those in each state."""

from pathlib import Path

from ray.util.metrics import Gauge

from sftray.platform.sweep_files import read_ledger
from sftray.platform.sweep_watch import ENDS, Watch, Watched, watch_trial

STATES = ("waiting", "starting", "running", *ENDS)


class SweepGauges(Watch):
    """Keeps the counts while the sweep runs."""

    def __init__(self, sweep_dir: Path) -> None:
        super().__init__(sweep_dir)
        self._sweep_dir = sweep_dir
        self._trials: dict[str, Watched] = {}
        self._gauge = Gauge("sftray_trials", description="trials by state", tag_keys=("sweep", "state"))

    def look(self) -> None:
        for record in read_ledger(self._sweep_dir):
            if record.name not in self._trials:
                self._trials[record.name] = watch_trial(self._sweep_dir, record)
        for trial in self._trials.values():
            trial.look()
        for state, count in count_states([trial.state for trial in self._trials.values()]).items():
            self._gauge.set(count, tags={"sweep": self._sweep_dir.name, "state": state})


def count_states(states: list[str]) -> dict[str, int]:
    """How many are in each of STATES; those in none are 0."""
    return {state: states.count(state) for state in STATES}
