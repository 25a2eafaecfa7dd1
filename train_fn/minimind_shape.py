"""Reading the layout of MiniMind's weights from their shapes, and comparing what is there with what must be."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftray.train_fn.errors import CheckpointError, ConfigError, Problem
from sftray.train_fn.minimind_layout import (
    DEFAULT_HEADS,
    EXPERTS_PER_TOKEN,
    Generation,
    Layout,
    Shape,
    find_generation,
    name_key,
)

_CONVERT = "sftray convert minimind"  # has the options for what a file does not say
_MOST_ROWS = 30  # of the table


@dataclass(frozen=True)
class Asked:
    """What the person says of a file where it does not say it itself."""

    heads: int | None = None
    experts_per_token: int | None = None


def read_layout(shapes: Mapping[str, Shape], where: str, asked: Asked) -> tuple[Layout, list[str]]:
    """The layout of the tensors of a MiniMind file, and what of it was assumed, in words.

    Raises:
        CheckpointError: they are no MiniMind model's, or lack one that its shape is read from.
        ConfigError: what is asked for cannot be.
    """
    generation = find_generation(shapes)
    if generation is None:
        raise CheckpointError(_explain_foreign_keys(list(shapes), where))
    sizes = _read_sizes(shapes, generation, where)
    heads, head_dim, assumed = _settle_heads(generation, sizes, asked)
    per_token = 0
    if sizes["experts"]:
        per_token = asked.experts_per_token or EXPERTS_PER_TOKEN[generation]
        _refuse_experts(per_token, sizes["experts"])
        if asked.experts_per_token is None:
            assumed.append(
                f"assumed: {per_token} of {sizes['experts']} experts per token "
                f"({_CONVERT} --experts-per-token N for others)"
            )
    layout = Layout(
        generation,
        dim=sizes["dim"],
        n_layers=sizes["layers"],
        heads=heads,
        kv_heads=sizes["k"] // head_dim,
        head_dim=head_dim,
        hidden=sizes["hidden"],
        vocab=sizes["vocab"],
        experts=sizes["experts"],
        per_token=per_token,
    )
    return layout, assumed


def _read_sizes(shapes: Mapping[str, Shape], generation: Generation, where: str) -> dict[str, int]:
    """`q` and `k`: rows of those projections. `norm`: width of the norm of queries, or 0."""
    stem = name_key("model.layers.", generation)

    def find(theirs: str, rank: int = 2, needed: bool = True) -> Shape:
        """The shape that a tensor has in most layers, for one may be what is wrong; zeros where none needs to be."""
        end = name_key(f"{theirs}.weight", generation)
        pattern = re.compile(rf"{re.escape(stem)}(\d+)\.{re.escape(end)}$")
        layers = {int(match[1]): shape for key, shape in shapes.items() if (match := pattern.match(key))}
        shapes_in_order = Counter(layers[number] for number in sorted(layers))
        shape = shapes_in_order.most_common(1)[0][0] if layers else (0,) * rank
        if (needed and not layers) or len(shape) != rank or (layers and 0 in shape):
            raise CheckpointError(_explain_no_shape(f"{stem}0.{end}", shape if layers else None, where))
        return shape

    experts = find("mlp.gate", needed=False)[0]
    hidden = find("mlp.experts.0.gate_proj" if experts else "mlp.gate_proj")[0]
    q, dim = find("self_attn.q_proj")
    embedding = name_key("model.embed_tokens.weight", generation)
    if len(shapes.get(embedding, ())) != 2 or 0 in shapes[embedding]:
        raise CheckpointError(_explain_no_shape(embedding, shapes.get(embedding), where))
    numbers = [int(match[1]) for key in shapes if (match := re.match(rf"{re.escape(stem)}(\d+)\.", key))]
    return {
        "dim": dim,
        "q": q,
        "k": find("self_attn.k_proj")[0],
        "norm": find("self_attn.q_norm", 1)[0] if generation == "minimind-3" else 0,
        "hidden": hidden,
        "experts": experts,
        "layers": max(numbers) + 1,
        "vocab": shapes[embedding][0],
    }


def _settle_heads(generation: Generation, sizes: dict[str, int], asked: Asked) -> tuple[int, int, list[str]]:
    """Heads, the width of one, and what was assumed."""
    rows, shared = sizes["q"], sizes["k"]
    if generation == "minimind-3":
        heads = max(rows // sizes["norm"], 1)
        if asked.heads not in (None, heads):
            raise ConfigError(Problem(f"--heads {asked.heads}, and the file has {heads}", fix="leave --heads out"))
        return heads, sizes["norm"], []
    heads = asked.heads or DEFAULT_HEADS
    width = rows // heads
    if rows % heads or width % 2 or not width or shared % width or heads % max(shared // width, 1):
        legal = [n for n in range(1, rows // 2 + 1) if _fits(rows, shared, n)]
        raise ConfigError(
            Problem(
                f"{heads} heads do not fit queries of {rows} rows and keys of {shared}",
                why="the width of a head must be even and divide both, and heads share keys evenly",
                fix=f"{_CONVERT} IN OUT --heads N, one of {', '.join(map(str, legal))}"
                if legal
                else "another file: these shapes fit none",
            )
        )
    assumed = (
        []
        if asked.heads
        else [f"assumed: {heads} heads, as MiniMind has: the file does not say ({_CONVERT} --heads N for others)"]
    )
    return heads, width, assumed


def _fits(rows: int, shared: int, heads: int) -> bool:
    width, rest = divmod(rows, heads)
    return not rest and width % 2 == 0 and shared % width == 0 and shared >= width and not heads % (shared // width)


def _refuse_experts(per_token: int, experts: int) -> None:
    if per_token > experts:
        what = f"{per_token} experts per token, and the file has {experts}"
        raise ConfigError(Problem(what, fix=f"--experts-per-token {min(2, experts)}"))


def check_keys(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str, what: str) -> None:
    """Raise CheckpointError, with a table of what is missing, unexpected or of another shape.

    Args:
        what: the model that was expected, in words.
    """
    rows = [("missing", key, _show(shape), "-") for key, shape in expected.items() if key not in found]
    rows += [("unexpected", key, "-", _show(shape)) for key, shape in found.items() if key not in expected]
    rows += [
        ("misshapen", key, _show(shape), _show(found[key]))
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if not rows:
        return
    counts = [(kind, sum(row[0] == kind for row in rows)) for kind in ("missing", "unexpected", "misshapen")]
    said = ", ".join(f"{count} {kind}" for kind, count in counts if count)
    raise CheckpointError(
        Problem(
            f"the tensors are not those of {what}: {said}",
            where,
            why="\n".join(_write_table(rows)),
            fix="a file that is whole, of a model whose code was not changed; nothing is loaded in part",
        )
    )


def _write_table(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """One line for the same tensor of several layers."""
    merged: dict[tuple[str, str, str, str], list[int]] = {}
    for kind, key, expected, found in rows:
        layer = re.search(r"\blayers\.(\d+)\.", key)
        pattern = key.replace(layer[0], "layers.{}.", 1) if layer else key
        merged.setdefault((kind, pattern, expected, found), []).extend([int(layer[1])] if layer else [])
    cells = [
        (kind, pattern.replace("{}", _show_layers(layers), 1) if layers else pattern, expected, found)
        for (kind, pattern, expected, found), layers in merged.items()
    ]
    shown = [("", "key", "expected", "found"), *cells[:_MOST_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    more = [f"… and {len(cells) - _MOST_ROWS} more lines"] if len(cells) > _MOST_ROWS else []
    return ["", *(f"    {line}" for line in [*lines, *more])]


def _show_layers(layers: list[int]) -> str:
    """3, 0-7, or {0,2,5}."""
    first, last = min(layers), max(layers)
    if last - first + 1 == len(layers):
        return str(first) if first == last else f"{first}-{last}"
    return "{" + ",".join(map(str, sorted(layers))) + "}"


def _show(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _explain_no_shape(key: str, shape: Shape | None, where: str) -> Problem:
    state = "is not there" if shape is None else f"is {_show(shape)}" + (", empty" if math.prod(shape) == 0 else "")
    return Problem(
        f"{key} {state}",
        where,
        why="the sizes of the model are read from it",
        fix="the whole state dict of a MiniMind model, as its scripts save it",
    )


def _explain_foreign_keys(keys: list[str], where: str) -> Problem:
    for prefix in ("module.", "_orig_mod."):
        if keys and all(key.startswith(prefix) for key in keys):
            return Problem(
                f"every key begins with {prefix!r}: it was saved from within a wrapper",
                where,
                fix=f"save it without: {{key.removeprefix({prefix!r}): value for key, value in weights.items()}}",
            )
    if any("lora" in key.lower() for key in keys):
        return Problem("the weights of a LoRA alone, not of a model", where, fix="merge them into their model first")
    return Problem(
        "the tensors are not those of a MiniMind model",
        where,
        why=f"the first keys of {len(keys)}: {', '.join(keys[:4])}" if keys else "it holds none",
        fix="a file as MiniMind's scripts save it, such as out/pretrain_512.pth",
    )
