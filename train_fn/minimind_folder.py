"""Folders of Hugging Face's layout that were MiniMind's weights, and can become them again."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from sftray.train_fn.errors import CheckpointError, ConfigError, Problem, StoreError
from sftray.train_fn.local_copies import keep_copy
from sftray.train_fn.minimind_config import build_config, describe_config, load_config
from sftray.train_fn.minimind_file import load_file
from sftray.train_fn.minimind_layout import EMBEDDING, HEAD, Generation, Layout
from sftray.train_fn.minimind_shape import Asked, read_layout
from sftray.train_fn.minimind_weights import check_dtype, get_shapes, to_minimind, to_transformers
from sftray.train_fn.tokenizer import explain_foreign

WEIGHTS = "model.safetensors"
_EDITION = 2  # of what is written; a change of it makes converted copies anew
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt"),
)


@dataclass(frozen=True)
class Converted:
    """`weights`: what is written. `notes`: what was assumed, or must be known, in words."""

    layout: Layout
    weights: dict[str, Tensor]
    dtype: torch.dtype
    notes: list[str]


def read_minimind(path: Path, asked: Asked) -> Converted:
    """The weights in a `.pth` file, as Hugging Face's.

    Raises:
        ConfigError: there is no such file, or what is asked for does not fit it.
        CheckpointError: it is not, whole and alone, a model of MiniMind's.
    """
    weights, where = load_file(path), str(path)
    layout, notes = read_layout(get_shapes(weights), where, asked)
    found = to_transformers(weights, layout, where)
    return Converted(layout, found, check_dtype(weights, where), notes)


def write_folder(converted: Converted, folder: Path, tokenizer: Path | None = None) -> None:
    """A folder that transformers loads as it is; it is there whole or not at all.

    Args:
        tokenizer: a folder whose tokenizer is copied into it.

    Raises:
        ConfigError: the folder is there and not empty, or the tokenizer is none, or does not fit the vocabulary.
        StoreError: it cannot be written.
    """
    refuse_taken(folder)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.draft")
    try:
        draft.mkdir(parents=True)
        special = {} if tokenizer is None else _copy_tokenizer(tokenizer, draft, converted.layout.vocab)
        fill_folder(converted, draft, special)
        draft.rename(folder)
    except (OSError, SafetensorError) as error:  # the second: its word for a full disk
        said = getattr(error, "strerror", None) or str(error)
        problem = Problem(
            f"the folder cannot be written: {said}", str(folder), fix="make room there, or another path"
        )
        raise StoreError(problem) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def convert_here(path: Path) -> Path:
    """A folder with what a `.pth` file holds, beside the copies of buckets: one for all processes of this machine.

    Raises:
        ConfigError: there is no such file. CheckpointError: it is no model of MiniMind's.
        StoreError: there is no room for the folder.
    """
    path = path.expanduser().absolute()
    try:
        state = path.stat()
    except OSError as error:
        what = f"model.name: {path} cannot be read: {error.strerror}"
        raise ConfigError(Problem(what, fix="model.name: a .pth file, a folder, or a hub id")) from error

    def convert(folder: Path) -> None:
        try:
            fill_folder(read_minimind(path, Asked()), folder)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(errno.EIO, str(error)) from error

    mark = hashlib.sha256(f"{_EDITION} {path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:24]
    return keep_copy(f"minimind-{mark}", convert)


def refuse_taken(folder: Path) -> None:
    """Raise ConfigError where something is there already, other than an empty folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(Problem(f"{folder} is there already", fix="another folder, or an empty one"))


def fill_folder(converted: Converted, folder: Path, special: dict[str, int] | None = None) -> None:
    """Config and weights into an empty folder, which is then seen to load with nothing missing or left over."""
    build_config(converted.layout, converted.dtype, special or {}, converted.notes).save_pretrained(folder)
    save_safetensors(converted.weights, folder / WEIGHTS, metadata={"format": "pt"})
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _prove_loads(folder)


def read_folder(folder: Path, generation: Generation | None) -> Converted:
    """The weights in a folder of Hugging Face's layout, as MiniMind's of this generation.

    Args:
        generation: None takes the one that the folder was converted from.

    Raises:
        ConfigError: there is no such folder. CheckpointError: it holds what MiniMind's model cannot be.
    """
    where = str(folder)
    config = load_config(folder)
    layout, notes = describe_config(config, generation, where)
    weights = _load_tensors(folder)
    if config.tie_word_embeddings and EMBEDDING in weights:  # transformers saves a tied matrix once
        weights.setdefault(HEAD, weights[EMBEDDING])
    found = to_minimind(weights, layout, where)
    return Converted(layout, found, check_dtype(found, where), notes)


def _prove_loads(folder: Path) -> None:
    """Raise CheckpointError unless transformers finds every tensor that its model has, and no other."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        _, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    wrong = {kind: keys for kind, keys in told.items() if keys}
    if wrong:
        what = "the installed transformers does not load what was converted"
        raise CheckpointError(Problem(what, str(folder), why=f"{wrong}"[:500], fix="install the locked version"))


def _copy_tokenizer(source: Path, target: Path, vocab: int) -> dict[str, int]:
    """The special ids that the tokenizer names, for the model's config."""
    from transformers import AutoTokenizer

    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (target / "tokenizer.json").exists():
        what = f"there is no tokenizer.json in {source}"
        raise ConfigError(Problem(what, fix="--tokenizer: the folder of MiniMind's tokenizer, such as model/"))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    except Exception as error:  # over broken files it raises anything; the problem says it
        what = f"the tokenizer in {source} cannot be loaded"
        raise ConfigError(Problem(what, why=explain_foreign(error), fix="--tokenizer: another folder")) from error
    if len(tokenizer) > vocab:
        what = f"the tokenizer in {source} has {len(tokenizer)} tokens, and the model has {vocab}"
        raise ConfigError(Problem(what, fix="--tokenizer: the one that the model was trained with"))
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: int(found) for name in names if (found := getattr(tokenizer, name)) is not None}


def _load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, of one file or of those that its index names."""
    index = folder / f"{WEIGHTS}.index.json"
    weights: dict[str, Tensor] = {}
    path = index
    try:
        names = (
            set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else {WEIGHTS}
        )
        for path in (folder / name for name in sorted(names)):
            weights |= load_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why, fix = explain_foreign(error), f"a folder with {WEIGHTS}, whole"
        raise CheckpointError(Problem("the weights cannot be read", str(path), why, fix)) from error
    return weights
