"""MiniMind's tensors as Hugging Face's and back: other names, and rows of queries and keys in another order.

Nothing is computed, so every bit of every value stays what it is.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sftray.train_fn.errors import CheckpointError, Problem
from sftray.train_fn.minimind_layout import EMBEDDING, HEAD, Layout, Pair, Shape, list_pairs, list_statics
from sftray.train_fn.minimind_shape import check_keys

Weights = Mapping[str, Tensor]


def get_shapes(weights: Weights) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def check_dtype(weights: Weights, where: str) -> torch.dtype:
    """The one floating-point type of all tensors.

    Raises:
        CheckpointError: there are several, or another kind.
    """
    examples = {tensor.dtype: key for key, tensor in weights.items()}
    dtype = next(iter(examples))
    if len(examples) == 1 and dtype in (torch.float32, torch.float16, torch.bfloat16):
        return dtype
    raise CheckpointError(
        Problem(
            "the tensors are of types that no model of MiniMind's is saved in",
            where,
            why=", ".join(f"{str(dtype).removeprefix('torch.')} ({key})" for dtype, key in examples.items()),
            fix="save them all as float32, float16 or bfloat16",
        )
    )


def to_transformers(weights: Weights, layout: Layout, where: str) -> dict[str, Tensor]:
    """What goes into `model.safetensors`: the tied matrix once, experts one by one, as transformers saves them.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, or the tied two differ.
    """
    pairs = list_pairs(layout)
    expected = {pair.mine: pair.shape for pair in pairs}
    check_keys(get_shapes(weights), expected, where, describe_layout(layout))
    _check_tied(weights, {pair.theirs: pair.mine for pair in pairs}, where)
    # Each of its own memory: a file may hold one tensor under two names, which safetensors refuses.
    found = {pair.theirs: _order_rows(weights[pair.mine], pair).clone() for pair in pairs if pair.theirs != HEAD}
    dtype = found[EMBEDDING].dtype
    return found | {key: torch.zeros(shape, dtype=dtype) for key, shape in list_statics(layout).items()}


def to_minimind(weights: Weights, layout: Layout, where: str) -> dict[str, Tensor]:
    """What `torch.save` is given, from what a folder of Hugging Face's layout holds; both have the tied two.

    Raises:
        CheckpointError: as `to_transformers`; or a bias corrects the choice of experts, which MiniMind has not.
    """
    theirs = _separate_experts(weights)
    pairs, statics = list_pairs(layout), list_statics(layout)
    expected = {pair.theirs: pair.shape for pair in pairs} | statics
    check_keys(get_shapes(theirs), expected, where, f"{layout.architecture}, {describe_layout(layout)}")
    _check_tied(theirs, {key: key for key in theirs}, where)
    corrected = [key for key in statics if theirs[key].any()]
    if corrected:
        raise CheckpointError(
            Problem(
                f"{corrected[0]} is not 0",
                where,
                why="MiniMind's routers have no such correction, and would choose other experts",
                fix="a model that came from MiniMind: training leaves these at 0",
            )
        )
    found = {pair.mine: _order_rows(theirs[pair.theirs], pair, back=True).clone() for pair in pairs}
    tied = {pair.theirs: pair.mine for pair in pairs}
    return found | {tied[HEAD]: found[tied[EMBEDDING]]}


def describe_layout(layout: Layout) -> str:
    """Its generation and sizes, in words."""
    experts = f"{layout.experts} experts" if layout.experts else "dense"
    shared = f"{layout.heads} heads of {layout.head_dim}, {layout.kv_heads} of keys"
    sizes = f"{layout.n_layers} layers, width {layout.dim}, {shared}, feed-forward {layout.hidden}"
    return f"MiniMind ({layout.generation}, {experts}; {sizes}, vocabulary {layout.vocab})"


def _order_rows(tensor: Tensor, pair: Pair, back: bool = False) -> Tensor:
    """The rows of each head from neighbours (0, 1), (2, 3)… to halves, or the other way; shape (H·d, D)."""
    if not pair.heads:
        return tensor.contiguous()
    to_halves = (pair.order == "halves") != back
    split = (pair.heads, -1, 2) if to_halves else (pair.heads, 2, pair.shape[0] // pair.heads // 2)
    return tensor.view(*split, pair.shape[1]).transpose(1, 2).reshape(pair.shape).contiguous()


def _check_tied(weights: Weights, names: Mapping[str, str], where: str) -> None:
    embedding, head = weights[names[EMBEDDING]], weights[names[HEAD]]
    if torch.equal(embedding, head):
        return
    differing = int((embedding != head).sum())
    largest = float((embedding.float() - head.float()).abs().max())
    raise CheckpointError(
        Problem(
            f"{names[EMBEDDING]} and {names[HEAD]} are not equal: {differing} of {head.numel()} values differ, "
            f"by up to {largest:.3g}",
            where,
            why="MiniMind ties them, and so one of the two would be lost",
            fix="a file of a model that ties them, and without NaN",
        )
    )


def _separate_experts(weights: Weights) -> dict[str, Tensor]:
    """The same with one key for each expert, where all experts of a layer stand in one tensor."""
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        stem, _, kind = key.rpartition(".experts.")
        if kind == "gate_up_proj" and tensor.ndim == 3 and tensor.shape[1] % 2 == 0:
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[f"{stem}.experts.{e}.gate_proj.weight"] = gate
                found[f"{stem}.experts.{e}.up_proj.weight"] = up
        elif kind == "down_proj" and tensor.ndim == 3:
            found |= {f"{stem}.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            found[re.sub(r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics.", key)] = tensor
    return found
