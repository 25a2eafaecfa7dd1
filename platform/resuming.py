"""Resuming a run with other settings: what may change on the way, and what would make it another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.journal import CONFIG, Journal
from sftray.train_fn.places import write_whole

# What a run is: settings under these are as they were at its start. All others are pace, layout, or its mirrors.
_FIXED = (
    *("name", "data", "store.path", "model.name", "model.scratch", "model.tokenizer", "model.chat_template"),
    *("model.aux_loss_coef", "train.seed", "train.global_batch_size", "train.gradient_accumulation_steps"),
    *("train.precision", "train.replay_seed"),
)
_FIXED_IN_REPLAY = "train.micro_batch_size"  # over which the seed's loop takes its means

Changes = dict[str, tuple[Any, Any]]


def load_changed(run_dir: Path, overrides: Sequence[str]) -> tuple[Resolved, Changes]:
    """The run's config with `overrides` put over it, and what they change: key -> (before, after).

    Raises:
        ConfigError: an override is wrong, or changes what the run is; it shows the difference.
    """
    before, after = load_config(run_dir / CONFIG), load_config(run_dir / CONFIG, overrides)
    old, new = (_flatten(resolved.config.model_dump()) for resolved in (before, after))
    changes = {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
    fixed = (*_FIXED, _FIXED_IN_REPLAY) if before.config.train.replay_seed else _FIXED
    problems = [_describe(run_dir, key, *values) for key, values in changes.items() if _is_fixed(key, fixed)]
    if problems:
        raise ConfigError(*problems)
    return after, changes


def _is_fixed(key: str, fixed: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in fixed)


def _flatten(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{above}{key}.") if isinstance(value, dict) and value else {above + key: value}
    return flat


def _describe(run_dir: Path, key: str, before: Any, after: Any) -> Problem:
    return Problem(
        f"{key} is {write_value(before)} in this run, and cannot become {write_value(after)}",
        where=str(run_dir / CONFIG),
        why="with other data, another model, seed or global batch it would be another run",
        fix=f"sftray train … {key}={write_value(after)} name={run_dir.name}-2, or resume without it",
    )


def describe_changes(changes: Changes) -> list[str]:
    return [f"{key}: {write_value(before)} → {write_value(after)}" for key, (before, after) in changes.items()]


def save_changes(run_dir: Path, resolved: Resolved, changes: Changes) -> None:
    """The new config in the run's directory, and in its events what is other than before."""
    if not changes:
        return
    write_whole(run_dir / CONFIG, dump_config(resolved))
    journal = Journal(run_dir)
    facts = {key: [before, after] for key, (before, after) in changes.items()}
    journal.add_event("changed", journal.count_attempts(), "; ".join(describe_changes(changes)), changes=facts)
