"""What MiniMind's weights are called, and which key of Hugging Face's files each of them is.

MiniMind saves a bare dict of tensors. There are three generations of it, each dense or with experts:

- original, until April 2025: keys of its own; the rotary embedding turns neighbours, (0, 1), (2, 3)…
- llama, from April 26, 2025: Llama's keys, and its rotary embedding, which turns (0, d/2), (1, d/2 + 1)…
- minimind-3, from 2026: Llama's keys, and norms of queries and keys.

Dense ones are `LlamaForCausalLM`, with experts `Ernie4_5_MoeForCausalLM` (4 experts and one that all tokens share;
its rotary embedding turns neighbours); minimind-3 is `Qwen3ForCausalLM` or `Qwen3MoeForCausalLM`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Generation = Literal["original", "llama", "minimind-3"]
GENERATIONS: tuple[Generation, ...] = ("original", "llama", "minimind-3")
Shape = tuple[int, ...]

ENDINGS = (".pth", ".pt")
DEFAULT_HEADS = 8
ROPE_THETA = 1e6
NORM_EPS: dict[Generation, float] = {"original": 1e-5, "llama": 1e-5, "minimind-3": 1e-6}
EXPERTS_PER_TOKEN: dict[Generation, int] = {"original": 2, "llama": 2, "minimind-3": 1}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # one matrix

_ORIGINAL = {
    "model.embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "model.norm": "norm",
    "model.layers": "layers",
    "self_attn": "attention",
    "mlp": "feed_forward",
    **{f"{name}_proj": f"w{name}" for name in "qkvo"},
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LONGEST_FIRST = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(_ORIGINAL, key=len, reverse=True)))


def is_weights_file(name: str) -> bool:
    """Whether a model of this name is a file of MiniMind's, by its ending; the options of a URL do not count."""
    path = name.partition("?")[0] if "://" in name else name
    return path.lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Layout:
    """`hidden`: width of the feed-forward layers. `experts`: 0 where dense; `per_token` of them are chosen."""

    generation: Generation
    dim: int
    n_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    experts: int = 0
    per_token: int = 0

    @property
    def architecture(self) -> str:
        """The class of transformers."""
        if self.generation == "minimind-3":
            return "Qwen3MoeForCausalLM" if self.experts else "Qwen3ForCausalLM"
        return "Ernie4_5_MoeForCausalLM" if self.experts else "LlamaForCausalLM"


@dataclass(frozen=True)
class Pair:
    """One tensor: its key in MiniMind's file and in Hugging Face's, and its shape in both.

    `heads`: where not 0, the rows are those of so many heads, and are in another order in Hugging Face's file:
    `halves`, from neighbours, or `neighbours`, from halves.
    """

    mine: str
    theirs: str
    shape: Shape
    heads: int = 0
    order: Literal["halves", "neighbours"] = "halves"


def name_key(theirs: str, generation: Generation) -> str:
    """MiniMind's name of a key of Hugging Face's."""
    if generation == "llama":
        return theirs.replace("mlp.shared_experts.", "mlp.shared_experts.0.")
    if generation == "original":
        return _LONGEST_FIRST.sub(lambda found: _ORIGINAL[found[0]], theirs)
    return theirs


def list_pairs(layout: Layout) -> list[Pair]:
    """Every tensor of a model of this layout; both keys of the tied matrix are among them."""
    found = [
        _pair(layout, EMBEDDING, (layout.vocab, layout.dim)),
        _pair(layout, HEAD, (layout.vocab, layout.dim)),
        _pair(layout, "model.norm.weight", (layout.dim,)),
    ]
    for i in range(layout.n_layers):
        stem = f"model.layers.{i}"
        found += [_pair(layout, f"{stem}.{name}.weight", shape) for name, shape in _list_attention(layout)]
        found += [_pair(layout, f"{stem}.mlp.{name}.weight", shape) for name, shape in _list_feed_forward(layout)]
    return found


def count_parameters(layout: Layout) -> int:
    """Distinct ones: the tied matrix counts once."""
    return sum(math.prod(pair.shape) for pair in list_pairs(layout) if pair.theirs != HEAD)


def list_statics(layout: Layout) -> dict[str, Shape]:
    """What Ernie has beside: a correction of the choice of experts, 0 here, and no gradient ever changes it."""
    if layout.architecture != "Ernie4_5_MoeForCausalLM":
        return {}
    keys = (f"model.layers.{i}.mlp.moe_statics.e_score_correction_bias" for i in range(layout.n_layers))
    return dict.fromkeys(keys, (1, layout.experts))


def find_generation(keys: Mapping[str, Shape]) -> Generation | None:
    """By the names alone; None: it is no model of MiniMind's."""
    if "tok_embeddings.weight" in keys or any(re.match(r"layers\.\d+\.attention\.w[qkvo]\.weight$", k) for k in keys):
        return "original"
    if not any(re.match(r"model\.layers\.\d+\.self_attn\.q_proj\.weight$", key) for key in keys):
        return None
    return "minimind-3" if any(key.endswith(".self_attn.q_norm.weight") for key in keys) else "llama"


def _pair(layout: Layout, theirs: str, shape: Shape) -> Pair:
    mine = name_key(theirs, layout.generation)
    heads = {"q_proj": layout.heads, "k_proj": layout.kv_heads}.get(theirs.split(".")[-2], 0)
    if layout.generation == "original" and not layout.experts:
        return Pair(mine, theirs, shape, heads, "halves")
    if layout.generation == "llama" and layout.experts:
        return Pair(mine, theirs, shape, heads, "neighbours")
    return Pair(mine, theirs, shape)


def _list_attention(layout: Layout) -> Iterator[tuple[str, Shape]]:
    wide, narrow = layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    yield "self_attn.q_proj", (wide, layout.dim)
    yield "self_attn.k_proj", (narrow, layout.dim)
    yield "self_attn.v_proj", (narrow, layout.dim)
    yield "self_attn.o_proj", (layout.dim, wide)
    if layout.generation == "minimind-3":
        yield "self_attn.q_norm", (layout.head_dim,)
        yield "self_attn.k_norm", (layout.head_dim,)
    yield "input_layernorm", (layout.dim,)
    yield "post_attention_layernorm", (layout.dim,)


def _list_feed_forward(layout: Layout) -> Iterator[tuple[str, Shape]]:
    stems = [""]
    if layout.experts:
        yield "gate", (layout.experts, layout.dim)
        stems = [f"experts.{e}." for e in range(layout.experts)]
        stems += [] if layout.generation == "minimind-3" else ["shared_experts."]
    for stem in stems:
        yield f"{stem}gate_proj", (layout.hidden, layout.dim)
        yield f"{stem}up_proj", (layout.hidden, layout.dim)
        yield f"{stem}down_proj", (layout.dim, layout.hidden)
