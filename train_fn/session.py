"""What a worker does around its steps: evaluate, save, answer the fixed prompts, record.

Knows nothing of Ray: the door hands in `report` (register metrics, and a checkpoint's folder if there is one,
called by all ranks together) and `prepare` (make a loader deliver to the device).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sftray.train_fn.batch import Batch
from sftray.train_fn.checkpoint import Checkpoint, Manifest, commit_checkpoint
from sftray.train_fn.cleanup import prune_checkpoints
from sftray.train_fn.config import RunConfig
from sftray.train_fn.distributed import gather_all
from sftray.train_fn.errors import StoreError
from sftray.train_fn.evaluation import evaluate, plan_evaluation
from sftray.train_fn.journal import Journal
from sftray.train_fn.ledger import START
from sftray.train_fn.loader import FixedSampler, RunPlan, build_loader
from sftray.train_fn.loop import StepResult
from sftray.train_fn.memory import measure_peak
from sftray.train_fn.mfu import compute_mfu
from sftray.train_fn.model import count_parameters
from sftray.train_fn.pace import Pace
from sftray.train_fn.rng import collect_rng
from sftray.train_fn.samples import Prompt, answer_prompts, choose_prompts
from sftray.train_fn.saver import Saver
from sftray.train_fn.snapshot import Buffers, Snapshot, take_snapshot, write_snapshot
from sftray.train_fn.spike import SpikeWatch
from sftray.train_fn.step import Trainer
from sftray.train_fn.store import Store
from sftray.train_fn.token_store import TokenStore, read_receipt
from sftray.train_fn.tokenizer import LoadedTokenizer
from sftray.train_fn.trainer import Place


@dataclass
class Session:
    """`evaluations`: values of progress, in (0, 1], at which the run is validated and saved besides.

    `chain`: the ledger up to the last step. `saver` is idle on all ranks but the first.
    """

    config: RunConfig
    place: Place
    trainer: Trainer
    run: RunPlan
    loaded: LoadedTokenizer
    train: TokenStore
    validation: TokenStore
    journal: Journal
    store: Store
    attempt: int
    config_hash: str
    report: Callable[[dict[str, float], Path | None], None]
    prepare: Callable[[Any], Iterable[Batch]]
    mirror: Callable[[Mapping[str, float]], None]  # live gauges
    saver: Saver
    skipped_steps: int = 0
    chain: str = START
    spikes: SpikeWatch = field(default_factory=SpikeWatch)
    pace: Pace = field(default_factory=Pace)
    evaluations: tuple[float, ...] = ()
    prompts: tuple[list[Prompt], int] | None = field(default=None, repr=False)
    buffers: Buffers = field(default_factory=dict, repr=False)  # of the last snapshot
    trusted: set[str] = field(default_factory=set)  # checkpoints whose hashes are known to be right
    saving: dict[str, float] = field(default_factory=dict)  # the metrics of the step that is being saved

    @property
    def is_first(self) -> bool:
        return self.place.rank == 0


def evaluate_run(session: Session) -> dict[str, float]:
    """Validation metrics, the same on every rank; {} where the run has no validation data."""
    if not len(session.validation):
        return {}
    place = session.place
    forwards = plan_evaluation(session.validation.lengths, place.rank, place.world_size, session.run.budget)
    loader = build_loader(
        session.validation, FixedSampler(forwards), session.loaded.pad_id, place.device.type == "cuda"
    )
    loss = evaluate(session.trainer, session.prepare(loader))
    return {"val/loss": loss, "val/perplexity": math.exp(min(loss, 700.0))}  # exp(700) is near fp64's end


def record(session: Session, metrics: Mapping[str, float]) -> None:
    """One line of metrics, by rank 0."""
    if session.is_first:
        measured = {**metrics, **_measure_device(session, metrics)}
        ledger = {"ledger": session.chain} if metrics["step"] else {}
        session.journal.add_metrics({**measured, **ledger, "time": round(time.time(), 3)})
        counts = {"restarts": session.attempt - 1, "skipped_steps": session.skipped_steps}
        left = session.pace.mark(int(metrics["step"]), session.run.total_steps, time.monotonic())
        session.mirror({**measured, **counts, **({} if left is None else {"eta_seconds": left})})


def _measure_device(session: Session, metrics: Mapping[str, float]) -> dict[str, float]:
    """Peak memory of the run in GiB; on a known GPU its MFU."""
    device = session.place.device
    measured = {"perf/peak_memory_gb": round(measure_peak(device) / 2**30, 3)}
    if device.type != "cuda":
        return measured
    speed = metrics.get("perf/tokens_per_second", 0.0) / session.place.world_size
    mfu = compute_mfu(count_parameters(session.trainer.model), speed, torch.cuda.get_device_name(device))
    return measured if mfu is None or not speed else {**measured, "perf/mfu": mfu}


def after_step(session: Session, result: StepResult, ends: bool, save: bool = False) -> None:
    """Log, evaluate and save what is due after a step. `ends`: nothing follows it in this attempt. `save`: at once.

    The last step, and one that reaches a milestone of `session.evaluations`, do all three; the metrics name the
    milestone. A run that is stopped saves and no more: what it has logged is what it would have, had it gone on.
    """
    train, step = session.config.train, result.step
    session.chain = result.chain
    if result.outcome.saved:
        finish_save(session)
    if not result.outcome.applied:
        _note_skipped(session, result)
    elif (usual := session.spikes.notice(result.outcome.loss)) is not None:
        _note_step(session, result, "loss_spike", f"loss {result.outcome.loss:.4g}, usual before {usual:.4g}")
    milestone = find_milestone(session.evaluations, session.run, step)
    all_due = step == session.run.total_steps or milestone is not None
    validation = evaluate_run(session) if all_due or _is_due(step, train.eval_every) else {}
    metrics = {**result.metrics, **validation}
    if milestone is not None:
        metrics["milestone"] = milestone
    if all_due or validation or _is_due(step, train.log_every):
        record(session, metrics)
    if all_due or ends or save or _is_due(step, train.save_every):
        start_save(session, metrics, hurry=ends)
        if all_due or ends or save:
            finish_save(session, hurry=ends)
    elif validation:
        session.report(metrics, None)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def find_milestone(evaluations: Sequence[float], run: RunPlan, step: int) -> float | None:
    """The highest of these values of progress that step number `step` (the first is 1) reaches, and none before.

    It follows from the step alone, so a resumed run does not repeat those that its checkpoint has passed.
    """
    before, after, total = (run.count_examples(steps) for steps in (step - 1, step, run.total_steps))
    # Rounded before it is rounded up: 0.07 × 100 is 7.000000000000001.
    reached = [value for value in evaluations if before < math.ceil(round(value * total, 6)) <= after]
    return max(reached, default=None)


def _note_skipped(session: Session, result: StepResult) -> None:
    """A step whose numbers were not finite: count it; where that is no fp16 overflow, keep its examples' places."""
    session.skipped_steps += 1
    if not result.outcome.overflowed:
        why = f"loss {result.outcome.loss}, gradient norm {result.outcome.grad_norm}"
        _note_step(session, result, "skipped_step", why)


