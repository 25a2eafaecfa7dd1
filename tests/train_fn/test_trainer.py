"""What a worker builds before its first step: from a config, and from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model, draw_examples, write_checkpoint, write_store

from sftray.train_fn.balance import choose_balance
from sftray.train_fn.checkpoint import Manifest, commit_checkpoint
from sftray.train_fn.config import ModelConfig, RunConfig
from sftray.train_fn.errors import CheckpointError, ConfigError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.model import choose_attention
from sftray.train_fn.planner import Budget
from sftray.train_fn.step import Trainer
from sftray.train_fn.tokenizer import LoadedTokenizer, load_tokenizer
from sftray.train_fn.trainer import (
    Place,
    build_budget,
    build_run_plan,
    build_trainer,
)

PLACE = Place(rank=0, world_size=1, device=torch.device("cpu"))
LLAMA = {
    "architecture": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OPT = {
    "architecture": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def configure(scratch: dict[str, Any] = LLAMA, **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"scratch": scratch, "tokenizer": "quickstart"},
            "data": {"train": "train.jsonl", "max_seq_len": 64},
            "train": {"precision": "fp16", "micro_batch_size": 2, "global_batch_size": 8, **train},
        }
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedTokenizer:
    return load_tokenizer(ModelConfig(name="unused", tokenizer="quickstart"))


def take_one_step(trainer: Trainer) -> None:
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    trainer.optimizer.step()


def test_the_seed_decides_the_untrained_weights(loaded: LoadedTokenizer) -> None:
    first, again, other = (
        torch.cat(
            [p.flatten() for p in build_trainer(configure(seed=seed), loaded, PLACE, None)[0].model.parameters()]
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_trainer_from_a_checkpoint_is_the_one_that_was_saved(loaded: LoadedTokenizer, tmp_path: Path) -> None:
    saved, state = build_trainer(configure(), loaded, PLACE, None)
    assert state == {} and saved.model.training and saved.scaler.get_scale() == 2.0**16
    take_one_step(saved)
    saved.scaler.load_state_dict({**saved.scaler.state_dict(), "scale": 4.0})
    checkpoint = commit_checkpoint(
        tmp_path / CHECKPOINTS,
        Manifest(step=1, attempt=1, config_hash="c", data_fingerprint="d"),
        lambda folder: write_checkpoint(folder, saved, loaded.tokenizer, {"skipped_steps": 3}),
    )
    trainer, state = build_trainer(configure(seed=2), loaded, PLACE, checkpoint)
    assert state["skipped_steps"] == 3 and trainer.scaler.get_scale() == 4.0 and trainer.model.training
    for one, other in zip(trainer.model.parameters(), saved.model.parameters(), strict=True):
        assert torch.equal(one, other) and one.dtype == torch.float32
        assert torch.equal(trainer.optimizer.state[one]["exp_avg"], saved.optimizer.state[other]["exp_avg"])
    assert trainer.model.generation_config.to_dict() == saved.model.generation_config.to_dict()


def test_a_checkpoint_whose_optimizer_is_of_another_model_is_refused(loaded: LoadedTokenizer, tmp_path: Path) -> None:
    wide, _ = build_trainer(configure({**LLAMA, "hidden_size": 48}), loaded, PLACE, None)
    narrow, _ = build_trainer(configure(), loaded, PLACE, None)
    take_one_step(wide)

    def write(folder: Path) -> None:
        write_checkpoint(folder, wide, loaded.tokenizer, {})
        narrow.model.save_pretrained(folder)

    checkpoint = commit_checkpoint(tmp_path / CHECKPOINTS, Manifest(1, 1, "c", "d"), write)
    with pytest.raises(CheckpointError, match="which this model does not have"):
        build_trainer(configure(), loaded, PLACE, checkpoint)


def test_packing_on_a_model_that_leaks_is_refused_before_training(loaded: LoadedTokenizer) -> None:
    with pytest.raises(ConfigError, match="packed examples of OPTForCausalLM see each other"):
        build_trainer(configure(OPT), loaded, PLACE, None)
    assert build_trainer(configure(OPT, packing=False), loaded, PLACE, None)[0].model.training


@pytest.mark.parametrize(
    ("packing", "attention", "expected"),
    [
        (True, "sdpa", Budget(128, 2, True)),
        (True, "flash_attention_2", Budget(128, 2, True, max_rows=1)),
        (False, "eager", Budget(128, 2, False)),
    ],
)
def test_a_forward_may_hold_what_the_config_says(packing: bool, attention: str, expected: Budget) -> None:
    assert build_budget(configure(packing=packing), attention) == expected


@pytest.mark.parametrize(("train", "steps"), [({}, 3), ({"epochs": 4}, 12), ({"epochs": 4, "max_steps": 5}, 5)])
def test_a_run_has_its_steps(train: dict[str, Any], steps: int, tmp_path: Path) -> None:
    run = build_run_plan(configure(**train), write_store(tmp_path, draw_examples(20)), world_size=3)
    assert run.total_steps == steps and run.count_examples(3) == 20
    assert len(run.plan(0).micro_batches) == 3


@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("mixtral", None, 0.001),
        ("mixtral", 0.5, 0.5),
        ("mixtral", 0.0, 0.0),
        ("llama", None, 0.0),
        ("llama", 0.5, 0.0),
    ],
)
def test_the_auxiliary_loss_weighs_what_is_asked_or_what_the_model_says(
    family: str, asked: float | None, expected: float
) -> None:
    assert choose_balance(build_model(family).config, asked) == ("batch", expected)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_without_a_backward_on_a_cpu_is_refused(attention: Any) -> None:
    with pytest.raises(ConfigError, match="trains on GPUs only"):
        choose_attention(ModelConfig(name="m", attn_implementation=attention), torch.device("cpu"))
    asked = choose_attention(ModelConfig(name="m", attn_implementation=attention), torch.device("cuda"))
    assert asked == attention
