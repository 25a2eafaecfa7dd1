"""Which keys of a config a sweep may search, and in words why not the others."""

import math
from typing import Any

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_names import Meant, meant_key
from sftray.train_fn.config_problems import cut
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.config_words import is_legal, leaf_fields, legal_values, right_value, section_keys

SCRATCH_PREFIX = "model.scratch."
SEED = "train.seed"
# Of each pair at most one can be set.
RIVALS = {
    "train.global_batch_size": "train.gradient_accumulation_steps",
    "train.gradient_accumulation_steps": "train.global_batch_size",
    "train.max_steps": "train.max_examples",
    "train.max_examples": "train.max_steps",
    "model.name": "model.scratch",
    "model.scratch": "model.name",
}

# How each key that may be searched is searched usefully.
EXAMPLES: dict[str, dict[str, Any]] = {
    "optim.learning_rate": {"log_uniform": [1e-5, 1e-3]},
    "optim.schedule": {"choice": ["cosine", "linear", "constant"]},
    "optim.warmup_ratio": {"uniform": [0.0, 0.2]},
    "optim.min_lr_ratio": {"uniform": [0.0, 0.3]},
    "optim.weight_decay": {"log_uniform": [1e-4, 0.3]},
    "optim.betas": {"choice": [[0.9, 0.95], [0.9, 0.999]]},
    "optim.max_grad_norm": {"choice": [0.5, 1.0, 2.0]},
    "train.gradient_accumulation_steps": {"choice": [1, 2, 4, 8]},
    "train.global_batch_size": {"choice": [16, 32, 64, 128]},
    "train.micro_batch_size": {"choice": [2, 4, 8]},
    "train.packing": {"choice": [True, False]},
    "train.precision": {"choice": ["fp32", "bf16"]},
    SEED: {"choice": [1, 2, 3, 4]},
    "model.aux_loss_coef": {"log_uniform": [1e-3, 0.1]},
    "model.attn_implementation": {"choice": ["eager", "sdpa"]},
    "model.gradient_checkpointing": {"choice": [False, True]},
    "model.compile": {"choice": [False, True]},
}

_TOKENS = "the data are made into tokens once, for all trials"
_SWEEP = "it belongs to the sweep as a whole, not to a trial"
_LENGTH = "every trial gets the same number of examples, which --max-examples says"
_EVERY = "the sweep validates and saves all trials at the same progress, so that they can be compared"
# A key or a section, the longest that fits counts -> why it cannot be searched.
_REASONS = {
    "data": _TOKENS,
    "model.name": _TOKENS,
    "model.tokenizer": _TOKENS,
    "model.chat_template": _TOKENS,
    "model.scratch": "it is a group of settings: search the keys in it, such as model.scratch.hidden_size",
    "model.scratch.architecture": "models of two architectures have no keys in common to search",
    "model.scratch.vocab_size": "it follows from the tokenizer, and " + _TOKENS,
    "train.epochs": _LENGTH,
    "train.max_steps": _LENGTH,
    "train.max_examples": _LENGTH,
    "train.replay_seed": "it replays MiniMind's loop, which has a length of its own",
    "train.log_every": _EVERY,
    "train.eval_every": _EVERY,
    "train.save_every": _EVERY,
    "scaling": _SWEEP,
    "store": _SWEEP,
    "limits": _SWEEP,
    "tracking": _SWEEP,
    "name": "the sweep gives every trial its name",
}
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of settings",
}
_NEVER_SET = ("name", "store", "tracking")


def is_key(key: str) -> bool:
    """Is `key` a setting: one of the config's, or one straight below model.scratch?"""
    inner = key.removeprefix(SCRATCH_PREFIX)
    return key in leaf_fields() or (inner != key and bool(inner) and "." not in inner)


def find_reason(key: str) -> str | None:
    """Why `key` cannot be searched; None if it can."""
    section = key.partition(".")[0]
    return _REASONS.get(key) or (None if key in EXAMPLES else _REASONS.get(section))


def can_be_set(key: str) -> bool:
    """May a space hold `key` with one value for all trials?"""
    return key.partition(".")[0] not in _NEVER_SET


def fits(key: str, value: object, config: RunConfig) -> bool:
    """Would `key: value` pass? Of the keys in model.scratch: is it of the kind that `config` has there?"""
    if key.startswith(SCRATCH_PREFIX):
        return _fits_scratch(_current(key, config), value)
    if value is None:  # the model's own
        return key == "model.aux_loss_coef"
    return is_legal(key, value)


def _current(key: str, config: RunConfig) -> object:
    """What `config` holds at a key of model.scratch; None if nothing."""
    return (config.model.scratch or {}).get(key.removeprefix(SCRATCH_PREFIX))


def _fits_scratch(current: object, value: object) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if current is None:
        return isinstance(value, str | int | float | list | dict)
    if type(current) is float:
        return type(value) in (int, float)
    return type(value) is type(current)


def takes_numbers(key: str, config: RunConfig) -> tuple[bool, bool]:
    """May `key` be a whole number, and may it be another one?"""
    return fits(key, 1, config), fits(key, 0.5, config)


def legal_words(key: str, config: RunConfig) -> str:
    """What `key` may hold, in words."""
    if not key.startswith(SCRATCH_PREFIX):
        return legal_values(key)
    current = _current(key, config)
    kind = _KINDS.get(type(current), "a finite number, text, true or false")
    return kind if current is None else f"{kind}, as in the config"


def example_spec(key: str, config: RunConfig) -> dict[str, Any]:
    """A way to search `key`, or to set it if it cannot be searched."""
    if key.startswith(SCRATCH_PREFIX):
        current = _current(key, config)
        if isinstance(current, int | float) and not isinstance(current, bool):
            return {"choice": [current, 2 * current]}
        return {"choice": [1 if current is None else current]}
    return EXAMPLES.get(key) or {"value": right_value(key, None)}


def write_entry(name: str, spec: object) -> str:
    """The line of a space that says `name: spec`."""
    return cut(f"{name}: {write_value(spec)}", 200)


def describe_keys(key: str) -> str:
    """Which keys there are where the unknown `key` stands."""
    section = key.partition(".")[0]
    if "." not in key or section not in section_keys():
        return f"a space may search: {', '.join(EXAMPLES)}, and the keys in model.scratch"
    return f"{section} knows: {', '.join(sorted(section_keys()[section]))}"


def find_meant(key: str) -> Meant | None:
    """The setting that the unknown `key` was probably meant to be; never a whole section."""
    section, _, word = key.rpartition(".")
    meant = meant_key(section, word)
    return meant if meant is not None and meant.key in leaf_fields() else None
