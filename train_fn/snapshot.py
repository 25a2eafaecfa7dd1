"""A copy of a trainer's state in host memory, so that it can be written while training goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftray.train_fn.step import Trainer
from sftray.train_fn.trainer_state import collect_optimizer, save_trainer_state

_SHARD = "4GB"  # weights and optimizer are cut into files of at most this
SHARD_BYTES = 4 * 10**9

Buffers = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Snapshot:
    """`optimizer` maps "part.parameter" and `rng` "rank-0.source" to tensors; `state` is JSON."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: dict[str, Any]


def take_snapshot(
    trainer: Trainer, state: Mapping[str, Any], rng: Mapping[str, Tensor], buffers: Buffers | None = None
) -> Snapshot:
    """Copy weights and optimizer to host memory; complete when it returns.

    Args:
        buffers: the memory of an earlier snapshot that nobody reads any more, used again; filled where it lacks.
    """
    buffers = {} if buffers is None else buffers
    weights = _copy("weights", trainer.model.state_dict(), buffers)
    optimizer = _copy("optimizer", collect_optimizer(trainer.model, trainer.optimizer), buffers)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return Snapshot(weights, optimizer, dict(rng), {**state, "scaler": trainer.scaler.state_dict()})


def _copy(kind: str, tensors: Mapping[str, Tensor], buffers: Buffers) -> dict[str, Tensor]:
    """Copies under the same names. Names of one tensor, as of tied weights, share one copy too."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        source = tensor.detach()
        key = (source.data_ptr() or id(tensor), source.shape)
        if key not in copies:
            copies[key] = _fill((kind, name), source, buffers)
        found[name] = copies[key]
    return found


def _fill(key: tuple[str, str], source: Tensor, buffers: Buffers) -> Tensor:
    held = buffers.get(key)
    if held is None or held.shape != source.shape or held.dtype != source.dtype:
        held = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
        buffers[key] = held
    return held.copy_(source, non_blocking=source.is_cuda)


def write_snapshot(folder: Path, snapshot: Snapshot, model: Any, tokenizer: Any) -> None:
    """Fill a checkpoint folder: Hugging Face's files, with the snapshot's weights, and the trainer's beside them."""
    model.save_pretrained(folder, state_dict=dict(snapshot.weights), max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder)
    save_trainer_state(folder, snapshot.optimizer, snapshot.rng, snapshot.state, SHARD_BYTES)
