"""Driving one run: settle the config, prepare tokens, take a directory, train on the cluster, sum up."""

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sftray.cluster.connection import check_this_machine, connect_for, has_cluster
from sftray.cluster.launch import run_workers
from sftray.cluster.preparation import choose_map
from sftray.cluster.resources import Placement
from sftray.platform.inputs import keep_inputs
from sftray.platform.mirror import Follower
from sftray.platform.progress import build_progress
from sftray.platform.receipt_words import describe_preparation, describe_receipt
from sftray.platform.resuming import describe_changes, load_changed, save_changes
from sftray.platform.run_directory import (
    TOKENS,
    check_name_is_free,
    open_store,
    take_run_directory,
)
from sftray.platform.stopping import Owner, are_workers_at_work, own, record_interrupt, run_stoppable
from sftray.platform.summary import RunSummary, summarize
from sftray.platform.terminal import build_teller
from sftray.platform.tracking import build_wandb_mirror
from sftray.train_fn.balance import refuse_dense
from sftray.train_fn.checkpoint import list_checkpoints
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import ConfigError, Problem, StoppedError, UserError
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, Journal
from sftray.train_fn.minimind_config import ASSUMED
from sftray.train_fn.model import count_parameters_of, load_model_config, refuse_too_long
from sftray.train_fn.places import spell, write_whole
from sftray.train_fn.prepare import MapChunks, Prepared, prepare_tokens
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import SHIPPED, load_tokenizer
from sftray.train_fn.trainer import build_run_plan

# Saving and stopping takes a while, so a time limit is acted upon this much earlier, at most.
_STOP_EARLY_S = 60.0


@dataclass(frozen=True)
class Attempt:
    """One start of a run, all settled: what the workers are told and what the mirrors show."""

    run_dir: Path
    config: RunConfig
    prepared: Prepared
    console: Console
    owner: Owner


def train_run(resolved: Resolved, label: str, console: Console) -> RunSummary:
    """Train one run to its end, on the cluster RAY_ADDRESS names or on one started here.

    Args:
        label: what an unnamed run is named after: the preset, or the config file's stem.

    Raises:
        UserError: of the kind that says what went wrong; its exit_code is the command's.
    """
    resolved = settle_paths(resolved)
    store = open_store(resolved.config.store)
    check_name_is_free(store, resolved.config.name)
    resolved = keep_inputs(resolved, store)
    config = resolved.config
    check_this_machine(config.scaling)
    prepared = None if has_cluster() else prepare_run(config, store, console)
    with connect_for(config.scaling, build_teller(console)) as (placement, num_nodes):
        prepared = prepared or prepare_run(config, store, console, choose_map(num_nodes))
        run_dir = take_run_directory(store, config.name, label)
        resolved = fix_batch(resolved, run_dir.name)
        with _drive(run_dir) as owner:
            write_whole(run_dir / DATA, json.dumps(prepared.receipt, ensure_ascii=False, indent=2))
            write_whole(run_dir / CONFIG, dump_config(resolved))  # last: what has it is a run
            return run_attempt(Attempt(run_dir, resolved.config, prepared, console, owner), placement)


def resume_run(run_dir: Path, console: Console, overrides: Sequence[str] = ()) -> RunSummary:
    """Continue an interrupted run from its newest whole checkpoint, with its config and `overrides` over it.

    Raises:
        ConfigError: the folder is no run, another process drives it, its data is not what it was, or an override
            would make it another run.
    """
    if not (run_dir / CONFIG).exists():
        raise ConfigError(Problem(f"{run_dir} is no run: it has no {CONFIG}", fix="sftray runs list"))
    resolved, changes = load_changed(run_dir, overrides)
    config = resolved.config
    store = open_store(config.store.model_copy(update={"path": str(run_dir.absolute().parent)}))
    check_this_machine(config.scaling)
    with _drive(run_dir) as owner:
        for line in describe_changes(changes):
            console.print(f"changed: {line}", highlight=False, markup=False, soft_wrap=True)
        prepared = None if has_cluster() else prepare_again(run_dir, config, store, console)
        with connect_for(config.scaling, build_teller(console), owner.check) as (placement, num_nodes):
            prepared = prepared or prepare_again(run_dir, config, store, console, choose_map(num_nodes))
            save_changes(run_dir, resolved, changes)
            return run_attempt(Attempt(run_dir, config, prepared, console, owner), placement)


