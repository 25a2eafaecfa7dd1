"""Which trials a sweep still has to run, and what follows from what they report.

All state is in the sweep's directory: a feed that is built anew after a crash goes on where the last one was.
"""

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler

from sftray.cluster.orders import Order, give_order
from sftray.platform.driver import build_job
from sftray.platform.sweep_files import Point, SweepSettings, TrialRecord, add_trial, read_ledger
from sftray.platform.trial_directory import (
    as_loss,
    is_final,
    read_end,
    read_validations,
    resolve_trial,
    write_trial,
)
from sftray.train_fn.checkpoint import find_best
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.errors import Problem, StoppedError
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, STOP, Journal
from sftray.train_fn.places import spell
from sftray.train_fn.prepare import Prepared
from sftray.tune_spaces.parameters import Space
from sftray.tune_spaces.population import Member, decide_exploit, explore_point
from sftray.tune_spaces.searchers import Outcome, suggest_point

_QUANTILE = 0.25  # of the population: so many give up, and so many are followed


@dataclass(frozen=True)
class Sweep:
    """A sweep that is running: its directory and what was asked. `deadline` is in Unix seconds."""

    folder: Path
    settings: SweepSettings
    base: Resolved
    space: Space
    prepared: Prepared
    deadline: float | None = None


