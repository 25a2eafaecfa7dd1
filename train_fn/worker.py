"""The worker function: what Ray Train runs on every worker. The only module here that imports ray.train."""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from torch import nn

from sftray.train_fn.batch import Batch
from sftray.train_fn.before import run_before
from sftray.train_fn.checkpoint import fetch_checkpoint
from sftray.train_fn.config import RunConfig
from sftray.train_fn.distributed import gather_all, share_first
from sftray.train_fn.door import DDP_SETTINGS, Door
from sftray.train_fn.errors import StoreError, UserError
from sftray.train_fn.failure import describe_failure, find_last_failure, read_events, tell_failure
from sftray.train_fn.gauges import Gauges
from sftray.train_fn.journal import CHECKPOINTS, Journal
from sftray.train_fn.ledger import START
from sftray.train_fn.loader import PlannedSampler, build_loader
from sftray.train_fn.looking import watch_for
from sftray.train_fn.loop import train_steps
from sftray.train_fn.memory import reset_peak
from sftray.train_fn.model import count_parameters
from sftray.train_fn.places import as_path, name_storage
from sftray.train_fn.resume import Beginning, begin_attempt
from sftray.train_fn.rng import restore_rng, seed_rng
from sftray.train_fn.saver import PATIENCE_S
from sftray.train_fn.session import Session, after_step, build_saver, compute_samples, record_samples
from sftray.train_fn.standing import Standing
from sftray.train_fn.step import Trainer
from sftray.train_fn.store import Store, connect_store
from sftray.train_fn.store_posix import FolderStore
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.trainer import Place, build_run_plan, build_trainer, choose_step
from sftray.train_fn.trainer_state import load_rng
from sftray.train_fn.watchdog import Fuses, run_watchdog

_LOOK_EVERY_S = 5.0
_PREEMPTED = "a node is going to be taken away"


def train_worker(job: dict[str, Any], door: Door | None = None) -> dict[str, Any]:
    """Train one run, from its beginning or from its newest checkpoint, to its end.

    What it is worth does not depend on what ran before it in this process, and it leaves nothing behind.

    Args:
        job: `config` (a resolved RunConfig as JSON values), `run_dir`, `tokens` (the token store's folder),
            `config_hash`, and `deadline` (Unix seconds at which to save and stop, or None). It may hold
            `stop_files` (paths; once one exists the run saves and stops), `evaluations` (values of progress at
            which it is validated and saved), `before` (a file that equal runs share, see before.py),
            `label` (of its gauges; without it, the folder's name), `watchdog` (fields of watchdog.Fuses that
            differ; without it nothing is watched) and `register` (whether Ray Train hears of checkpoints, which
            then are below its storage path; True without it).
        door: how this worker is connected; without it, by Ray Train, which is else not asked for anything.

    Returns:
        `step`, and `stopped`: it saved and stopped before the end.

    Raises:
        UserError: of the kind that says what went wrong.
        WorkerFailed: with `door` None, in place of any error: what is known of it.
    """
    config = RunConfig.model_validate(job["config"])
    run_dir = as_path(job["run_dir"])
    is_alone, door = door is not None, door or open_ray(run_dir if job.get("register", True) else None)
    journal = Journal(run_dir, patient=True)
    standing = Standing(door.place.rank, door.place.world_size, journal.count_attempts() + 1)
    telling = contextlib.nullcontext() if is_alone else tell_failure(journal, standing)
    gauges = Gauges(job.get("label", journal.folder.name))
    with telling, run_watchdog(standing, journal, build_fuses(job, config)), gauges:
        try:
            outcome = run_recipe(job, config, door, journal, standing, gauges)
        except BaseException:
            with contextlib.suppress(StoreError):  # what ended it is what matters
                journal.write_waiting()
            raise
        journal.write_waiting()
    return outcome


def build_fuses(job: dict[str, Any], config: RunConfig) -> Fuses | None:
    """When this worker counts as frozen. A compiled model may compile again in any step."""
    asked = job.get("watchdog")
    return None if asked is None else Fuses(**({"step": 300.0} if config.model.compile else {}) | asked)


def run_recipe(
    job: dict[str, Any], config: RunConfig, door: Door, journal: Journal, standing: Standing, gauges: Gauges
) -> dict[str, Any]:
    """The recipe of `train_worker`, whose arguments these are, opened."""
    place = door.place
    reset_peak(place.device)

    # 1. Data and tokenizer.
    tokens = as_path(job["tokens"])
    train, validation = TokenStore(tokens, "train"), TokenStore(tokens, "validation")
    loaded = load_tokenizer(config.model)

    # 2. Model, optimizer and scaler: from the newest checkpoint that is whole, if there is one.
    store = connect_store(journal.folder)
    beginning = begin_run(job, journal, store, place.rank)
    newest, start_step, standing.attempt = beginning.newest, beginning.start_step, beginning.attempt
    trainer, state = build_trainer(config, loaded, place, newest)

    # 3. Distribution.
    trainer.wrapped = door.wrap(trainer.model)
    trainer.wants_stop = build_stop(job, place.rank)

    # 4. The plan of all steps, and this worker's share of them from the start step on.
    run = build_run_plan(config, train, place.world_size, trainer.model.config._attn_implementation)
    attempt = beginning.attempt
    record_attempt(journal, trainer, beginning, run.total_steps)
    standing.step = start_step
    standing.begin("starting")
    session = Session(
        config=config,
        place=place,
        trainer=trainer,
        run=run,
        loaded=loaded,
        train=train,
        validation=validation,
        journal=journal,
        store=store,
        attempt=attempt,
        config_hash=job["config_hash"],
        report=door.report,
        prepare=lambda loader: standing.watch_batches(door.prepare(loader)),
        mirror=gauges.set,
        saver=build_saver(journal, attempt, job.get("store_patience", PATIENCE_S)),
        skipped_steps=state.get("skipped_steps", 0),
        chain=state.get("ledger", START),
        evaluations=tuple(job.get("evaluations") or ()),
    )
    sampler = PlannedSampler(run, place.rank, start_step)
    batches = door.prepare(build_loader(train, sampler, loaded.pad_id, place.device.type == "cuda"))

    # 5. Before the first step.
    if start_step == 0:
        run_before(session, as_path(job["before"]) if job.get("before") else None)

    # 6. The steps.
    seed_rng(config.train.seed, place.rank)
    if newest:
        restore_rng(load_rng(newest, place.rank), place.device)
    step, why = run_steps(session, iter(batches), start_step, standing, door.is_preempted)

    # 7. After the last one.
    if why is None:
        record_samples(session, compute_samples(session, "after", step))
    return {"step": step, "stopped": why is not None, "why": why or ""}


