"""One trial of a sweep: what Ray Tune runs in a trial's actor.

A trial of one worker trains in the actor itself, so that the next trial finds Python, torch and the model's code
loaded. One of several workers only directs them, and keeps them for the next trial as well. Either way the worker
function is that of `sftray train`, and the run's directory is the truth: Ray Tune is told of each validation, and
no more.
"""

import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from sftray.cluster.crew import run_on_crew
from sftray.cluster.orders import Order, Ordered, clear_orders, has_order, stop_file, take_order
from sftray.cluster.resources import Placement
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.errors import UserError
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, EVENTS, METRICS, Journal
from sftray.train_fn.memory import free_memory
from sftray.train_fn.places import as_path, write_whole
from sftray.train_fn.resume import adopt_checkpoint
from sftray.train_fn.tail import Tail

Metrics = dict[str, float]

OUR_BUG = 70  # the exit code of what nobody foresaw


def run_trial(start: dict[str, Any], placement: Placement, max_failures: int) -> None:
    """Run a trial to its end, and leave its directory saying how it ended.

    Args:
        start: `job`, as `train_worker` takes it.

    It raises nothing that the trial's own settings caused: Tune would only try it again.
    """
    job = start["job"]
    run_dir = as_path(job["run_dir"])
    journal = Journal(run_dir)
    clear_orders(run_dir)
    kind = "GPU" if placement.use_gpu else "CPU"
    journal.add_event("starting", journal.count_attempts(), f"{placement.num_workers} worker(s) on {kind}")
    train = _train_here if placement.num_workers == 1 else _train_on_workers
    while True:
        outcome = _guard(journal, lambda job=job: train(job, placement, max_failures))  # type: ignore[misc]
        order = take_order(run_dir)
        if outcome is None:
            return
        if order is None or not outcome["stopped"]:
            state = "stopped" if outcome["stopped"] else "finished"
            journal.add_event(state, journal.count_attempts(), step=outcome["step"])
            return
        if order.kind == "prune":
            journal.add_event("pruned", journal.count_attempts(), order.why, **order.facts)
            return
        job = adopt(job, order)


def _guard(journal: Journal, act: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What `act` returns; None where it failed, which the trial's events then say."""
    try:
        return act()
    except Ordered:
        return {"stopped": True}
    except UserError as error:
        problem = error.problems[0]
        why = f"{problem.what} ({problem.why})" if problem.why else problem.what
        journal.add_event("failed", journal.count_attempts(), why, exit_code=error.exit_code)
    except Exception as error:  # whatever it is, it ends this trial alone; its traceback stays with the trial
        write_whole(journal.folder / "crash.txt", traceback.format_exc())
        why = f"{type(error).__name__}: {error}"[:500]
        journal.add_event("failed", journal.count_attempts(), why, exit_code=OUR_BUG)
    return None


def _train_here(job: dict[str, Any], placement: Placement, max_failures: int) -> dict[str, Any]:
    """Train in this process: there is no worker that could be lost apart from it.

    Ray Train's local mode is not used: inside of a trial its helpers refuse to work.
    """
    from sftray.train_fn.door import open_alone
    from sftray.train_fn.worker import train_worker  # not above: who directs workers needs no model's code

    run_dir = as_path(job["run_dir"])

    def report(metrics: Metrics, folder: Path | None) -> None:
        if "milestone" in metrics:
            report_to_tune(run_dir, metrics)
            if metrics["milestone"] < 1.0 and has_order(run_dir):
                raise Ordered

    try:
        return train_worker(job, open_alone(report))
    finally:
        free_memory()


def _train_on_workers(job: dict[str, Any], placement: Placement, max_failures: int) -> dict[str, Any]:
    """Train on workers of this process, and hand their validations on while they do."""
    run_dir = as_path(job["run_dir"])
    validations = _Validations(run_dir)

    def tell() -> None:
        for metrics in validations.read():
            report_to_tune(run_dir, metrics)

    stop_files = [*job["stop_files"], str(stop_file(run_dir))]
    return run_on_crew({**job, "stop_files": stop_files}, placement, max_failures, tell)


class _Validations:
    """The validations of a run that is written elsewhere, each once its checkpoint is there."""

    def __init__(self, run_dir: Path) -> None:
        self._metrics, self._events = Tail(run_dir / METRICS), Tail(run_dir / EVENTS)
        self._waiting: dict[int, Metrics] = {}
        self._saved: set[int] = set()
        self._metrics.read()  # what was there before is known
        self._events.read()

    def read(self) -> list[Metrics]:
        self._saved |= {row["step"] for row in self._events.read() if row.get("state") == "checkpoint"}
        self._waiting |= {row["step"]: dict(row) for row in self._metrics.read() if "milestone" in row}
        ready = sorted(step for step in self._waiting if step in self._saved)
        return [self._waiting.pop(step) for step in ready]


def report_to_tune(run_dir: Path, metrics: Metrics) -> None:
    """Tell Tune of a validation, with a pointer to the run that holds the checkpoint. Returns when it has decided."""
    told = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    with tempfile.TemporaryDirectory() as folder:
        pointer = {"run_dir": str(run_dir), "step": metrics["step"]}
        Path(folder, "pointer.json").write_text(json.dumps(pointer), encoding="utf-8")
        tune.report({**told, "trial": run_dir.name}, checkpoint=tune.Checkpoint(folder))


def adopt(job: dict[str, Any], order: Order) -> dict[str, Any]:
    """Take over the donor's weights and optimizer, and the new config; returns the job to go on with.

    The trial's own checkpoints go: they belong to settings that it has given up. Where the donor's is not whole,
    or gone since the donor follows another itself, the trial goes on as it was.
    """
    assert order.donor is not None and order.config_text is not None  # of every exploit
    run_dir = as_path(job["run_dir"])
    journal, root = Journal(run_dir), run_dir / CHECKPOINTS
    donor = as_path(order.donor) / CHECKPOINTS
    donated = [c for c in list_checkpoints(donor) if c.step == order.step]
    least = journal.count_attempts() + 1
    if not donated or adopt_checkpoint(donated[-1], donor, root, run_dir.name, least) is None:
        why = f"{order.donor} has no whole checkpoint of step {order.step} any more"
        journal.add_event("exploit_skipped", journal.count_attempts(), why)
        return job
    write_whole(run_dir / CONFIG, order.config_text)
    journal.add_event("exploited", journal.count_attempts(), order.why, **order.facts)
    return {**job, "config": order.config, "config_hash": order.config_hash}
