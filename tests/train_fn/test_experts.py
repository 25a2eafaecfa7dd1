"""A small mixture of experts, MiniMind's first, trained whole: on two workers and on one it is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from local_runs import build_job, run_here
from minimind_model import ReferenceModel, Shape
from tiny_runs import build_config, read_metrics
from transformers import AutoModelForCausalLM

from sftray.cluster.processes import run_processes
from sftray.train_fn.config import ModelConfig, RunConfig
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.model import load_model_config
from sftray.train_fn.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

NUM_EXPERTS = 4
EXPERT_METRICS = ("train/aux_loss", "moe/expert_load_max", "moe/expert_load_min")
SCRATCH: dict[str, Any] = {
    "architecture": "qwen3_moe",
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
}


def configure(folder: Path, workers: int, **train: Any) -> RunConfig:
    weights = folder / "pretrain_64_moe.pth"
    if not weights.exists():
        shape = Shape(dim=64, n_layers=2, vocab_size=768, num_experts=NUM_EXPERTS)
        torch.save(ReferenceModel(shape).state_dict(), weights)
    model = {"name": str(weights), "scratch": None, "tokenizer": "quickstart"}
    return build_config(
        folder, model=model, optim={"learning_rate": 3e-3}, train=train, scaling={"num_workers": workers}
    )


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if "train/loss" in row]


def test_it_trains_on_two_workers_as_on_one_and_loads_in_plain_transformers(tmp_path: Path) -> None:
    two = build_job(configure(tmp_path, 2, packing=True), tmp_path, "two")
    one = build_job(configure(tmp_path, 1, packing=False, micro_batch_size=3), tmp_path, "one")
    assert run_processes(two, 2).finished
    assert run_here(one)["step"] == 12
    apart, alone = (read_metrics(Path(job["run_dir"])) for job in (two, one))
    for name in ("train/loss", "train/grad_norm", *EXPERT_METRICS):
        assert column(apart, name) == pytest.approx(column(alone, name), rel=1e-5), name
    assert column(apart, "train/loss")[-1] < 0.7 * column(apart, "train/loss")[0]
    for most, least, aux in zip(
        *(column(apart, name) for name in ("moe/expert_load_max", "moe/expert_load_min", "train/aux_loss")),
        strict=True,
    ):
        assert 0 <= least < 1 < most <= 2.0, "with two of four experts a token, twice an even share is the most"
        assert 2.0 <= aux < 2 * 1.5, "two layers, each 1 where all is even"

    newest = max(Path(two["run_dir"], CHECKPOINTS).glob("step-*"))
    model, info = AutoModelForCausalLM.from_pretrained(newest, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()) and type(model).__name__ == "Ernie4_5_MoeForCausalLM"
    assert model.config.seq_aux_alpha == 0.1
    assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


def test_the_weight_of_the_balance_is_a_setting(tmp_path: Path) -> None:
    found = []
    for name, coefficient in (("off", 0.0), ("own", None), ("heavy", 5.0)):
        config = configure(tmp_path, 1, max_examples=32)
        model = config.model.model_copy(update={"aux_loss_coef": coefficient})
        job = build_job(config.model_copy(update={"model": model}), tmp_path, name)
        run_here(job)
        found.append(read_metrics(Path(job["run_dir"])))
    off, own, heavy = found
    assert all("train/aux_loss" not in row for row in off) and column(off, "moe/expert_load_max")
    assert column(heavy, "train/aux_loss")[-1] < column(own, "train/aux_loss")[-1]


def test_other_mixtures_take_the_form_by_example_where_their_config_asks_for_it(tmp_path: Path) -> None:
    def train(name: str, **keys: Any) -> list[float]:
        model = {"scratch": {**SCRATCH, **keys}}
        config = build_config(tmp_path, model=model, train={"max_examples": 16}, scaling={"num_workers": 1})
        job = build_job(config, tmp_path, name)
        run_here(job)
        return column(read_metrics(Path(job["run_dir"])), "train/aux_loss")

    assert train("batch")[0] == pytest.approx(2.0, rel=0.1), "of all tokens: two experts a token"
    assert train("example", seq_aux_alpha=0.1)[0] == pytest.approx(2.0, rel=0.2), "of each example: two layers"


@pytest.mark.parametrize("alpha", [-0.1, "heavy", True])
def test_a_wrong_weight_of_the_form_by_example_is_refused(alpha: object) -> None:
    model = ModelConfig(scratch={**SCRATCH, "seq_aux_alpha": alpha}, tokenizer="quickstart")
    with pytest.raises(ConfigError, match=r"model\.scratch\.seq_aux_alpha must be a number"):
        load_model_config(model, load_tokenizer(model))


def test_a_dense_model_knows_no_such_key() -> None:
    scratch = {"architecture": "llama", "hidden_size": 32, "seq_aux_alpha": 0.1}
    model = ModelConfig(scratch=scratch, tokenizer="quickstart")
    with pytest.raises(ConfigError, match="'seq_aux_alpha' is not known"):
        load_model_config(model, load_tokenizer(model))
