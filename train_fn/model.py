"""Building the model of a run, and proving on it what packing relies on."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftray.train_fn.balance import SEQUENCE_WEIGHT
from sftray.train_fn.config import ModelConfig
from sftray.train_fn.errors import ConfigError, Problem, UserError
from sftray.train_fn.local_copies import copy_source
from sftray.train_fn.minimind_layout import is_weights_file
from sftray.train_fn.tokenizer import LoadedTokenizer, describe_missing, explain_foreign, load_tokenizer

# Kernels sum in different orders for different neighbours; a leak moves logits by far more than this.
LEAK_TOLERANCE = 1e-6


def load_model_config(model: ModelConfig, loaded: LoadedTokenizer) -> Any:
    """The transformers config of the run's model, vocabulary and special ids settled.

    Raises:
        ConfigError: unknown architecture or keys in `model.scratch`, or a model that cannot be found.
        CheckpointError: `model.name` is a file that holds no model of MiniMind's.
        StoreError: a copy of it that is needed here cannot be made.
    """
    from transformers import AutoConfig

    if model.scratch is not None:
        config = _build_scratch_config(model.scratch, loaded)
    else:
        assert model.name is not None
        try:
            config = AutoConfig.from_pretrained(_find_source(model.name), trust_remote_code=False)
        except UserError:  # of a file that is no model of MiniMind's, or a bucket
            raise
        except Exception as error:  # over a broken config.json it raises anything; the problem says it
            raise ConfigError(describe_missing(model.name, "model.name", "model", error)) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            Problem(
                f"{config.model_type} is an encoder-decoder model",
                why="supervised fine-tuning here is for causal language models",
                fix="model.name: a causal language model, such as HuggingFaceTB/SmolLM2-135M",
            )
        )
    return config


def _find_source(name: str) -> str:
    """What transformers is given: a hub id, or a folder of this machine."""
    source = copy_source(name)
    if not is_weights_file(name):
        return source
    from sftray.train_fn.minimind_folder import convert_here

    return str(convert_here(Path(source)))


def refuse_too_long(model_config: Any, max_seq_len: int) -> None:
    """Raise ConfigError where conversations may be longer than the positions the model has."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < max_seq_len:
        raise ConfigError(
            Problem(
                f"data.max_seq_len is {max_seq_len}, and the model has {limit} positions",
                why="it has never seen later ones, or has no embedding for them at all",
                fix=f"data.max_seq_len={limit}",
            )
        )


def _build_scratch_config(scratch: dict[str, Any], loaded: LoadedTokenizer) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    keys = dict(scratch)
    architecture = keys.pop("architecture")
    if architecture not in CONFIG_MAPPING:
        raise ConfigError(_describe_unknown("model.scratch.architecture", architecture, list(CONFIG_MAPPING)))
    default = AutoConfig.for_model(architecture)
    known = [*default.to_dict(), *type(default).attribute_map, "dtype", "rope_theta"]
    known += [SEQUENCE_WEIGHT] if hasattr(default, "router_aux_loss_coef") else []
    unknown = [_describe_unknown("model.scratch", key, known) for key in keys if key not in known]
    if unknown:
        raise ConfigError(*unknown)
    tokenizer = loaded.tokenizer
    keys.setdefault("vocab_size", len(tokenizer))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        keys.setdefault(name, getattr(tokenizer, name))
    try:
        config = AutoConfig.for_model(architecture, **keys)
    except Exception as error:  # each architecture's own code runs over these values; the problem says it
        raise ConfigError(
            Problem(
                f"model.scratch: {architecture} refuses these values",
                why=explain_foreign(error),
                fix="mend the values",
            )
        ) from error
    problems = list(_find_misfits(config, len(tokenizer)))
    if problems:
        raise ConfigError(*problems)
    return config


def _find_misfits(config: Any, num_tokens: int) -> Iterator[Problem]:
    if config.vocab_size < num_tokens:
        yield Problem(
            f"model.scratch.vocab_size is {config.vocab_size}, below the tokenizer's {num_tokens} tokens",
            fix=f"vocab_size: {num_tokens}, or leave it out",
        )
    alpha = getattr(config, SEQUENCE_WEIGHT, None)
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha < 0):
        yield Problem(
            f"model.scratch.{SEQUENCE_WEIGHT} must be a number, 0 or more, not {alpha!r}",
            fix=f"{SEQUENCE_WEIGHT}: 0.1, or leave it out",
        )
    heads, shared = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        yield Problem(  # else only the first forward would say so
            f"model.scratch.num_key_value_heads is {shared}, which does not divide the {heads} attention heads",
            fix=f"num_key_value_heads: {heads}, or a divisor of it",
        )


