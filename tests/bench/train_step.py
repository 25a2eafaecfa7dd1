"""Speed and memory of the optimizer step, against the loop most scripts have and against the limit.

    python tests/bench/train_step.py [--data chats.jsonl --tokenizer FOLDER] [--precision fp32] [--rounds 5]

Three ways to train the same model on the same conversations, interleaved in one process on one thread
setting, so that a noisy machine meets all of them alike:

(a) ours    packed micro-batches from a token store, logits at targets alone, one division by all targets
(b) seed    rows padded to max_seq_len, full logits, the mean over each micro-batch's mask, then their mean
(c) limit   random tokens already in memory, rows full to the last token, logits at the same share of
            positions, no loader: nothing that is left to save

Without --data, conversations of random tokens with the lengths of real chats are made: 300 of 512 tokens on
average, 40 % of them targets.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from sftray.train_fn.batch import Batch, Example, build_batch
from sftray.train_fn.config import DataConfig, ModelConfig, OptimConfig
from sftray.train_fn.loader import PlannedSampler, RunPlan, build_loader
from sftray.train_fn.loss import TargetHead
from sftray.train_fn.optimizer import build_optimizer
from sftray.train_fn.planner import Budget
from sftray.train_fn.prepare import prepare_tokens
from sftray.train_fn.step import Trainer, build_scaler, run_step
from sftray.train_fn.token_store import SplitWriter, TokenStore
from sftray.train_fn.tokenizer import load_tokenizer

VOCAB_SIZE, MAX_SEQ_LEN, MICRO_BATCH, GLOBAL_BATCH = 49152, 512, 4, 32


def build_model() -> torch.nn.Module:
    """17M parameters, most of them in the tied embeddings of a 49152-token vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=704, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def make_store(folder: Path, num_examples: int) -> TokenStore:
    """Random tokens: lengths log-normal around 300, cut at 512; two fifths of each are targets, at its end."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.62, 0.5, num_examples), 16, MAX_SEQ_LEN).astype(int)
    writer = SplitWriter(folder / "train-00000.arrow")
    masks = [np.arange(n) >= round(n * 0.6) for n in lengths]
    writer.write(
        {
            "input_ids": [rng.integers(0, VOCAB_SIZE, n).astype(np.int32) for n in lengths],
            "loss_mask": masks,
            "num_target_tokens": [int(mask[1:].sum()) for mask in masks],
            "file": [0] * num_examples,
            "row": list(range(num_examples)),
            "digest": list(range(num_examples)),
        }
    )
    writer.close()
    return TokenStore(folder, "train")


def prepare_store(folder: Path, data: str, tokenizer: str) -> TokenStore:
    model = ModelConfig(name=tokenizer)
    prepared = prepare_tokens(model, DataConfig(train=data, max_seq_len=MAX_SEQ_LEN), folder, load_tokenizer(model))
    return TokenStore(prepared.folder, "train")


def build_trainer(precision: str) -> Trainer:
    model = build_model()
    device = torch.device("cpu")
    return Trainer(
        model=model, wrapped=model, head=TargetHead(model), optimizer=build_optimizer(model, OptimConfig()),
        scaler=build_scaler(device, precision), device=device, precision=precision, max_grad_norm=1.0,
        seed=0, rank=0, world_size=1,
    )  # fmt: skip


def run_ours(trainer: Trainer, run: RunPlan, batches: Iterator[Batch], step: int) -> int:
    plan = run.plan(step)
    run_step(trainer, batches, plan, step, 1e-4)
    return plan.num_target_tokens


def run_seed(trainer: Trainer, examples: list[Example]) -> int:
    """The seed's step: pad to max_seq_len, all logits, mean of means."""
    micro_batches = [examples[i : i + MICRO_BATCH] for i in range(0, len(examples), MICRO_BATCH)]
    targets = 0
    for micro_batch in micro_batches:
        batch = build_batch([[e] for e in micro_batch], 0)
        ids = F.pad(batch["input_ids"], (0, MAX_SEQ_LEN - batch["input_ids"].shape[1]))
        mask = F.pad(batch["predicts"], (0, MAX_SEQ_LEN - batch["predicts"].shape[1])).float()
        with trainer.autocast():
            logits = trainer.model(input_ids=ids).logits
            losses = F.cross_entropy(logits.view(-1, VOCAB_SIZE), ids.roll(-1, 1).view(-1), reduction="none")
            loss = (losses * mask.view(-1)).sum() / mask.sum() / len(micro_batches)
        loss.backward()
        targets += int(mask.sum())
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return targets


