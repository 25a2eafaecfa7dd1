"""A sweep that is settled runs to its end, or until something ends it; its events say which."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sftray.cluster.resources import Placement, look_at_cluster
from sftray.platform.leaderboard import choose_finalists, load_leaderboard
from sftray.platform.stopping import Owner, are_workers_at_work, own, record_interrupt, run_stoppable
from sftray.platform.sweep_feed import Feed, Sweep
from sftray.platform.sweep_files import read_ledger
from sftray.platform.sweep_gauges import SweepGauges
from sftray.platform.sweep_mirrors import SweepMirrors
from sftray.platform.sweep_progress import SweepProgress
from sftray.platform.terminal import build_teller
from sftray.platform.trial_directory import read_end
from sftray.train_fn.errors import Problem, StoppedError, UserError
from sftray.train_fn.journal import EVENTS, Journal
from sftray.train_fn.places import spell

_CACHE = ".tune"


@contextlib.contextmanager
def drive_sweep(sweep_dir: Path) -> Iterator[Owner]:
    """Own a sweep; an interruption gets its line in the sweep's events, and is a stop from which to go on.

    Raises:
        ConfigError: another process drives it.
    """
    with own(sweep_dir) as owner:
        try:
            yield owner
        except KeyboardInterrupt as interrupt:
            why = record_interrupt(sweep_dir, interrupt)
            fix = f"sftray resume {spell(sweep_dir)}"
            raise StoppedError(Problem("the sweep was interrupted", why=why, fix=fix)) from None


def run_sweep(sweep: Sweep, placement: Placement, console: Console, owner: Owner) -> Path:
    """Search, then repeat the finalists; the sweep's events say how it ended."""
    from sftray.cluster.tuning import count_concurrent

    journal = Journal(sweep.folder)
    journal.add_event("starting", journal.count_attempts() + 1, f"{sweep.settings.trials} trials")
    concurrent = count_concurrent(placement, look_at_cluster(), sweep.settings.concurrent)
    minutes = sweep.settings.max_minutes
    sweep = replace(sweep, deadline=None if minutes is None else time.time() + minutes * 60)
    total = sweep.settings.trials + sweep.settings.repeats * sweep.settings.finalists
    with (
        _record_end(journal),
        SweepMirrors(sweep.folder, sweep.base.config.tracking, console),
        SweepProgress(console, sweep.folder, total),
        SweepGauges(sweep.folder),
    ):
        run_stoppable(
            lambda: _run_phases(sweep, placement, concurrent),
            owner,
            lambda: _is_a_trial_at_work(sweep.folder),
            build_teller(console),
        )
        journal.add_event("finished", journal.count_attempts())
    _refuse_all_failed(sweep)
    return sweep.folder


def _run_phases(sweep: Sweep, placement: Placement, concurrent: int) -> None:
    from sftray.cluster.tuning import run_trials

    def run(feed: Feed, limit: int) -> None:
        cache = sweep.folder / _CACHE
        max_failures = sweep.base.config.scaling.max_failures
        if limit:
            run_trials(feed, placement, limit, concurrent, max_failures, cache)
        feed.raise_if_stopped()

    search = Feed(sweep, "search")
    run(search, search.count_missing())
    if sweep.settings.repeats:
        finalists = choose_finalists(load_leaderboard(sweep.folder), sweep.settings.finalists)
        repeats = Feed(sweep, "repeat", [ranked.record for ranked in finalists])
        run(repeats, repeats.count_missing())


def _is_a_trial_at_work(sweep_dir: Path) -> bool:
    """Whether there is a trial that trains and so could save."""
    journals = (Journal(sweep_dir / record.name) for record in read_ledger(sweep_dir))
    begun = (journal for journal in journals if (journal.folder / EVENTS).exists())
    return any(read_end(journal.folder) is None and are_workers_at_work(journal) for journal in begun)


@contextlib.contextmanager
def _record_end(journal: Journal) -> Iterator[None]:
    """Say in the sweep's events what ended it before its end."""
    try:
        yield
    except KeyboardInterrupt:  # see drive_sweep
        raise
    except StoppedError as error:
        journal.add_event("stopped", journal.count_attempts(), error.problems[0].why or "")
        raise
    except BaseException as error:  # whatever it is, it is raised again: here it only gets its line
        said = error.problems[0].what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        journal.add_event("failed", journal.count_attempts(), said[:500])
        raise


def _refuse_all_failed(sweep: Sweep) -> None:
    """A sweep of which no trial came to a result has failed, in the way in which its first trial has."""
    ranked = load_leaderboard(sweep.folder)
    if any(each.state != "failed" for each in ranked):
        return
    end = read_end(sweep.folder / ranked[0].record.name) or {}
    problem = Problem(
        f"all {len(ranked)} trials failed; the first: {ranked[0].why}",
        where=str(sweep.folder),
        fix="narrow the space, or try one of its points with sftray train",
    )
    kind = next((kind for kind in UserError.__subclasses__() if kind.exit_code == end.get("exit_code")), None)
    if kind is None:
        raise RuntimeError(problem.what)  # nobody foresaw it: our bug, and each trial's crash.txt has its traceback
    raise kind(problem)