def _describe_unknown(key: str, given: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(str(given), known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return Problem(
        f"{key}: {given!r} is not known to transformers.{hint}",
        why="keys and architectures are those of the installed transformers",
        fix=f"use {near[0]}" if near else "see the architecture's config class",
    )


def choose_attention(model: ModelConfig, device: torch.device) -> str | None:
    """The attention implementation to ask transformers for; None lets it take SDPA where the model has it.

    Raises:
        ConfigError: one that needs a GPU (torch's flex attention has no backward on a CPU) was asked for without.
    """
    if device.type == "cpu" and model.attn_implementation in ("flash_attention_2", "flex_attention"):
        raise ConfigError(
            Problem(
                f"model.attn_implementation: {model.attn_implementation} trains on GPUs only; this worker has none",
                why="its kernels have no backward on a CPU",
                fix="model.attn_implementation=sdpa",
            )
        )
    if model.attn_implementation != "auto":
        return model.attn_implementation
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else None


def build_model(model: ModelConfig, loaded: LoadedTokenizer, device: torch.device, source: Path | None = None) -> Any:
    """The model in fp32 on `device`, in training mode.

    Args:
        source: a checkpoint folder whose weights replace the pretrained or untrained ones.

    Raises:
        ConfigError: it cannot be found or built, or lacks the attention implementation asked for.
    """
    from transformers import AutoModelForCausalLM

    config = load_model_config(model, loaded)
    options = {"dtype": torch.float32, "attn_implementation": choose_attention(model, device)}
    try:
        if source is not None:
            built = AutoModelForCausalLM.from_pretrained(source, **options)
        elif model.scratch is not None:
            built = AutoModelForCausalLM.from_config(config, **options)
        else:
            built = AutoModelForCausalLM.from_pretrained(_find_source(str(model.name)), config=config, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(describe_missing(str(model.name or model.scratch), "model", "model", error)) from error
    _freeze_as_built(built)
    if len(loaded.tokenizer) > built.get_input_embeddings().weight.shape[0]:
        built.resize_token_embeddings(len(loaded.tokenizer))
    if model.gradient_checkpointing:
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return built.to(device).train()


def _freeze_as_built(model: Any) -> None:
    """What the architecture's code makes without a gradient has none, though loading makes every parameter anew.

    Otherwise each worker waits for gradients that never come, as of Ernie's correction of the choice of experts.
    """
    with torch.device("meta"):
        built = type(model)(model.config)
    frozen = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def settle_generation(model: Any, loaded: LoadedTokenizer, end_of_turn_id: int) -> None:
    """Make generation stop at the end-of-turn token that was trained, and say so in what is saved."""
    generation = model.generation_config
    stops = generation.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    generation.eos_token_id = [end_of_turn_id, *(stop for stop in stops if stop != end_of_turn_id)]
    if generation.pad_token_id is None:
        generation.pad_token_id = loaded.pad_id
    # A greedy default of sampling settings would be refused on saving.
    if not generation.do_sample:
        generation.temperature = generation.top_p = generation.top_k = None


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_parameters_of(config: Any) -> int:
    """Parameters of a model of this config, without building its weights.

    Raises:
        ConfigError: it cannot be built.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return count_parameters(AutoModelForCausalLM.from_config(config))
    except Exception as error:  # an architecture's code checks few of its values first; the problem says it
        raise ConfigError(
            Problem(
                f"model: no causal language model can be built from this config of {config.model_type}",
                why=explain_foreign(error),
                fix="mend the values of model.scratch, or name another model",
            )
        ) from error


@torch.no_grad()
def measure_packing_leak(model: Any, length: int = 12) -> float:
    """How far the logits of a packed example move when its neighbour changes: 0, or up to 1e-6, is isolated.

    Two examples stand in one row; all tokens of the first are changed. The model is left in its mode.
    """
    device = model.get_input_embeddings().weight.device
    vocab_size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (3, length), generator=generator).to(device)
    positions = torch.arange(length, device=device).repeat(2)[None]
    was_training = model.training
    model.eval()
    try:
        one, other = (_packed_logits(model, torch.cat([first, ids[2]])[None], positions) for first in ids[:2])
    finally:
        model.train(was_training)
    return float((one[:, length:] - other[:, length:]).abs().max())


def _packed_logits(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    output = model(input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False)
    logits: Tensor = output.logits
    return logits.float()


def measure_leak_of(config: ModelConfig) -> float:
    """`measure_packing_leak` of the model of a run, built for this on the CPU; infinite where it has no positions."""
    model = build_model(config, load_tokenizer(config), torch.device("cpu"), None)
    try:
        return measure_packing_leak(model)
    except TypeError:
        return float("inf")


def refuse_leak(model: Any) -> None:
    """Raise ConfigError where packed examples of this very model see each other."""
    try:
        leak = measure_packing_leak(model)
    except TypeError:  # no position_ids at all: nothing tells the model where an example starts
        leak = float("inf")
    if leak > LEAK_TOLERANCE:
        raise ConfigError(
            Problem(
                f"train.packing: packed examples of {type(model).__name__} see each other "
                f"(logits move by {leak:.2g})",
                why="this model cannot keep the examples of a row apart; packed training would mix them",
                fix="train.packing=false",
            )
        )