def run_steps(
    session: Session,
    batches: Iterator[Batch],
    start_step: int,
    standing: Standing,
    is_preempted: Callable[[], bool],
) -> tuple[int, str | None]:
    """The steps from `start_step` on: the last one, and why it stopped there before its end ("": it was asked to).

    A save that is in flight when something else fails is let come to its end.
    """
    trainer, run, config = session.trainer, session.run, session.config
    trainer.has_saved = session.saver.has_saved
    trainer.wants_look = build_look(session.is_first)
    is_elastic = config.scaling.is_elastic
    step, why, noticed = start_step, None, False
    standing.begin("step")
    try:
        for result in train_steps(
            trainer, run, config.optim, batches, start_step, session.chain, choose_step(config)
        ):
            step = result.step
            standing.finish_step(step)
            notice = result.outcome.look_asked and not noticed and is_preempted()
            noticed = noticed or notice
            if step < run.total_steps and (result.outcome.stop_asked or (notice and not is_elastic)):
                why = _PREEMPTED if notice else ""
            after_step(session, result, ends=why is not None or step == run.total_steps, save=notice)
            if why is not None:
                break
            standing.begin("step")
    finally:
        standing.begin("between")
        with contextlib.suppress(UserError):  # after a failure; without one nothing is in flight here
            session.saver.take_saved(hurry=True)
    return step, why


def build_look(is_first: bool) -> Callable[[], bool]:
    """Whether it is time to look for a notice of preemption, by the clock of rank 0: looking is a barrier."""
    last = time.monotonic()

    def wants_look() -> bool:
        nonlocal last
        if not is_first or time.monotonic() - last < _LOOK_EVERY_S:
            return False
        last = time.monotonic()
        return True

    return wants_look


def build_stop(job: dict[str, Any], rank: int) -> Callable[[], bool]:
    """Whether this rank asks all to save and stop: at the deadline, or, rank 0, when a stop file is there."""
    deadline = job["deadline"]
    is_asked = watch_for(as_path(place) for place in job.get("stop_files", ())) if rank == 0 else lambda: False

    def wants_stop() -> bool:
        if deadline is not None and time.time() >= deadline:
            return True
        return is_asked()

    return wants_stop


def begin_run(job: dict[str, Any], journal: Journal, store: Store, rank: int) -> Beginning:
    """The number of this attempt and where it begins, as rank 0 found it, on every rank; the files are at hand."""
    beginning = None
    if rank == 0:
        least = journal.count_attempts() + 1
        beginning = begin_attempt(store, journal.folder.name, job.get("owner"), least)
    found = share_first(beginning)
    assert found is not None  # rank 0 has it
    if rank == 0 or found.newest is None or isinstance(store, FolderStore):
        return found
    return replace(found, newest=fetch_checkpoint(store, found.newest))


def record_attempt(journal: Journal, trainer: Trainer, beginning: Beginning, total_steps: int) -> None:
    """Begin an attempt in the run's files: why there is another one, checkpoints that were found broken, and metrics
    no further than where it starts.
    """
    pids, nodes = gather_all(os.getpid()), gather_all(socket.gethostname())
    attempt, start_step = beginning.attempt, beginning.start_step
    if trainer.rank == 0:
        journal.rewind(start_step)
        for name, wrong in beginning.broken:
            journal.add_event("checkpoint_broken", attempt, wrong, checkpoint=name)
        size = {"num_parameters": count_parameters(trainer.model), "total_steps": total_steps}
        failure = find_last_failure(read_events(journal.folder))
        why = describe_failure(failure) if failure else ""
        journal.add_event("running", attempt, why, step=start_step, pids=pids, nodes=nodes, **size)


def open_ray(run_dir: Path | None) -> Door:
    """The door of a worker of Ray Train. `run_dir`: Ray hears of checkpoints in it, and else of metrics alone."""
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    return Door(place, _wrap, _prepare, functools.partial(_report, run_dir), _is_preempted)


def _wrap(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP_SETTINGS)
    return wrapped


def _prepare(loader: Any) -> Any:
    # Ray's own sampler would pad with repeated examples, and unbatch a loader that has a batch sampler.
    return ray.train.torch.prepare_data_loader(loader, add_dist_sampler=False)


def _report(run_dir: Path | None, metrics: dict[str, float], folder: Path | None) -> None:
    """Register with Ray what the store already has; a barrier over all ranks."""
    checkpoint = None
    if run_dir is not None and folder is not None:
        storage = name_storage(run_dir / CHECKPOINTS / folder.name)
        checkpoint = ray.train.Checkpoint(storage["storage_path"], storage.get("storage_filesystem"))
    mode = ray.train.CheckpointUploadMode.NO_UPLOAD
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_mode=mode)


def _is_preempted() -> bool:
    return ray.train.get_preemption_info() is not None
