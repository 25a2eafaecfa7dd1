"""What a run needs of those who start it: where it stands, how it is distributed, and who hears of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sftray.train_fn.batch import Batch
from sftray.train_fn.trainer import Place

# Buffers are constants here, and workers may make unequal numbers of forwards.
DDP_SETTINGS: dict[str, Any] = {"forward_sync_buffers": False, "gradient_as_bucket_view": True}

Report = Callable[[dict[str, float], Path | None], None]


@dataclass(frozen=True)
class Door:
    """`wrap` distributes a model, `prepare` makes a loader deliver to the device, `report` registers metrics and,
    if there is one, a checkpoint's folder, and `is_preempted` says whether a worker's node is going to be taken away:
    both by all ranks together."""

    place: Place
    wrap: Callable[[nn.Module], nn.Module]
    prepare: Callable[[Any], Iterable[Batch]]
    report: Report
    is_preempted: Callable[[], bool] = lambda: False


def open_alone(report: Report) -> Door:
    """The door of a run that is one process, whoever started it; the GPU is the first that it can see."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return Door(Place(0, 1, device), lambda model: model, lambda loader: _deliver(loader, device), report)


def open_member(rank: int, world_size: int, report: Report) -> Door:
    """The door of one of several processes that have joined a group of torch.distributed; GPUs are taken in turn."""
    count = torch.cuda.device_count()
    device = torch.device("cuda", rank % count) if count else torch.device("cpu")

    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, device_ids=[device.index] if count else None, **DDP_SETTINGS)

    return Door(Place(rank, world_size, device), wrap, lambda loader: _deliver(loader, device), report)


def _deliver(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in loader:
        yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}  # type: ignore[misc,attr-defined]  # a TypedDict of tensors alone
