"""Driving a sweep: settle what is asked, prepare tokens once, run the trials, say which setting is better."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from sftray.cluster.connection import check_this_machine, connect_for, has_cluster
from sftray.cluster.preparation import choose_map
from sftray.platform.driver import fix_batch, prepare_again, prepare_run, settle_paths
from sftray.platform.inputs import keep_inputs
from sftray.platform.run_directory import check_name_is_free, open_store, take_run_directory
from sftray.platform.sweep_feed import Sweep
from sftray.platform.sweep_files import (
    BASE,
    SweepSettings,
    load_settings,
    save_settings,
)
from sftray.platform.sweep_run import drive_sweep, run_sweep
from sftray.platform.terminal import build_teller
from sftray.train_fn.balance import refuse_dense
from sftray.train_fn.config import ModelConfig, RunConfig
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.config_problems import COMMAND_LINE
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.journal import DATA
from sftray.train_fn.model import load_model_config
from sftray.train_fn.places import write_whole
from sftray.train_fn.prepare import Prepared
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.trainer import build_run_plan
from sftray.tune_spaces.halving import plan_evaluations, plan_rungs
from sftray.tune_spaces.parameters import Options, Space
from sftray.tune_spaces.points import apply_point, check_space, fixed_values
from sftray.tune_spaces.population import check_population_space
from sftray.tune_spaces.searchers import Searcher, check_searcher, count_grid, is_grid
from sftray.tune_spaces.space import load_space, parse_space

EVALUATIONS = 8  # of every trial, at equal parts of its progress
REDUCTION_FACTOR = 2.0
FINALISTS = 2
DEFAULT_TRIALS = 8


@dataclass(frozen=True)
class SweepOptions:
    """What the command line of `sftray tune` asks for; None: as the sweep thinks best."""

    space: str | dict[str, Any] = "lr_accumulation"
    searcher: Searcher | None = None
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    trials: int | None = None
    concurrent: int | None = None
    repeats: int = 0
    finalists: int = FINALISTS
    max_examples: int | None = None
    max_minutes: float | None = None
    seed: int = 1


def tune_run(resolved: Resolved, label: str, options: SweepOptions, console: Console) -> Path:
    """Run a sweep to its end; returns its directory.

    Args:
        label: what an unnamed sweep is named after: the preset, or the config file's stem.

    Raises:
        UserError: of the kind that says what went wrong; its exit_code is the command's.
    """
    space = _find_space(options.space, resolved.config)
    fixed = {key: value for key, value in fixed_values(space).items() if resolved.origin.get(key) != COMMAND_LINE}
    resolved = settle_paths(apply_point(resolved, fixed, f"space {space.name}") if fixed else resolved)
    _check_options(options, space, resolved)
    _refuse_dense(space, resolved.config.model)
    store = open_store(resolved.config.store)
    check_name_is_free(store, resolved.config.name)
    resolved = keep_inputs(resolved, store)
    config = resolved.config
    check_this_machine(config.scaling)
    prepared = None if has_cluster() else prepare_run(config, store, console)
    with connect_for(config.scaling, build_teller(console)) as (placement, num_nodes):
        prepared = prepared or prepare_run(config, store, console, choose_map(num_nodes))
        sweep_dir = take_run_directory(store, config.name, f"tune-{label}")
        with drive_sweep(sweep_dir) as owner:
            settings = _settle(options, space, config, prepared, sweep_dir.name)
            base = _build_base(resolved, settings, prepared, sweep_dir)
            write_whole(sweep_dir / DATA, json.dumps(prepared.receipt, ensure_ascii=False, indent=2))
            write_whole(sweep_dir / BASE, dump_config(base))
            save_settings(sweep_dir, settings)  # last: what has it is a sweep
            return run_sweep(Sweep(sweep_dir, settings, base, space, prepared), placement, console, owner)


def resume_sweep(sweep_dir: Path, console: Console) -> Path:
    """Run what is missing of a sweep: trials that did not end go on from their checkpoints, the others start.

    Raises:
        ConfigError: its data is not what it was, or another process drives it.
    """
    settings, base = load_settings(sweep_dir), load_config(sweep_dir / BASE)
    space = parse_space(settings.space, settings.space_name, base.config)
    config, sweep_dir = base.config, sweep_dir.absolute()
    store = open_store(config.store.model_copy(update={"path": str(sweep_dir.parent)}))
    check_this_machine(config.scaling)
    with drive_sweep(sweep_dir) as owner:
        prepared = None if has_cluster() else prepare_again(sweep_dir, config, store, console)
        with connect_for(config.scaling, build_teller(console), owner.check) as (placement, num_nodes):
            prepared = prepared or prepare_again(sweep_dir, config, store, console, choose_map(num_nodes))
            return run_sweep(Sweep(sweep_dir, settings, base, space, prepared), placement, console, owner)


def _find_space(asked: str | dict[str, Any], config: RunConfig) -> Space:
    return load_space(asked, config) if isinstance(asked, str) else parse_space(asked, "given", config)


def _check_options(options: SweepOptions, space: Space, resolved: Resolved) -> None:
    """What can be known to be wrong before anything starts."""
    problems = []
    if resolved.config.data.validation is None:
        problems.append(
            Problem(
                "a sweep needs data.validation",
                why="trials are ranked by their validation loss, and the config holds nothing out",
                fix="data.validation=0.05",
            )
        )
    if resolved.config.train.replay_seed:
        problems.append(
            Problem(
                "train.replay_seed does not go with a sweep",
                why="MiniMind's loop ends with its epochs, and trials end after the same number of examples",
                fix="sftray train, once for each setting",
            )
        )
    if options.repeats == 1:
        problems.append(
            Problem("--repeats 1 says nothing of chance", why="an interval needs two runs", fix="--repeats 3")
        )
    if options.repeats and options.scheduler == "pbt":
        problems.append(
            Problem(
                "--repeats does not go with --scheduler pbt",
                why="a population changes its settings on the way, so there is no setting to run again",
                fix="--scheduler asha, or repeat the settings that came out with sftray tune and a grid of them",
            )
        )
    if options.finalists < 2:
        problems.append(Problem("--finalists: at least 2 are compared", fix="--finalists 2"))
    if problems:
        raise ConfigError(*problems)
    if options.scheduler == "pbt":
        check_population_space(space)
    if options.searcher is not None:
        check_searcher(space, options.searcher)
    check_space(space, resolved)


def _refuse_dense(space: Space, model: ModelConfig) -> None:
    """A weight that is searched, of what the model has not, would fail in each trial."""
    if any("model.aux_loss_coef" in parameter.keys for parameter in space.parameters):
        refuse_dense(load_model_config(model, load_tokenizer(model)), "is searched", "leave it out of the space")


def _settle(options: SweepOptions, space: Space, config: RunConfig, prepared: Prepared, name: str) -> SweepSettings:
    searcher = _choose_searcher(options, space)
    combinations = count_grid(space) if searcher == "grid" else None
    evaluations = plan_evaluations(EVALUATIONS)
    return SweepSettings(
        name=name,
        space_name=space.name,
        space=space.raw,
        searcher=searcher,
        scheduler=options.scheduler,
        seed=options.seed,
        trials=min(filter(None, (options.trials or combinations or DEFAULT_TRIALS, combinations))),
        concurrent=options.concurrent,
        repeats=options.repeats,
        finalists=options.finalists,
        max_examples=options.max_examples or _count_examples(config, prepared),
        max_minutes=options.max_minutes or config.limits.max_minutes,
        evaluations=evaluations,
        rungs=plan_rungs(REDUCTION_FACTOR, evaluations),
        reduction_factor=REDUCTION_FACTOR,
    )


def _choose_searcher(options: SweepOptions, space: Space) -> Searcher:
    """What was asked for; else a grid is gone through, and what can be sampled is searched by TPE."""
    if options.searcher is not None:
        return options.searcher
    if is_grid(space):
        return "grid"
    return "random" if any(isinstance(p, Options) and p.is_grid for p in space.parameters) else "tpe"


def _count_examples(config: RunConfig, prepared: Prepared) -> int:
    """What the base config would train on: the budget of every trial, whatever its global batch."""
    run = build_run_plan(config, TokenStore(prepared.folder, "train"), 1)
    return run.count_examples(run.total_steps)


def _build_base(resolved: Resolved, settings: SweepSettings, prepared: Prepared, sweep_dir: Path) -> Resolved:
    """The config that trials change: the sweep's own budget, and evaluations by progress alone."""
    num_examples = len(TokenStore(prepared.folder, "train"))
    kept = len(settings.evaluations) + 1 if settings.scheduler == "pbt" else resolved.config.store.keep_checkpoints
    point = {
        "train.max_steps": None,
        "train.max_examples": settings.max_examples,
        "train.epochs": -(-settings.max_examples // num_examples),
        "train.eval_every": 0,
        "train.save_every": 0,
        "limits.max_minutes": None,
        "store.keep_checkpoints": kept,
        "store.path": str(sweep_dir),
    }
    config = resolved.config
    changed = {
        section: getattr(config, section).model_copy(
            update={key.split(".")[1]: value for key, value in point.items() if key.startswith(f"{section}.")}
        )
        for section in ("train", "limits", "store")
    }
    origin = {**resolved.origin, **dict.fromkeys(point, "sweep")}
    return fix_batch(replace(resolved, config=config.model_copy(update=changed), origin=origin), sweep_dir.name)