def prepare_again(
    folder: Path, config: RunConfig, store: Path, console: Console, map_chunks: MapChunks | None = None
) -> Prepared:
    """The tokens of a run or a sweep that is resumed; refuses other examples, or the same cut otherwise."""
    prepared = prepare_run(config, store, console, map_chunks)
    before = json.loads((folder / DATA).read_text(encoding="utf-8"))
    if _name_examples(before) != _name_examples(prepared.receipt):
        raise ConfigError(
            Problem(
                "the data is not what it was at the start",
                where=str(folder / DATA),
                why="a resumed run continues the same order over the same examples",
                fix="put files and settings back as they were, or start a run of another name",
            )
        )
    return prepared


def _name_examples(receipt: dict[str, Any]) -> list[Any]:
    counts = receipt["splits"]["train"]
    return [receipt["fingerprints"], counts["kept"], counts["tokens"], counts["target_tokens"]]


def settle_paths(resolved: Resolved) -> Resolved:
    """Local folders and files by absolute paths, so that they mean the same on workers and in a later resume."""
    config = resolved.config
    model = config.model.model_copy(
        update={
            key: _make_absolute(value)
            for key in ("name", "tokenizer", "chat_template")
            if (value := getattr(config.model, key)) and _is_local(key, value)
        }
    )
    data = config.data.model_copy(
        update={
            key: [_make_absolute(p) for p in value] if isinstance(value, list) else _make_absolute(value)
            for key in ("train", "validation")
            if isinstance(value := getattr(config.data, key), str | list)
        }
    )
    return replace(resolved, config=config.model_copy(update={"model": model, "data": data}))


def _is_local(key: str, value: str) -> bool:
    """Whether it is a path; else it is the name of something that ships or of something on a hub."""
    return not (key == "tokenizer" and value in SHIPPED) and os.path.exists(os.path.expanduser(value))


def _make_absolute(path: str) -> str:
    if "://" in path:
        return path
    path = os.path.expanduser(path)
    is_pattern = glob.has_magic(path) and not os.path.exists(path)
    return str(Path(glob.escape(os.getcwd()) if is_pattern else os.getcwd(), path))


def fix_batch(resolved: Resolved, name: str) -> Resolved:
    """The run's name and its global batch, written out as they stand for good."""
    fixed = resolved.with_fixed_batch()
    origin = fixed.origin if fixed.config.name else {**fixed.origin, "name": "made"}
    return Resolved(fixed.config.model_copy(update={"name": name}), origin)


def prepare_run(config: RunConfig, store: Path, console: Console, map_chunks: MapChunks | None = None) -> Prepared:
    """Tokens of the run, found or made; the model is looked at too, for what it says is cheap to know now."""
    loaded = load_tokenizer(config.model)
    model_config = load_model_config(config.model, loaded)
    refuse_too_long(model_config, config.data.max_seq_len)
    if weight := config.model.aux_loss_coef:
        refuse_dense(model_config, f"is {weight:g}")
    count_parameters_of(model_config)
    prepared = prepare_tokens(config.model, config.data, store / TOKENS, loaded, map_chunks)
    for note in getattr(model_config, ASSUMED, ()):
        console.print(f"model: {note}", highlight=False, markup=False, soft_wrap=True)
    if loaded.added_tokens:
        added = " ".join(loaded.added_tokens)
        console.print(f"tokenizer: {added} added for the chat template", highlight=False, markup=False)
    console.print(describe_preparation(prepared.receipt, prepared.reused), highlight=False, markup=False)
    for line in describe_receipt(prepared.receipt):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return prepared