def _note_step(session: Session, result: StepResult, state: str, why: str) -> None:
    """An event of a step, with the places of its examples: what to look at in the data."""
    if session.is_first:
        files = read_receipt(session.train.folder)["files"]
        examples = [session.train.get_place(int(i), files) for i in result.plan.examples]
        session.journal.add_event(state, session.attempt, why, step=result.step, examples=examples)


def start_save(session: Session, metrics: dict[str, float], hurry: bool = False) -> None:
    """Copy the state of this step, and let rank 0 write it while training goes on. All ranks call it together.

    It first waits for a save that is still in flight.
    """
    started = time.perf_counter()
    if session.saving:
        finish_save(session, hurry)
    ranks = gather_all(collect_rng(session.place.device))
    session.saving = metrics
    if session.is_first:
        rng = {f"rank-{rank}.{source}": state for rank, part in enumerate(ranks) for source, state in part.items()}
        facts = {"step": int(metrics["step"]), "examples": int(metrics["examples"]), "ledger": session.chain}
        state = {**facts, "skipped_steps": session.skipped_steps}
        snapshot = take_snapshot(session.trainer, state, rng, session.buffers)
        stall = time.perf_counter() - started
        session.saver.start(lambda: _commit(session, snapshot, metrics.get("val/loss"), stall))


