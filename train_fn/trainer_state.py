"""The part of a checkpoint that only training needs: the optimizer and random states, as safetensors, and a few
numbers, as JSON."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sftray.train_fn.checkpoint import Checkpoint, write_flushed
from sftray.train_fn.errors import CheckpointError, Problem

_TRAINER = "trainer"
_RNG = "rng.safetensors"


def collect_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's own tensors as "part.parameter": not copied."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{part}.{names[parameter]}": value
        for parameter, values in optimizer.state.items()
        for part, value in values.items()
    }


def save_trainer_state(
    folder: Path,
    optimizer: Mapping[str, Tensor],
    rng: Mapping[str, Tensor],
    state: Mapping[str, Any],
    max_bytes: int = 4 * 10**9,
) -> None:
    """Write tensors of the optimizer in files of at most `max_bytes` (or one tensor), random states, and JSON."""
    trainer = folder / _TRAINER
    trainer.mkdir(exist_ok=True)
    parts = list(_split(optimizer, max_bytes))
    for number, part in enumerate(parts, 1):
        name = "optimizer" if len(parts) == 1 else f"optimizer-{number:05d}-of-{len(parts):05d}"
        save_file({key: value.cpu().contiguous() for key, value in part.items()}, trainer / f"{name}.safetensors")
    if rng:
        save_file(dict(rng), trainer / _RNG)
    write_flushed(trainer / "state.json", json.dumps(state, indent=1))


def _split(tensors: Mapping[str, Tensor], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for key, value in tensors.items():
        if part and size + value.nbytes > max_bytes:
            yield part
            part, size = {}, 0
        part[key] = value.detach()
        size += value.nbytes
    yield part


def load_trainer_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Fill the optimizer from a checkpoint and return the JSON state.

    Raises:
        CheckpointError: it belongs to another model.
    """
    trainer = checkpoint.folder / _TRAINER
    files = sorted(trainer.glob("optimizer*.safetensors"))
    tensors = {key: value for file in files for key, value in load_file(file).items()}
    by_name = dict(model.named_parameters())
    held = {key.split(".", 1)[1] for key in tensors}
    if held and (missing := sorted(name for name in by_name.keys() - held if by_name[name].requires_grad)):
        raise CheckpointError(_describe_other(checkpoint, f"lacks {missing[0]}, which this model has"))
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        if name not in by_name or (value.ndim and value.shape != by_name[name].shape):
            shape = list(value.shape)
            raise CheckpointError(
                _describe_other(checkpoint, f"holds {name} {shape}, which this model does not have")
            )
        # AdamW keeps its step count on the CPU unless fused on a GPU; torch moves it where it is needed.
        optimizer.state[by_name[name]][part] = value.to(device)
    state: dict[str, Any] = json.loads((trainer / "state.json").read_text(encoding="utf-8"))
    return state


def load_rng(checkpoint: Checkpoint, rank: int) -> dict[str, Tensor]:
    """The random states of a rank by their sources; {} where the checkpoint has none of it."""
    path = checkpoint.folder / _TRAINER / _RNG
    if not path.exists():
        return {}
    prefix = f"rank-{rank}."
    with safe_open(path, framework="pt") as held:  # those of thousands of other ranks stay on the disk
        names: list[str] = held.keys()
        return {name.removeprefix(prefix): held.get_tensor(name) for name in names if name.startswith(prefix)}


def _describe_other(checkpoint: Checkpoint, difference: str) -> Problem:
    return Problem(
        f"the checkpoint {difference}",
        where=str(checkpoint.folder),
        why="it is the checkpoint of another model",
        fix="resume with the model of the run, or start a run of another name",
    )