def run_attempt(attempt: Attempt, placement: Placement) -> RunSummary:
    """Train until the end, a stop or a failure, and leave the run's files saying which."""
    journal = Journal(attempt.run_dir)
    kind = "GPU" if placement.use_gpu else "CPU"
    journal.add_event("starting", journal.count_attempts(), f"{placement.num_workers} worker(s) on {kind}")
    with _record_failure(journal), Follower(attempt.run_dir, _build_mirrors(attempt)) as follower:
        job = build_job(attempt.config, attempt.run_dir, attempt.prepared.folder, _find_deadline(attempt.config))
        job |= {"stop_files": [str(attempt.owner.stop_file)], "owner": attempt.owner.lease.number}
        outcome, reason = run_stoppable(
            lambda: run_workers(job, placement, attempt.config.scaling.max_failures),
            attempt.owner,
            lambda: are_workers_at_work(journal),
            build_teller(attempt.console),
        )
        follower.state = "stopped" if outcome["stopped"] else "finished"
    why = reason or outcome.get("why") or "limits.max_minutes is reached"
    said = why if outcome["stopped"] else ""
    journal.add_event(follower.state, journal.count_attempts(), said, step=outcome["step"])
    if outcome["stopped"]:
        raise StoppedError(_describe_stop(attempt.run_dir, outcome["step"], why))
    return summarize(attempt.run_dir)


@contextlib.contextmanager
def _drive(run_dir: Path) -> Iterator[Owner]:
    """Own a run. An interruption gets its line in the run's events; after a checkpoint it is a stop to go on from."""
    with own(run_dir) as owner:
        try:
            yield owner
        except KeyboardInterrupt as interrupt:
            why = record_interrupt(run_dir, interrupt)
            saved = list_checkpoints(run_dir / CHECKPOINTS)
            if saved:
                raise StoppedError(_describe_stop(run_dir, saved[-1].step, why)) from None
            raise


@contextlib.contextmanager
def _record_failure(journal: Journal) -> Iterator[None]:
    """Say in the run's events what ended it."""
    try:
        yield
    except KeyboardInterrupt:  # see _drive
        raise
    except UserError as error:
        journal.add_event("failed", journal.count_attempts(), error.problems[0].what)
        raise
    except BaseException as error:  # whatever it is, it is raised again: here it only gets its line
        journal.add_event("failed", journal.count_attempts(), f"{type(error).__name__}: {error}"[:500])
        raise


def _describe_stop(run_dir: Path, step: int, why: str) -> Problem:
    return Problem(f"stopped; saved at step {step}", why=why, fix=f"sftray resume {spell(run_dir)}")


def build_job(config: RunConfig, run_dir: Path, tokens: Path, deadline: float | None) -> dict[str, Any]:
    """What every worker gets. It holds no secret: Ray shows it on the Train page.

    Args:
        deadline: Unix seconds at which to save and stop.
    """
    meaning = config.model_dump_json(include={"model", "data", "optim", "train"})
    return {
        "config": config.model_dump(mode="json"),
        "run_dir": str(run_dir),
        "tokens": str(tokens),
        "config_hash": hashlib.sha256(meaning.encode()).hexdigest(),
        "deadline": deadline,
        "watchdog": {},
    }


def _find_deadline(config: RunConfig) -> float | None:
    minutes = config.limits.max_minutes
    return None if minutes is None else time.time() + minutes * 60 - min(_STOP_EARLY_S, minutes * 6)


def _build_mirrors(attempt: Attempt) -> list[Any]:
    config = attempt.config
    total_steps = build_run_plan(config, TokenStore(attempt.prepared.folder, "train"), 1).total_steps
    mirrors = [
        build_progress(attempt.console, total_steps, attempt.run_dir.name),
        build_wandb_mirror(
            config.tracking,
            attempt.run_dir,
            attempt.run_dir.name,
            config.model_dump(mode="json"),
            tell=build_teller(attempt.console),
        ),
    ]
    return [mirror for mirror in mirrors if mirror is not None]
