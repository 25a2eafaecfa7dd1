"""Small files of MiniMind's, of each generation, dense and with experts, and models that give their logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_model import ReferenceModel, Shape
from torch import Tensor, nn

from sftray.train_fn.errors import CheckpointError, Problem, UserError
from sftray.train_fn.minimind_layout import Generation

Logits = Callable[[Tensor], Tensor]
SMALL = {"dim": 64, "n_layers": 2, "vocab_size": 96}
_QWEN3: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,  # not a part of the width: it is read from the norm of queries
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
}
# What April 2025's names became: those of `model/model_minimind.py` in MiniMind's repository.
_LLAMA = (
    ("tok_embeddings.", "model.embed_tokens."),
    ("output.", "lm_head."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("attention.w", "self_attn.w"),
    ("feed_forward.shared_experts.", "mlp.shared_experts.0."),
    ("feed_forward.", "mlp."),
    *((f".w{name}.", f".{name}_proj.") for name in "qkvo"),
    (".w1.", ".gate_proj."),
    (".w2.", ".down_proj."),
    (".w3.", ".up_proj."),
)


def build_small(generation: Generation, experts: int, seed: int = 0) -> tuple[dict[str, Tensor], Logits]:
    """A state dict as MiniMind saves it, in fp32, and the function from ids (B, T) to its logits."""
    if generation == "minimind-3":
        return _build_qwen3(experts, seed)
    model = ReferenceModel(Shape(**SMALL, num_experts=experts, halves=generation == "llama"), seed).eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if generation == "llama":
        state = {_rename(key): tensor for key, tensor in state.items()}
    return state, no_grad(lambda ids: model(ids)[0])


def save_small(path: Path, generation: Generation = "original", experts: int = 0, **changes: Any) -> Path:
    """`changes`: tensors, or None to leave one out."""
    state = {
        **build_small(generation, experts)[0],
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    return path


def no_grad(compute: Logits) -> Logits:
    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return compute(ids)

    return logits


def _rename(key: str) -> str:
    for old, new in _LLAMA:
        key = key.replace(old, new)
    return key if key.startswith(("model.", "lm_head.")) else f"model.{key}"


def _build_qwen3(experts: int, seed: int) -> tuple[dict[str, Tensor], Logits]:
    """minimind-3 is Qwen3 by construction; only its experts are separate tensors, as in its `MOEFeedForward`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model("qwen3_moe" if experts else "qwen3", **{**_QWEN3, "num_experts": experts})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        centre, spread = (1.0, 0.1) if "norm" in name else (0.0, 0.05)
        nn.init.normal_(parameter, centre, spread)
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        stem, _, kind = key.rpartition(".experts.")
        for e, one in enumerate(tensor if stem else ()):
            parts = dict(zip(("gate_proj", "up_proj"), one.chunk(2), strict=True)) if kind == "gate_up_proj" else {}
            for name, part in (parts or {kind: one}).items():
                state[f"{stem}.experts.{e}.{name}.weight"] = part.clone()
        if not stem:
            state[key] = tensor.clone()
    return state, no_grad(lambda ids: model(ids).logits)


def refuse(act: Callable[[], object], kind: type[UserError] = CheckpointError) -> Problem:
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    (problem,) = caught.value.problems
    assert problem.fix
    return problem
