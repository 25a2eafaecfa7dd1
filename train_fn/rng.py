"""The states of all random generators of a process, as tensors.

A step seeds torch from (seed, step, rank), so resuming the same training needs none of them; they are kept for what a
model's or a library's own code may draw in between.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_rng(seed: int, rank: int) -> None:
    """Begin all generators of this process anew, each rank's with other numbers."""
    mixed = int(np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint32)[0])
    torch.manual_seed(mixed)  # those of GPUs too
    np.random.seed(mixed)
    random.seed(mixed)


def collect_rng(device: torch.device) -> dict[str, Tensor]:
    """Source -> state: `torch`, `cuda` where the device is one, `numpy` [625], `python` [625]."""
    numbers: Any = np.random.get_state()  # the global generator: it is what libraries draw from
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*numbers[1].tolist(), numbers[2]], dtype=torch.int64),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `collect_rng` gave; what is not there stays as it is."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "numpy" in states:
        *words, position = states["numpy"].tolist()
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, 0, 0.0))
    if "python" in states:
        random.setstate((3, tuple(states["python"].tolist()), None))
