"""The worker function: what Ray Train runs on every worker. The only module here that imports ray.train."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from torch import nn

from sftray.train_fn.before import run_before
from sftray.train_fn.checkpoint import find_newest
from sftray.train_fn.config import RunConfig
from sftray.train_fn.distributed import gather_all, share_first
from sftray.train_fn.door import Door, Report, open_alone
from sftray.train_fn.gauges import Gauges
from sftray.train_fn.journal import CHECKPOINTS, Journal
from sftray.train_fn.loader import PlannedSampler, build_loader
from sftray.train_fn.loop import train_steps
from sftray.train_fn.memory import reset_peak
from sftray.train_fn.model import count_parameters
from sftray.train_fn.session import Session, after_step, compute_samples, record_samples
from sftray.train_fn.step import Trainer
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.trainer import Place, build_run_plan, build_trainer


def train_worker(job: dict[str, Any], report: Report | None = None) -> dict[str, Any]:
    """Train one run, from its beginning or from its newest checkpoint, to its end.

    What it is worth does not depend on what ran before it in this process, and it leaves nothing behind.

    Args:
        job: `config` (a resolved RunConfig as JSON values), `run_dir`, `tokens` (the token store's folder),
            `config_hash`, and `deadline` (Unix seconds at which to save and stop, or None). It may hold
            `stop_file` (a path; once it exists the run saves and stops), `evaluations` (values of progress at
            which it is validated and saved) and `before` (a file that equal runs share, see before.py).
        report: takes metrics, and a checkpoint's folder if there is one; with it the run is this process alone,
            and Ray Train is not asked for anything.

    Returns:
        `step`, and `stopped`: it saved and stopped before the end.

    Raises:
        UserError: of the kind that says what went wrong.
    """
    config = RunConfig.model_validate(job["config"])
    door = open_alone(report) if report else open_ray()
    place = door.place
    reset_peak(place.device)
    journal = Journal(Path(job["run_dir"]))

    # 1. Data and tokenizer.
    train, validation = TokenStore(Path(job["tokens"]), "train"), TokenStore(Path(job["tokens"]), "validation")
    loaded = load_tokenizer(config.model)

    # 2. Model, optimizer and scaler: from the newest checkpoint that is whole, if there is one.
    newest = share_first(find_newest(journal.folder / CHECKPOINTS) if place.rank == 0 else None)
    trainer, state = build_trainer(config, loaded, place, newest)
    start_step = newest.step if newest else 0

    # 3. Distribution.
    trainer.wrapped = door.wrap(trainer.model)
    trainer.wants_stop = build_stop(job, place.rank)

    # 4. The plan of all steps, and this worker's share of them from the start step on.
    run = build_run_plan(config, train, place.world_size, trainer.model.config._attn_implementation)
    session = Session(
        config=config,
        place=place,
        trainer=trainer,
        run=run,
        loaded=loaded,
        train=train,
        validation=validation,
        journal=journal,
        attempt=open_attempt(journal, trainer, start_step),
        config_hash=job["config_hash"],
        report=door.report,
        prepare=door.prepare,
        mirror=Gauges(journal.folder.name).set,
        skipped_steps=state.get("skipped_steps", 0),
        evaluations=tuple(job.get("evaluations") or ()),
    )
    sampler = PlannedSampler(run, place.rank, start_step)
    batches = door.prepare(build_loader(train, sampler, loaded.pad_id, place.device.type == "cuda"))

    # 5. Before the first step.
    if start_step == 0:
        run_before(session, Path(job["before"]) if job.get("before") else None)

    # 6. The steps.
    step, stopped = start_step, False
    for result in train_steps(trainer, run, config.optim, iter(batches), start_step):
        step = result.step
        stopped = result.outcome.stop_asked and step < run.total_steps
        after_step(session, result, ends=stopped or step == run.total_steps)
        if stopped:
            break

    # 7. After the last one.
    if not stopped:
        record_samples(session, compute_samples(session, "after", step))
    return {"step": step, "stopped": stopped}


def build_stop(job: dict[str, Any], rank: int) -> Callable[[], bool]:
    """Whether this rank asks all to save and stop: at the deadline, or, rank 0, when the stop file is there."""
    deadline, stop_file = job["deadline"], job.get("stop_file")

    def wants_stop() -> bool:
        if deadline is not None and time.time() >= deadline:
            return True
        return stop_file is not None and rank == 0 and os.path.exists(stop_file)

    return wants_stop


def open_attempt(journal: Journal, trainer: Trainer, start_step: int) -> int:
    """Begin an attempt in the run's files: its number, and metrics no further than where it starts."""
    pids = gather_all(os.getpid())
    attempt = journal.count_attempts() + 1
    if trainer.rank == 0:
        journal.rewind(start_step)
        parameters = count_parameters(trainer.model)
        journal.add_event("running", attempt, step=start_step, pids=pids, num_parameters=parameters)
    return share_first(attempt)


def open_ray() -> Door:
    """The door of a worker of Ray Train."""
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    return Door(place, _wrap, _prepare, _report)


def _wrap(model: nn.Module) -> nn.Module:
    # Buffers are constants here, and workers may make unequal numbers of forwards.
    wrapped: nn.Module = ray.train.torch.prepare_model(
        model, parallel_strategy_kwargs={"forward_sync_buffers": False, "gradient_as_bucket_view": True}
    )
    return wrapped


def _prepare(loader: Any) -> Any:
    # Ray's own sampler would pad with repeated examples, and unbatch a loader that has a batch sampler.
    return ray.train.torch.prepare_data_loader(loader, add_dist_sampler=False)


def _report(metrics: dict[str, float], folder: Path | None) -> None:
    """Register with Ray what the store already has; a barrier over all ranks."""
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint(str(folder)) if folder else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )
