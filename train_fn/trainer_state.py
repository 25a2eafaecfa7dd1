"""The part of a checkpoint that only training needs: the optimizer, as safetensors, and a few numbers, as JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sftray.train_fn.checkpoint import Checkpoint, write_flushed
from sftray.train_fn.errors import CheckpointError, Problem

_TRAINER = "trainer"


def save_trainer_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Optimizer tensors under the names of their parameters, and `state` as JSON."""
    (folder / _TRAINER).mkdir(exist_ok=True)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"{key}.{names[parameter]}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / _TRAINER / "optimizer.safetensors")
    write_flushed(folder / _TRAINER / "state.json", json.dumps(state, indent=1))


def load_trainer_state(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Fill the optimizer from a checkpoint and return the JSON state.

    Raises:
        CheckpointError: it belongs to another model.
    """
    tensors = load_file(checkpoint.folder / _TRAINER / "optimizer.safetensors")
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
    state: dict[str, Any] = json.loads((checkpoint.folder / _TRAINER / "state.json").read_text(encoding="utf-8"))
    return state


def _describe_other(checkpoint: Checkpoint, difference: str) -> Problem:
    return Problem(
        f"the checkpoint {difference}",
        where=str(checkpoint.folder),
        why="it is the checkpoint of another model",
        fix="resume with the model of the run, or start a run of another name",
    )
