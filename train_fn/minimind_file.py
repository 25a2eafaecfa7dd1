"""MiniMind's `.pth` files: read without running any code in them, and written whole."""

import contextlib
import os
import pickle
import re
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftray.train_fn.errors import CheckpointError, ConfigError, Problem, StoreError
from sftray.train_fn.minimind_layout import is_weights_file

# Whatever torch's readers trip over in a file that is not theirs.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)
_SAVED = "a file as MiniMind's scripts save it, such as out/pretrain_512.pth"


def load_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a bare state dict, on the CPU and of the types they were saved in.

    Raises:
        ConfigError: there is no such file. CheckpointError: it is no state dict; it says what it is instead.
    """
    where = str(path)
    head = _read_head(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's of pickles that it did not write; they are told of below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(_explain_unreadable(where, head, error)) from error
    _refuse_no_state_dict(found, where)
    return dict(found)


def save_file(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as torch.save does; the file is there whole or not at all.

    Raises:
        ConfigError: something is there already. StoreError: it cannot be written.
    """
    refuse_existing(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.draft")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            torch.save(dict(weights), file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except (OSError, RuntimeError) as error:  # the second: the word of torch's writer for a full disk
        said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        problem = Problem(f"the weights cannot be written: {said}", str(path), fix="make room there, or another path")
        raise StoreError(problem) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise ConfigError where something is there already."""
    if path.exists():
        raise ConfigError(Problem(f"{path} is there already", fix="another name, or remove it first"))


def _read_head(path: Path) -> bytes:
    where = str(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        beside = [p.name for p in sorted(path.absolute().parent.glob("*")) if is_weights_file(p.name)][:5]
        why = f"beside it: {', '.join(beside)}" if beside else None
        raise ConfigError(Problem(f"there is no file {path}", why=why, fix="the path of a .pth file")) from error
    except OSError as error:
        raise ConfigError(Problem(f"it cannot be read: {error.strerror or error}", where, fix=_SAVED)) from error
    if not head:
        raise CheckpointError(Problem("the file is empty", where, fix="copy or download it again"))
    return head


def _explain_unreadable(where: str, head: bytes, error: Exception) -> Problem:
    text = " ".join(str(error).split())
    if head.startswith(b"version https://git-lfs"):
        return Problem("a Git LFS pointer, not the weights", where, fix="fetch the file itself: git lfs pull")
    if isinstance(error, pickle.UnpicklingError) and (called := re.search(r"GLOBAL ([\w.]+)", text)):
        return Problem(
            f"the file holds more than tensors: loading it would run code ({called[1].rstrip('.')})",
            where,
            why="a pickle can do anything to this machine; only tensors and plain values are loaded",
            fix="a bare state dict: torch.save(model.state_dict(), 'new.pth') where the file comes from",
        )
    why = None if isinstance(error, pickle.UnpicklingError) else text[:200]  # torch's text says how to run code
    if head.startswith(b"PK\x03\x04"):
        what = "the file is damaged, or a ZIP archive that torch.save did not write"
    elif head.startswith(b"\x80"):
        what = "the file is damaged, or a pickle that torch.save did not write"
    else:
        what, why = "this is no file of torch.save's", f"it begins with {head[:16]!r}"
    return Problem(what, where, why, fix=f"copy or download it again: {_SAVED}")


def _refuse_no_state_dict(found: Any, where: str) -> None:
    """Raise CheckpointError unless `found` is a dict of names to tensors."""
    if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
        if all(isinstance(key, str) and value.layout == torch.strided for key, value in found.items()):
            return
        raise CheckpointError(Problem("its tensors are not plain ones with names", where, fix=_SAVED))
    what, why, fix = f"it holds a {type(found).__name__}, not the weights of a model", None, _SAVED
    if isinstance(found, Mapping):
        keys = [str(key) for key in found]
        why = f"its keys: {', '.join(keys[:6])}" if keys else "it is an empty dict"
        inner = next((key for key in ("model", "state_dict", "model_state_dict") if _is_dict(found.get(key))), None)
        if inner is not None:
            what = f"a training checkpoint: the weights are below its key {inner!r}"
            fix = f"take them out: torch.save(torch.load({where!r}, weights_only=True)[{inner!r}], 'new.pth')"
        elif {"state", "param_groups"} <= set(keys):
            what, fix = "the state of an optimizer, not the weights of a model", f"the file beside it: {_SAVED}"
        elif keys:
            what = "a dict of other things than tensors"
    raise CheckpointError(Problem(what, where, why, fix))


def _is_dict(value: object) -> bool:
    return isinstance(value, Mapping)
