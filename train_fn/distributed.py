"""Small agreements between ranks; each does nothing where there is one."""

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def share_first(value: T) -> T:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_all(value: T) -> list[T]:
    """The value of every rank, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
