"""Running the trials of a sweep with Ray Tune."""

import functools
import logging
import os
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.trainable import wrap_function

from sftray.cluster.crew import CREWS, dismiss, free_all, free_lost
from sftray.cluster.resources import Node, Placement
from sftray.cluster.trial import run_trial
from sftray.train_fn.places import name_storage, remove_tree

# A trial whose workers are elsewhere only directs them. Tune refuses a trial without resources, and a fraction of
# a CPU would keep the last worker out of a full cluster: so it asks for a byte of memory's worth.
_DIRECTOR = {"CPU": 0, "memory": 1 << 20}
_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its CSV, JSON and TensorBoard files
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails at once has validated nothing
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # a trial is suggested when there is room for it, not before
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TrialSource(Protocol):
    """Where trials come from and what hears of them. All calls come from the driver's own thread."""

    def next_trial(self) -> tuple[str, dict[str, Any]] | None:
        """A name and a job; None if there are no more."""

    def on_validation(self, name: str, metrics: dict[str, Any]) -> None: ...

    def on_lost(self, name: str) -> None:
        """The trial's process was lost more often than allowed."""


def run_trials(
    source: TrialSource, placement: Placement, limit: int, concurrent: int, max_failures: int, cache: Path
) -> None:
    """Run at most `limit` trials of `source`, `concurrent` at a time.

    Args:
        cache: a folder for Tune's own state. It is never read back: trials go on from their own directories.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_ONE_LINE)
    crews = cache.parent / CREWS
    remove_tree(cache)
    free_all(crews)  # the sweep has one driver
    names: dict[str, str] = {}
    try:
        tune.Tuner(
            tune.with_resources(_build_trainable(placement, max_failures), _get_resources(placement)),
            tune_config=tune.TuneConfig(
                metric="val/loss",
                mode="min",
                search_alg=tune.search.ConcurrencyLimiter(_Feed(source, names), max_concurrent=concurrent),
                scheduler=_Listener(source),
                num_samples=limit,
                reuse_actors=True,
                trial_name_creator=_name_trial,
                trial_dirname_creator=_name_trial,
            ),
            run_config=tune.RunConfig(
                name=cache.name,
                **name_storage(cache.parent),
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        ).fit()
    finally:
        free_lost(crews)
        if not list(crews.glob("workers-*")):  # a bucket cannot say yet whose directors were just killed
            remove_tree(crews)
        remove_tree(cache)


class _OneLine(logging.Filter):
    """What Tune says of a trial whose process was lost, without the traceback of its own that tells nothing more."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            why = str(record.exc_info[1]).strip().partition("\n")[0].partition(". ")[0][:200]
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {why}", (), None
        return True


_ONE_LINE = _OneLine()


def _build_trainable(placement: Placement, max_failures: int) -> type:
    """What Tune runs in an actor: trial after trial, and a farewell to the workers that the actor keeps.

    Ray would end them with the actor, but keep what they have reserved as long as the driver lives.
    """
    function: Any = wrap_function(functools.partial(run_trial, placement=placement, max_failures=max_failures))

    class Trials(function):  # type: ignore[misc]  # Ray has no annotations here
        def cleanup(self) -> None:
            try:
                super().cleanup()
            finally:
                dismiss()

    return Trials


def _name_trial(trial: Any) -> str:
    name: str = trial.config["name"]
    return name


def _get_resources(placement: Placement) -> tune.PlacementGroupFactory:
    """Of a trial of one worker, what the worker needs; where they are several, their director needs nothing."""
    if placement.num_workers != 1:
        return tune.PlacementGroupFactory([_DIRECTOR])
    labels = {"bundle_label_selector": [dict(placement.labels)]} if placement.labels else {}
    return tune.PlacementGroupFactory([placement.to_resources()], **labels)


def count_concurrent(placement: Placement, nodes: list[Node], asked: int | None = None) -> int:
    """How many trials run side by side: as many as fit, and no more than were `asked` for.

    Where nodes are waited for, trials of one worker run as many as were asked for: those that do not fit yet are what
    an autoscaler adds nodes for. One of several workers would fail if they came too late.
    """
    fitting = placement.count_side_by_side(nodes)
    if asked is None:
        return fitting
    return asked if placement.wait_s and placement.num_workers == 1 else min(fitting, asked)


class _Feed(Searcher):  # type: ignore[misc]  # Ray has no annotations here
    """Hands Tune the trials of the source, as the points that it searches."""

    def __init__(self, source: TrialSource, names: dict[str, str]) -> None:
        super().__init__(metric="val/loss", mode="min")
        self._source, self._names = source, names

    def suggest(self, trial_id: str) -> Any:
        found = self._source.next_trial()
        if found is None:
            return Searcher.FINISHED
        name, job = found
        self._names[trial_id] = name
        return {"name": name, "job": job}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            self._source.on_lost(self._names[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's ledger is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""


class _Listener(FIFOScheduler):  # type: ignore[misc]  # Ray has no annotations here
    """Tells the source of each validation. What follows from it the trial learns by an order, and acts itself."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()
        self._source = source

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "milestone" in result:
            self._source.on_validation(trial.config["name"], result)
        decision: str = FIFOScheduler.CONTINUE
        return decision
