"""The worker function: what Ray Train runs on every worker. The only module here that imports ray.train."""

import os
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from sftray.train_fn.checkpoint import find_newest
from sftray.train_fn.config import RunConfig
from sftray.train_fn.distributed import gather_all, share_first
from sftray.train_fn.gauges import Gauges
from sftray.train_fn.journal import CHECKPOINTS, Journal
from sftray.train_fn.loader import PlannedSampler, build_loader
from sftray.train_fn.loop import train_steps
from sftray.train_fn.model import count_parameters
from sftray.train_fn.session import Session, after_step, answer_samples, evaluate_run, record
from sftray.train_fn.step import Trainer
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.trainer import Place, build_run_plan, build_trainer


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train one run, from its beginning or from its newest checkpoint, to its end.

    Args:
        job: `config` (a resolved RunConfig as JSON values), `run_dir`, `tokens` (the token store's folder),
            `config_hash`, and `deadline` (Unix seconds at which to save and stop, or None).

    Returns:
        `step`, and `stopped`: it saved and stopped before the end.

    Raises:
        UserError: of the kind that says what went wrong.
    """
    config = RunConfig.model_validate(job["config"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    journal = Journal(Path(job["run_dir"]))

    # 1. Data and tokenizer.
    train, validation = TokenStore(Path(job["tokens"]), "train"), TokenStore(Path(job["tokens"]), "validation")
    loaded = load_tokenizer(config.model)

    # 2. Model, optimizer and scaler: from the newest checkpoint that is whole, if there is one.
    newest = share_first(find_newest(journal.folder / CHECKPOINTS) if place.rank == 0 else None)
    trainer, state = build_trainer(config, loaded, place, newest)
    start_step = newest.step if newest else 0

    # 3. Distribution. Buffers are constants here, and workers may make unequal numbers of forwards.
    trainer.wrapped = ray.train.torch.prepare_model(
        trainer.model, parallel_strategy_kwargs={"forward_sync_buffers": False, "gradient_as_bucket_view": True}
    )
    deadline = job["deadline"]
    trainer.wants_stop = lambda: deadline is not None and time.time() >= deadline

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
        report=_report,
        prepare=_prepare,
        mirror=Gauges(journal.folder.name).set,
        skipped_steps=state.get("skipped_steps", 0),
    )
    sampler = PlannedSampler(run, place.rank, start_step)
    batches = _prepare(build_loader(train, sampler, loaded.pad_id, place.device.type == "cuda"))

    # 5. Before the first step.
    if start_step == 0:
        answer_samples(session, "before", 0)
        record(session, {"step": 0, "epoch": 0, "progress": 0.0, "examples": 0, **evaluate_run(session)})

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
        answer_samples(session, "after", step)
    return {"step": step, "stopped": stopped}


def open_attempt(journal: Journal, trainer: Trainer, start_step: int) -> int:
    """Begin an attempt in the run's files: its number, and metrics no further than where it starts."""
    pids = gather_all(os.getpid())
    attempt = journal.count_attempts() + 1
    if trainer.rank == 0:
        journal.rewind(start_step)
        parameters = count_parameters(trainer.model)
        journal.add_event("running", attempt, step=start_step, pids=pids, num_parameters=parameters)
    return share_first(attempt)


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