class Feed:
    """The trials of one phase, `search` or `repeat`; the driver's side of cluster.tuning.TrialSource."""

    def __init__(
        self, sweep: Sweep, phase: Literal["search", "repeat"], finalists: Sequence[TrialRecord] = ()
    ) -> None:
        self._sweep, self._phase = sweep, phase
        self._records = {record.number: record for record in read_ledger(sweep.folder)}
        known = [record for record in self._records.values() if record.kind == phase]
        self._pending = [record for record in known if not is_final(sweep.folder / record.name)]
        self._planned = self._plan_repeats(finalists) if phase == "repeat" else []
        self._scheduler = _Scheduler(sweep) if phase == "search" else None

    def count_missing(self) -> int:
        """Trials that have not ended, started or not."""
        if self._phase == "repeat":
            return len(self._pending) + len(self._planned)
        begun = sum(record.kind == "search" for record in self._records.values())
        return len(self._pending) + max(0, self._sweep.settings.trials - begun)

    def next_trial(self) -> tuple[str, dict[str, Any]] | None:
        deadline = self._sweep.deadline
        if (deadline is not None and time.time() >= deadline) or self._read_stop():
            return None
        record = self._pending.pop(0) if self._pending else self._begin()
        return None if record is None else (record.name, self._build(record))

    def on_validation(self, name: str, metrics: dict[str, Any]) -> None:
        if self._scheduler is not None:
            self._scheduler.on_validation(name, float(metrics["milestone"]), as_loss(metrics["val/loss"]))

    def on_lost(self, name: str) -> None:
        journal = Journal(self._sweep.folder / name)
        times = self._sweep.base.config.scaling.max_failures
        why = f"its process was lost more than {times} time(s), often for want of memory"
        journal.add_event("failed", journal.count_attempts(), why)

    def raise_if_stopped(self) -> None:
        """Raise StoppedError where the phase is not at its end, as when its time is over."""
        left = Feed(self._sweep, self._phase).count_missing() if self._phase == "search" else len(self._unfinished())
        if left:
            fix = f"sftray resume {spell(self._sweep.folder)}"
            late = "--max-minutes is reached" if self._is_late() else "their processes or the store failed"
            why = self._read_stop() or late
            raise StoppedError(Problem(f"the sweep stopped; {left} trial(s) did not end", why=why, fix=fix))

    def _read_stop(self) -> str:
        """The signal that asked the sweep to stop, if there was one."""
        path = self._sweep.folder / STOP
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _is_late(self) -> bool:
        return self._sweep.deadline is not None and time.time() >= self._sweep.deadline - 60

    def _unfinished(self) -> list[TrialRecord]:
        records = [record for record in self._records.values() if record.kind == self._phase]
        return [*self._planned, *(record for record in records if not is_final(self._sweep.folder / record.name))]

    def _plan_repeats(self, finalists: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Fresh seeds for each finalist, the same for all, so that chance is the same for all."""
        begun = {(r.repeat_of, r.seed) for r in self._records.values() if r.kind == "repeat"}
        seed = self._sweep.base.config.train.seed
        wanted = [
            (finalist, seed + 1 + index)
            for index in range(self._sweep.settings.repeats)
            for finalist in finalists
            if (finalist.number, seed + 1 + index) not in begun
        ]
        first = max(self._records, default=-1) + 1
        return [
            TrialRecord(first + index, "repeat", finalist.point, trial_seed, finalist.number)
            for index, (finalist, trial_seed) in enumerate(wanted)
        ]

    def _begin(self) -> TrialRecord | None:
        """A trial that was not begun before, entered in the ledger before anything of it exists."""
        repeat = self._planned.pop(0) if self._planned else None
        record = repeat if self._phase == "repeat" else self._suggest()
        if record is not None:
            self._records[record.number] = record
            add_trial(self._sweep.folder, record)
        return record

    def _suggest(self) -> TrialRecord | None:
        settings, number = self._sweep.settings, max(self._records, default=-1) + 1
        if sum(record.kind == "search" for record in self._records.values()) >= settings.trials:
            return None
        history = [self._describe(record) for record in self._records.values() if record.kind == "search"]
        point = suggest_point(self._sweep.space, settings.searcher, settings.seed, number, history)
        seed = point.pop("train.seed", self._sweep.base.config.train.seed)
        return TrialRecord(number, "search", point, seed, time=round(time.time(), 3))

    def _describe(self, record: TrialRecord) -> Outcome:
        run_dir = self._sweep.folder / record.name
        end = read_end(run_dir)
        best = find_best(run_dir / CHECKPOINTS)
        rungs = {milestone: loss for milestone, (_, loss) in read_validations(run_dir).items()}
        loss = best.manifest.val_loss if best else None
        return Outcome(record.number, record.point, end["state"] if end else "running", loss, rungs)

    def _build(self, record: TrialRecord) -> dict[str, Any]:
        """The job of a trial. A trial that began before has its config in its directory: it may have changed."""
        sweep = self._sweep
        run_dir = write_trial(sweep.folder, resolve_trial(sweep.base, record), sweep.prepared.receipt)
        config = load_config(run_dir / CONFIG).config
        return {
            **build_job(config, run_dir, sweep.prepared.folder, sweep.deadline),
            "stop_files": [str(sweep.folder / STOP)],
            "label": f"{sweep.folder.name}/{record.name}",
            "evaluations": sweep.settings.evaluations,
            "before": str(sweep.folder / f".before-{_digest_start(config)}.json"),
        }


class _Scheduler:
    """Decides at the rungs which trials end early, or follow others. Built from what the trials' files say."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        settings = sweep.settings
        self._random = random.Random(settings.seed)
        self._losses: dict[str, dict[float, tuple[int, float]]] = {}
        self._halving = AsyncHyperBandScheduler(
            time_attr="progress",
            metric="val/loss",
            mode="min",
            max_t=1.0,
            grace_period=settings.rungs[0],
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
        for record in read_ledger(sweep.folder):
            if record.kind == "search":
                for rung, (_, loss) in sorted(read_validations(sweep.folder / record.name).items()):
                    self._note(record.name, rung, loss)

    def on_validation(self, name: str, milestone: float, loss: float) -> None:
        known = milestone in self._losses.get(name, {})  # a trial that was lost may report again what it did
        should_stop = self._note(name, milestone, loss)
        if known or milestone >= 1.0 or milestone not in self._sweep.settings.rungs:
            return
        if self._sweep.settings.scheduler == "asha" and should_stop:
            self._prune(name, milestone, loss)
        elif self._sweep.settings.scheduler == "pbt":
            self._consider_exploit(name, milestone)

    def _note(self, name: str, milestone: float, loss: float) -> bool:
        """Enter a validation; whether halving would end the trial there."""
        steps = read_validations(self._sweep.folder / name)
        self._losses.setdefault(name, {})[milestone] = (steps.get(milestone, (0, loss))[0], loss)
        if milestone not in (*self._sweep.settings.rungs, 1.0):
            return False
        trial = SimpleNamespace(trial_id=name)  # all that the scheduler looks at
        self._halving.on_trial_add(None, trial)
        decision = self._halving.on_trial_result(None, trial, {"progress": milestone, "val/loss": loss})
        return bool(decision == AsyncHyperBandScheduler.STOP)

    def _prune(self, name: str, rung: float, loss: float) -> None:
        others = [losses[rung][1] for losses in self._losses.values() if rung in losses]
        share = 1 / self._sweep.settings.reduction_factor
        rank = sorted(others).index(loss) + 1
        why = (
            f"val/loss {loss:.4g} at {rung:.0%} was number {rank} of {len(others)} there; the best {share:.0%} go on"
        )
        step = self._losses[name][rung][0]
        facts = {"step": step, "progress": rung, "val_loss": loss}
        give_order(self._sweep.folder / name, Order("prune", why, facts))

    def _consider_exploit(self, name: str, rung: float) -> None:
        points = {record.name: self._read_point(record) for record in read_ledger(self._sweep.folder)}
        members = [
            Member(other, {mark: loss for mark, (_, loss) in losses.items()}, points[other])
            for other, losses in self._losses.items()
        ]
        donor = decide_exploit(members, name, rung, _QUANTILE, self._random)
        if donor is not None:
            self._exploit(name, donor, rung, points)

    def _exploit(self, name: str, donor: str, rung: float, points: dict[str, Point]) -> None:
        record = next(r for r in read_ledger(self._sweep.folder) if r.name == name)
        after = explore_point(points[donor], self._sweep.space, self._random)
        resolved = resolve_trial(self._sweep.base, record, after)
        step = self._losses[donor][rung][0]
        run_dir = self._sweep.folder / name
        job = build_job(resolved.config, run_dir, self._sweep.prepared.folder, None)
        facts = {
            **{"from": donor, "step": step, "progress": rung},
            **{"before": points[name], "after": after},
        }
        why = f"follows {donor}, which was better at {rung:.0%}"
        order = Order(
            "exploit",
            why,
            facts,
            donor=str(self._sweep.folder / donor),
            step=step,
            config_text=dump_config(resolved),
            config=job["config"],
            config_hash=job["config_hash"],
        )
        give_order(run_dir, order)
        journal = Journal(self._sweep.folder)
        journal.add_event("exploited", journal.count_attempts(), why, trial=name, **facts)

    def _read_point(self, record: TrialRecord) -> Point:
        """The settings that the trial has now, which are not those of the ledger once it has followed another."""
        lineage = [e for e in _read_exploits(self._sweep.folder) if e["trial"] == record.name]
        return lineage[-1]["after"] if lineage else record.point


def _digest_start(config: RunConfig) -> str:
    """Names what trials have in common before their first step: those that differ in it do not share a file."""
    train = config.train
    start = [train.seed, train.precision, train.packing, train.micro_batch_size]
    return hashlib.sha256(f"{config.model.model_dump_json()} {start}".encode()).hexdigest()[:12]


def _read_exploits(sweep_dir: Path) -> list[dict[str, Any]]:
    from sftray.platform.run_files import BrokenRunError, read_events

    try:
        return [event for event in read_events(sweep_dir).rows if event["state"] == "exploited"]
    except BrokenRunError:
        return []
