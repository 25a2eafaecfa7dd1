"""The config of transformers that MiniMind's weights need: built of their layout, and read back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sftray.train_fn.errors import CheckpointError, ConfigError, Problem
from sftray.train_fn.minimind_layout import (
    DEFAULT_HEADS,
    EXPERTS_PER_TOKEN,
    NORM_EPS,
    ROPE_THETA,
    Generation,
    Layout,
)
from sftray.train_fn.tokenizer import explain_foreign

GENERATION = "minimind_generation"  # in config.json, where training keeps it: what the weights were converted from
ASSUMED = "minimind_assumed"  # as well: what the file of the weights did not say
CONFIG = "config.json"
_KINDS = {
    "LlamaForCausalLM": "llama",
    "Ernie4_5_MoeForCausalLM": "ernie4_5_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
_POSITIONS = 32768  # MiniMind computes its rotary embedding so far
_SEQUENCE_ALPHA = 0.1  # weight of the balance loss of each sequence, where an expert is shared
_BATCH_COEF = 5e-4  # weight of minimind-3's balance loss, which is one of the whole batch


def build_config(layout: Layout, dtype: torch.dtype, special: dict[str, int], assumed: Sequence[str] = ()) -> Any:
    """Of transformers.

    Args:
        special: ids of special tokens (`eos_token_id`, …) where they are not MiniMind's.
        assumed: what the file did not say, in words.
    """
    from transformers import AutoConfig

    keys: dict[str, Any] = {
        "architectures": [layout.architecture],
        "hidden_size": layout.dim,
        "intermediate_size": layout.hidden,
        "num_hidden_layers": layout.n_layers,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "vocab_size": layout.vocab,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": NORM_EPS[layout.generation],
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "dtype": dtype,
        GENERATION: layout.generation,
        ASSUMED: list(assumed),
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        **special,
        **_list_expert_keys(layout),
    }
    return AutoConfig.for_model(_KINDS[layout.architecture], **keys)


def _list_expert_keys(layout: Layout) -> dict[str, Any]:
    if not layout.experts:
        return {}
    if layout.generation == "minimind-3":
        return {
            "num_experts": layout.experts,
            "num_experts_per_tok": layout.per_token,
            "moe_intermediate_size": layout.hidden,
            "norm_topk_prob": True,
            "router_aux_loss_coef": _BATCH_COEF,
        }
    return {
        "moe_num_experts": layout.experts,
        "moe_k": layout.per_token,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": layout.hidden,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": layout.n_layers - 1,
        "moe_layer_interval": 1,
        "use_bias": False,
        "seq_aux_alpha": _SEQUENCE_ALPHA,
    }


def load_config(folder: Path) -> Any:
    """The config of transformers in a folder.

    Raises:
        ConfigError: there is no such folder, or no config in it. CheckpointError: it cannot be read.
    """
    from transformers import AutoConfig

    if not folder.is_dir():
        state = "is a file" if folder.exists() else "is not there"
        what = f"{folder} {state}, and --to minimind reads a folder of Hugging Face's layout"
        raise ConfigError(Problem(what, fix="a folder with config.json and model.safetensors"))
    if not (folder / CONFIG).exists():
        inner = sorted(folder.glob(f"checkpoints/step-*/{CONFIG}"))
        fix = f"a run's checkpoint: {inner[-1].parent}" if inner else f"a folder with {CONFIG} and model.safetensors"
        raise ConfigError(Problem(f"there is no {CONFIG} in {folder}", fix=fix))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # over a broken config.json it raises anything; the problem says it
        why, fix = explain_foreign(error), "a folder that transformers loads without code of its own"
        raise CheckpointError(Problem("the config cannot be read", str(folder / CONFIG), why, fix)) from error


def describe_config(config: Any, asked: Generation | None, where: str) -> tuple[Layout, list[str]]:
    """The layout of a model of this config as MiniMind has it, and what a person must know of it, in words.

    Args:
        asked: the generation; None takes the one that the config remembers, else the oldest that it can be.

    Raises:
        ConfigError: this model cannot be of the generation asked for. CheckpointError: it can be none of MiniMind's.
    """
    problems = list(_find_foreign(config))
    if problems:
        fix = "a model of MiniMind's shape, such as one that sftray convert minimind made"
        raise CheckpointError(Problem("MiniMind cannot hold this model", where, "; ".join(problems), fix))
    generation, notes = _settle_generation(config, asked)
    is_moe = config.model_type in ("ernie4_5_moe", "qwen3_moe")
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layout = Layout(
        generation,
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=width,
        hidden=config.moe_intermediate_size if is_moe else config.intermediate_size,
        vocab=config.vocab_size,
        experts=config.num_experts if is_moe else 0,
        per_token=config.num_experts_per_tok if is_moe else 0,
    )
    return layout, [*notes, *_list_settings(config, layout)]


def _settle_generation(config: Any, asked: Generation | None) -> tuple[Generation, list[str]]:
    legal: tuple[Generation, ...] = (
        ("minimind-3",) if config.model_type.startswith("qwen3") else ("original", "llama")
    )
    remembered = getattr(config, GENERATION, None)
    generation = asked or (remembered if remembered in legal else legal[0])
    if generation not in legal:
        what = f"--generation {generation}, and {config.model_type} is {' or '.join(legal)}"
        raise ConfigError(Problem(what, fix=f"--generation {legal[0]}, or leave it out"))
    if asked or remembered in legal or len(legal) == 1:
        return generation, []
    return generation, [
        f"assumed: names of the generation {generation} (--generation llama for those from April 26, 2025)"
    ]


def _find_foreign(config: Any) -> Iterator[str]:
    """What no model of MiniMind's has, in words; other tensors are found by their keys."""
    if config.model_type not in _KINDS.values():
        yield f"it is a {config.model_type}, and MiniMind's are {', '.join(_KINDS)}"
        return
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        yield f"its rotary embedding is scaled: {rope['rope_type']}"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}, not silu"
    if getattr(config, "use_sliding_window", False):
        yield "its attention has a sliding window"
    own_width = getattr(config, "head_dim", None)
    if not config.model_type.startswith("qwen3") and own_width not in (
        None,
        config.hidden_size // config.num_attention_heads,
    ):
        yield f"its heads are {own_width} wide, and not a part of the width {config.hidden_size}"
    if config.model_type == "ernie4_5_moe":
        layers = config.moe_layer_start_index, config.moe_layer_end_index, config.moe_layer_interval
        if layers != (0, config.num_hidden_layers - 1, 1):
            yield "not all of its layers have experts"
        if config.moe_num_shared_experts != 1:
            yield f"it has {config.moe_num_shared_experts} shared experts, not 1"
    if config.model_type == "qwen3_moe":
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            yield "not all of its layers have experts"
        if not config.norm_topk_prob:
            yield "the weights of its experts are not renormalised"


def _list_settings(config: Any, layout: Layout) -> Iterator[str]:
    """Where MiniMind's own config must be told another value than its default, which no tensor shows."""
    theta = (config.rope_parameters or {}).get("rope_theta", ROPE_THETA)
    generation = layout.generation
    for name, found, default in (
        ("heads", layout.heads, DEFAULT_HEADS),
        ("epsilon of norms", config.rms_norm_eps, NORM_EPS[generation]),
        ("rope_theta", theta, ROPE_THETA),
        ("experts per token", layout.per_token or None, EXPERTS_PER_TOKEN[generation] if layout.experts else None),
    ):
        if found != default:
            yield f"to be set in MiniMind's config: {name} {found}, not its default {default}"
