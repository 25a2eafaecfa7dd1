"""Small real things for tests: examples, a token store, models of any family, a tokenizer, a trainer and a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

from sftray.train_fn.balance import Routers
from sftray.train_fn.batch import Example, count_target_tokens
from sftray.train_fn.config import OptimConfig
from sftray.train_fn.loader import PlannedSampler, RunPlan, build_loader
from sftray.train_fn.loop import StepResult, train_steps
from sftray.train_fn.loss import TargetHead
from sftray.train_fn.optimizer import build_optimizer
from sftray.train_fn.planner import Budget
from sftray.train_fn.snapshot import take_snapshot, write_snapshot
from sftray.train_fn.step import Trainer, build_scaler
from sftray.train_fn.token_store import Split, SplitWriter, TokenStore

VOCAB_SIZE, LONGEST, PAD_ID = 97, 60, 0
_SIZES: dict[str, Any] = {  # the same things under the names of several families
    "vocab_size": VOCAB_SIZE,
    **dict.fromkeys(("hidden_size", "n_embd", "ffn_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_local_experts", "num_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 48),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": PAD_ID,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def example(ids: Sequence[int], mask: Sequence[int]) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))


def draw_examples(count: int, seed: int = 0, without_target: Sequence[int] = ()) -> list[Example]:
    """Conversations of 3 to LONGEST tokens, most of them short, with one or two answers; the last token is a
    target. Those whose number is in `without_target` have none."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        length = 3 + int((LONGEST - 3) * rng.random() ** 2)
        mask = np.zeros(length, dtype=np.bool_)
        if number not in without_target:
            answer = int(rng.integers(1, length))
            mask[answer:] = True
            mask[answer : answer + int(rng.integers(0, length - answer))] = rng.random() < 0.5
        examples.append(Example(rng.integers(3, VOCAB_SIZE, length).astype(np.int32), mask))
    return examples


def write_store(folder: Path, examples: Sequence[Example], split: Split = "train", rows: int = 5) -> TokenStore:
    """A real store of these examples, in record batches of `rows`; example i came from row i + 1 of file 0."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = SplitWriter(folder / f"{split}-00000.arrow")
    for start in range(0, len(examples), rows):
        part = examples[start : start + rows]
        writer.write(
            {
                "input_ids": [e.input_ids for e in part],
                "loss_mask": [e.loss_mask for e in part],
                "num_target_tokens": [count_target_tokens(e.loss_mask) for e in part],
                "file": [0] * len(part),
                "row": [start + k + 1 for k in range(len(part))],
                "digest": [digest_ids(e) for e in part],
            }
        )
    writer.close()
    return TokenStore(folder, split)


def digest_ids(one: Example) -> int:
    return int.from_bytes(hashlib.blake2b(one.input_ids.tobytes(), digest_size=8).digest(), "little")


def build_model(family: str = "llama", seed: int = 0, attention: str | None = None, **keys: Any) -> Any:
    """An untrained model of two layers, in training mode; a key of _SIZES the family lacks is left out."""
    known = AutoConfig.for_model(family)
    config = AutoConfig.for_model(family, **{k: v for k, v in _SIZES.items() if hasattr(known, k)} | keys)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).train()


def build_tokenizer() -> Any:
    """One token a word: `w3` … `w96`, after <pad>, <bos> and <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, VOCAB_SIZE))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def build_trainer(
    model: Any,
    optim: OptimConfig | None = None,
    precision: str = "fp32",
    max_grad_norm: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
    aux_loss_coef: float | None = 0.0,
) -> Trainer:
    """A trainer on the CPU; wrapped in DDP where there are several workers."""
    device = torch.device("cpu")
    head, routers = TargetHead(model), Routers(model, aux_loss_coef)
    wrapped = model
    if world_size > 1:
        wrapped = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
    return Trainer(
        model=model,
        wrapped=wrapped,
        head=head,
        routers=routers,
        optimizer=build_optimizer(model, optim or OptimConfig(learning_rate=1e-3)),
        scaler=build_scaler(device, precision),
        device=device,
        precision=precision,
        max_grad_norm=max_grad_norm,
        seed=1,
        rank=rank,
        world_size=world_size,
    )


@dataclass(frozen=True)
class Layout:
    """What must not change what is learned."""

    micro_batch_size: int = 8
    packing: bool = False
    world_size: int = 1

    @property
    def budget(self) -> Budget:
        return Budget(self.micro_batch_size * LONGEST, self.micro_batch_size, self.packing)


def plan_run(store: TokenStore, layout: Layout, total_steps: int, global_batch_size: int = 8) -> RunPlan:
    return RunPlan(
        lengths=store.lengths,
        target_counts=store.target_counts,
        seed=1,
        global_batch_size=global_batch_size,
        total_steps=total_steps,
        world_size=layout.world_size,
        budget=layout.budget,
    )


def run_steps(
    trainer: Trainer, run: RunPlan, store: TokenStore, optim: OptimConfig, start: int = 0, stop: int | None = None
) -> list[StepResult]:
    """Train from `start` up to `stop`, or to the end of the run."""
    batches = iter(build_loader(store, PlannedSampler(run, trainer.rank, start), PAD_ID, on_gpu=False))
    steps = train_steps(trainer, run, optim, batches, start)
    return [next(steps) for _ in range(start, stop or run.total_steps)]


def write_checkpoint(folder: Path, trainer: Trainer, tokenizer: Any, state: dict[str, Any]) -> None:
    """Fill a checkpoint's folder from a trainer, as a run does it."""
    write_snapshot(folder, take_snapshot(trainer, state, {}), trainer.model, tokenizer)