def finish_save(session: Session, hurry: bool = False) -> None:
    """Wait for the save in flight and register it. All ranks call it together.

    Raises:
        UserError: the store refused it for too long, or another attempt owns the run.
    """
    metrics, session.saving = session.saving, {}
    folder = None
    if session.is_first:
        saved = session.saver.take_saved(hurry)
        folder = saved.folder if saved else None
    session.report(metrics, folder)


def _commit(session: Session, snapshot: Snapshot, val_loss: float | None, stall: float) -> Checkpoint:
    """In the saver's thread: write, delete what is spare, and say so. `stall`: seconds that training stood still."""
    started = time.perf_counter()
    manifest = Manifest(
        step=snapshot.state["step"],
        attempt=session.attempt,
        config_hash=session.config_hash,
        data_fingerprint=read_receipt(session.train.folder)["fingerprints"]["train"],
        val_loss=val_loss,
    )
    session.journal.write_waiting()  # what has led to this step is part of what must not be lost
    model, tokenizer = session.trainer.model, session.loaded.tokenizer
    checkpoint = commit_checkpoint(
        session.store, manifest, lambda folder: write_snapshot(folder, snapshot, model, tokenizer)
    )
    session.trusted.add(checkpoint.name)
    prune_checkpoints(session.store, session.attempt, session.config.store.keep_checkpoints, session.trusted)
    save, stall = round(time.perf_counter() - started, 3), round(stall, 3)
    facts = {"step": checkpoint.step, "stall_seconds": stall, "save_seconds": save}
    session.journal.add_event("checkpoint", session.attempt, "", **facts)
    seconds = {"checkpoint_seconds": save, "checkpoint_stall_seconds": stall}
    session.mirror({"checkpoint_time_seconds": time.time(), **seconds})
    return checkpoint


def build_saver(journal: Journal, attempt: int, patience: float) -> Saver:
    """A saver that says in the run's events when the store refuses, once per save, and when it takes again."""
    told: list[StoreError] = []

    def tell(error: StoreError | None, pause: float) -> None:
        if error is None:
            told.clear()
            _say(journal, "store_back", attempt, "the store takes checkpoints again")
        elif not told:
            told.append(error)
            _say(journal, "store_refused", attempt, f"{error.problems[0].what}; it is tried again")

    return Saver(tell, patience)


def _say(journal: Journal, state: str, attempt: int, why: str) -> None:
    with contextlib.suppress(OSError):  # it is the same store that refuses
        journal.add_event(state, attempt, why)


def compute_samples(session: Session, when: str, step: int) -> list[dict[str, Any]]:
    """The fixed prompts with the model's answers, shared out over the ranks; the rows are the same on all."""
    if session.prompts is None:
        source = session.validation if len(session.validation) else session.train
        parameters = count_parameters(session.trainer.model)
        session.prompts = choose_prompts(source, session.loaded.tokenizer, parameters)
    prompts, new_tokens = session.prompts
    rank, world_size = session.place.rank, session.place.world_size
    mine = prompts[rank::world_size]
    shares = gather_all(answer_prompts(session.trainer.model, session.loaded.tokenizer, mine, new_tokens))
    answers = [shares[index % world_size][index // world_size] for index in range(len(prompts))]
    return [
        {
            "when": when,
            "step": step,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "answer": answer,
            "exact_match": answer == prompt.reference,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def record_samples(session: Session, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `compute_samples` down, by rank 0."""
    if session.is_first:
        for row in rows:
            session.journal.add_sample(row)