class Limit:
    """The same tokens and targets as a step of ours, without anything in between."""

    def __init__(self, num_tokens: int, num_targets: int) -> None:
        rows = round(num_tokens / MAX_SEQ_LEN)
        share = num_targets / num_tokens
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(VOCAB_SIZE, (rows, MAX_SEQ_LEN), generator=generator)
        predicts = torch.rand(ids.shape, generator=generator) < share
        self.batches = [
            Batch(
                input_ids=part,
                position_ids=torch.arange(MAX_SEQ_LEN).expand(part.shape),
                predicts=mask,
                target_ids=part[mask],
                segments=torch.arange(1, len(part) + 1)[:, None].expand(part.shape),
                tally=torch.zeros(2, dtype=torch.float64),
            )
            for part, mask in zip(ids.split(MICRO_BATCH), predicts.split(MICRO_BATCH), strict=True)
        ]
        self.num_targets = int(predicts.sum())

    def run(self, trainer: Trainer) -> int:
        for batch in self.batches:
            with trainer.autocast():
                trainer.head.predicts = batch["predicts"]
                logits = trainer.model(input_ids=batch["input_ids"], use_cache=False).logits
                trainer.head.predicts = None
                loss = F.cross_entropy(logits.float(), batch["target_ids"], reduction="sum")
            (loss / self.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return self.num_targets


def measure(step: Callable[[], int]) -> tuple[float, float]:
    """Target tokens per second of one step, and its peak of resident memory in MB (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from the present
    started = time.perf_counter()
    targets = step()
    seconds = time.perf_counter() - started
    (line,) = [ln for ln in Path("/proc/self/status").read_text().splitlines() if ln.startswith("VmHWM")]
    return targets / seconds, int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        store = prepare_store(folder, args.data, args.tokenizer) if args.data else make_store(folder, 2000)
        compare(store, args.precision, args.rounds)


def compare(store: TokenStore, precision: str, rounds: int) -> None:
    budget = Budget(MICRO_BATCH * MAX_SEQ_LEN, MICRO_BATCH, packing=True)
    run = RunPlan(store.lengths, store.target_counts, 0, GLOBAL_BATCH, rounds + 1, 1, budget)
    batches = iter(build_loader(store, PlannedSampler(run, 0, 0), 0, on_gpu=False))
    ours, seed, bare = (build_trainer(precision) for _ in range(3))
    share = store.target_counts.sum() / store.lengths.sum()
    print(
        f"{len(store)} conversations, {store.lengths.mean():.0f} tokens on average, {share:.0%} targets; "
        f"{sum(p.numel() for p in ours.model.parameters()) / 1e6:.1f}M parameters, {precision}, "
        f"{torch.get_num_threads()} threads"
    )
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "seed": [], "limit": []}
    for step in range(rounds + 1):  # the first round warms up
        plan = run.plan(step)
        examples = [store[int(i)] for i in plan.examples]
        limit = Limit(plan.num_tokens, plan.num_target_tokens)
        ways: dict[str, Callable[[], int]] = {
            "ours": lambda step=step: run_ours(ours, run, batches, step),  # type: ignore[misc]
            "seed": lambda examples=examples: run_seed(seed, examples),  # type: ignore[misc]
            "limit": lambda limit=limit: limit.run(bare),  # type: ignore[misc]
        }
        for name, way in ways.items():
            outcome = measure(way)
            if step:
                results[name].append(outcome)
    report(results)


def report(results: dict[str, list[tuple[float, float]]]) -> None:
    speed = {name: median(s for s, _ in rows) for name, rows in results.items()}
    memory = {name: max(m for _, m in rows) for name, rows in results.items()}
    for name in results:
        letter = "abc"[list(results).index(name)]
        print(f"({letter}) {name:6} {speed[name]:8.0f} target tokens/s  peak {memory[name]:7.0f} MB")
    print(f"speed  ours/limit {speed['ours'] / speed['limit']:.2f}   ours/seed {speed['ours'] / speed['seed']:.2f}")
    print(f"memory ours/seed  {memory['ours'] / memory['seed']:.2f}")


if __name__ == "__main__":
    main()
