"""What a worker builds before its first step."""

from dataclasses import dataclass
from typing import Any

import torch

from sftray.train_fn.balance import Routers
from sftray.train_fn.chat import build_chat_format
from sftray.train_fn.checkpoint import Checkpoint
from sftray.train_fn.config import RunConfig
from sftray.train_fn.loader import RunPlan, count_total_steps
from sftray.train_fn.loop import TakeStep, take_step
from sftray.train_fn.loss import TargetHead
from sftray.train_fn.model import build_model, refuse_leak, settle_generation
from sftray.train_fn.optimizer import build_optimizer
from sftray.train_fn.planner import Budget
from sftray.train_fn.step import Trainer, build_scaler
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import LoadedTokenizer
from sftray.train_fn.trainer_state import load_trainer_state


@dataclass(frozen=True)
class Place:
    """Where this process stands among the workers."""

    rank: int
    world_size: int
    device: torch.device


def build_budget(config: RunConfig, attention: str | None = None) -> Budget:
    """What one forward may hold. Flash attention tells packed examples apart in a single row only."""
    train = config.train
    return Budget(
        tokens=train.micro_batch_size * config.data.max_seq_len,
        examples=train.micro_batch_size,
        packing=train.packing,
        max_rows=1 if attention == "flash_attention_2" else None,
    )


def build_run_plan(config: RunConfig, store: TokenStore, world_size: int, attention: str | None = None) -> RunPlan:
    train, batch = config.train, config.global_batch_size
    run = RunPlan(
        lengths=store.lengths,
        target_counts=store.target_counts,
        seed=train.seed,
        global_batch_size=batch,
        total_steps=count_total_steps(len(store), batch, train.epochs, train.max_steps, train.max_examples),
        world_size=world_size,
        budget=build_budget(config, attention),
        max_examples=train.max_examples,
    )
    if not train.replay_seed:
        return run
    from sftray.train_fn.replay import plan_replay

    return plan_replay(run, config)


def choose_step(config: RunConfig) -> TakeStep:
    """How the run takes its steps."""
    if not config.train.replay_seed:
        return take_step
    from sftray.train_fn.replay import replay_step

    return replay_step


def refuse_processor(config: RunConfig, on_gpu: bool) -> None:
    """Raise ConfigError where the run would not go there."""
    if config.train.replay_seed:
        from sftray.train_fn.replay import refuse_half

        refuse_half(on_gpu, config.train.precision)


def build_trainer(
    config: RunConfig, loaded: LoadedTokenizer, place: Place, source: Checkpoint | None
) -> tuple[Trainer, dict[str, Any]]:
    """Model, optimizer and scaler, from the run's beginning or from a checkpoint.

    The order matters: 1 seed, 2 weights, 3 the packing check, 4 optimizer, 5 the checkpoint's optimizer state
    and scale. Wrapping in DDP, which copies rank 0's weights to all, is the caller's.

    Returns:
        The trainer, unwrapped, and the checkpoint's JSON state ({} without one).

    Raises:
        ConfigError: the model cannot be built, leaks between packed examples, or would not go on this processor.
        CheckpointError: the checkpoint belongs to another model.
    """
    refuse_processor(config, place.device.type != "cpu")
    torch.manual_seed(config.train.seed)
    # fp32 means fp32: TF32 would round the products of matrices to 10 bits. bf16 is there for speed.
    torch.set_float32_matmul_precision("highest")
    model = build_model(config.model, loaded, place.device, source.folder if source else None)
    settle_generation(model, loaded, build_chat_format(loaded.tokenizer).end_of_turn_id)
    if config.train.packing:
        refuse_leak(model)
    optimizer = build_optimizer(model, config.optim)
    scaler = build_scaler(place.device, config.train.precision)
    state: dict[str, Any] = {}
    if source is not None:
        state = load_trainer_state(source, model, optimizer, place.device)
        scaler.load_state_dict(state["scaler"])
    head, routers = TargetHead(model), Routers(model, config.model.aux_loss_coef)
    if config.model.compile:
        model.compile(dynamic=True)
    trainer = Trainer(
        model=model,
        wrapped=model,
        head=head,
        routers=routers,
        optimizer=optimizer,
        scaler=scaler,
        device=place.device,
        precision=config.train.precision,
        max_grad_norm=config.optim.max_grad_norm,
        seed=config.train.seed,
        rank=place.rank,
        world_size=place.world_size,
    )
    return trainer, state
