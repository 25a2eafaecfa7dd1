"""The same run under many layouts: the losses of its steps, the gradient of the first, and where it ends."""

import itertools
import math
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tiny import PAD_ID, Layout, build_model, build_trainer, draw_examples, plan_run, run_steps, write_store
from torch import nn

from sftray.train_fn.config import OptimConfig
from sftray.train_fn.evaluation import evaluate, plan_evaluation
from sftray.train_fn.loader import FixedSampler, build_loader
from sftray.train_fn.token_store import TokenStore

TOTAL_STEPS, GLOBAL_BATCH_SIZE = 20, 8
ASKS_TO_STOP = 7  # the step at which the last rank, and it alone, wants to stop
# 59 examples are 7 whole batches and one of 3; among the first 8 and the last 3 there are some without target.
NUM_EXAMPLES, WITHOUT_TARGET = 59, tuple(range(0, 59, 5))
OPTIM = OptimConfig(learning_rate=1e-3, weight_decay=0.1)
LAYOUTS = {
    world_size: [Layout(size, packing, world_size) for size in (1, 2, 4) for packing in (False, True)]
    for world_size in (1, 2, 3)
}
EXPERT_LAYOUTS = {  # of the mixture of experts: unpacked and packed, the last with workers that are left without
    1: [Layout(1), Layout(2, packing=True), Layout(8, packing=True)],
    2: [Layout(2, False, 2), Layout(4, True, 2)],
    3: [Layout(8, True, 3)],
}


@dataclass(frozen=True)
class Trace:
    losses: list[float]
    stops: list[bool]
    padded: list[tuple[int, int]]  # tokens with padding of each step, as all ranks sent them and as they are planned
    gradient: NDArray[np.float32]  # of the first step, unclipped, all parameters in order
    weights: NDArray[np.float32]  # after the last step
    val_loss: float  # of all examples, with these weights
    aux_losses: list[float]  # of the steps; empty for a dense model
    loads: list[tuple[float, float]]  # the fullest and the emptiest expert; empty for a dense model


def open_store(folder: Path) -> TokenStore:
    return write_store(folder, draw_examples(NUM_EXAMPLES, seed=9, without_target=WITHOUT_TARGET))


def flatten(tensors: Any) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy().copy()
    return flat


def build_experts(alpha: float | None = 1.0) -> Any:
    """A mixture of experts in both layers; the auxiliary loss of each example is heavy, so that it tells."""
    keys = {"moe_num_shared_experts": 1, "moe_layer_start_index": 0, "tie_word_embeddings": True}
    return build_model("ernie4_5_moe", seq_aux_alpha=alpha, **keys)


def follow(
    layout: Layout,
    store: TokenStore,
    rank: int = 0,
    model: nn.Module | None = None,
    aux_loss_coef: float | None = None,
) -> Trace:
    """Train an untrained model from its beginning; every layout starts with the same weights."""
    model = model or build_model(tie_word_embeddings=True)
    trainer = build_trainer(model, OPTIM, rank=rank, world_size=layout.world_size, aux_loss_coef=aux_loss_coef)
    gradients: list[NDArray[np.float32]] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(flatten(p.grad for p in _trained(model))) if not gradients else None
    )
    asked = itertools.count()
    trainer.wants_stop = lambda: next(asked) == ASKS_TO_STOP and rank == layout.world_size - 1
    run = plan_run(store, layout, TOTAL_STEPS, GLOBAL_BATCH_SIZE)
    results = run_steps(trainer, run, store, OPTIM)
    clipped = min(1.0, trainer.max_grad_norm / results[0].outcome.grad_norm)
    outcomes = [result.outcome for result in results]
    forwards = plan_evaluation(store.lengths, rank, layout.world_size, layout.budget)
    return Trace(
        losses=[outcome.loss for outcome in outcomes],
        stops=[outcome.stop_asked for outcome in outcomes],
        padded=[(result.outcome.padded_tokens, result.plan.padded_tokens) for result in results],
        gradient=gradients[0] / clipped,
        weights=flatten(model.parameters()),
        val_loss=evaluate(trainer, build_loader(store, FixedSampler(forwards), PAD_ID, on_gpu=False)),
        aux_losses=[outcome.aux_loss for outcome in outcomes if outcome.aux_loss is not None],
        loads=[outcome.expert_load for outcome in outcomes if outcome.expert_load is not None],
    )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def follow_all(rank: int, tokens: Path, out: Path) -> None:
    """What one spawned process does: join each world of two or more that has a place for it, in turn.

    The last layout of each world runs twice. Every rank writes `out/<layout>-<rank>.npz`.
    """
    torch.set_num_threads(1)
    store = TokenStore(tokens, "train")
    for world_size in (2, 3):
        if rank >= world_size:
            continue
        join = f"file://{out}/join-{world_size}"
        dist.init_process_group("gloo", join, timedelta(minutes=2), rank=rank, world_size=world_size)
        layouts = [(name_layout(layout), layout) for layout in LAYOUTS[world_size]]
        layouts.append((name_layout(layouts[-1][1]) + "-again", layouts[-1][1]))
        for name, layout in layouts:
            trace = follow(layout, store, rank)
            np.savez(out / f"{name}-{rank}.npz", **vars(trace))
        for layout in EXPERT_LAYOUTS[world_size]:
            trace = follow(layout, store, rank, build_experts())
            np.savez(out / f"experts-{name_layout(layout)}-{rank}.npz", **vars(trace))
        applied, weights = break_one_rank(Layout(2, True, world_size), store, rank)
        np.savez(out / f"broken-{world_size}-{rank}.npz", applied=applied, weights=weights)
        dist.destroy_process_group()


def break_one_rank(layout: Layout, store: TokenStore, rank: int) -> tuple[list[bool], NDArray[np.float32]]:
    """Three steps; in the second the last rank's gradient is not a number."""
    trainer = build_trainer(build_model(), OPTIM, rank=rank, world_size=layout.world_size)
    run = plan_run(store, layout, 3, GLOBAL_BATCH_SIZE)
    applied = []
    for step in range(3):
        factor = math.nan if step == 1 and rank == layout.world_size - 1 else 1.0
        hook = next(trainer.model.parameters()).register_hook(partial(torch.mul, other=factor))
        applied.append(run_steps(trainer, run, store, OPTIM, step, step + 1)[0].outcome.applied)
        hook.remove()
    return applied, flatten(trainer.model.parameters())


def name_layout(layout: Layout) -> str:
    packed = "packed" if layout.packing else "padded"
    return f"{layout.world_size}x{layout.micro_batch_size}-{packed}"


def load_trace(out: Path, name: str, rank: int) -> Trace:
    with np.load(out / f"{name}-{rank}.npz") as file:
        return Trace(
            file["losses"].tolist(),
            file["stops"].tolist(),
            [(sent, planned) for sent, planned in file["padded"].tolist()],
            file["gradient"],
            file["weights"],
            float(file["val_loss"]),
            file["aux_losses"].tolist(),
            [(most, least) for most, least in file["loads"].tolist()],
        )
