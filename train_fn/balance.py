"""Mixture-of-experts models: how evenly their routers share out the tokens, as a loss and as a number to watch.

Shapes: L layers with a router, T tokens of a forward (rows × width), E experts, K experts per token, S examples.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sftray.train_fn.errors import ConfigError, Problem

# batch: transformers' own, over all tokens of a forward. sequence: the mean over examples of what each has alone.
Form = Literal["batch", "sequence"]
# A key of a model's config: its auxiliary loss is of the form `sequence`, with this weight.
SEQUENCE_WEIGHT = "seq_aux_alpha"
_OWN = "model.aux_loss_coef=null"  # the model's own weight


@dataclass(frozen=True)
class Routing:
    """What the routers of one forward gave, layer by layer: `logits` [T, E], and `chosen` int64 [T, K]."""

    logits: list[Tensor]
    chosen: list[Tensor]


class Routers:
    """Hooks on a model's routers, and its auxiliary loss: of which form, and with what weight (0: none).

    `tell`: the hooks say who was chosen. Where they do not (a dense model, a few families), the auxiliary loss is
    the one that the model computes.
    """

    def __init__(self, model: nn.Module, asked: float | None = None) -> None:
        self.form, self.weight = choose_balance(model.config, asked)
        self._listening = False
        self._routing = Routing([], [])
        routers = _find_routers(model)
        for module in routers:
            module.register_forward_hook(self._keep)
        gives_loss = (bool(routers) or self.weight > 0) and self._try(model)
        self.tell = self.take() is not None
        if self.form == "sequence" and not self.tell:
            raise ConfigError(
                Problem(
                    f"{SEQUENCE_WEIGHT} is set, and no router of {type(model).__name__} tells which experts it chose",
                    why="it weighs an auxiliary loss that is computed from what the routers give",
                    fix=f"a mixture-of-experts model, or a config of the model without {SEQUENCE_WEIGHT}",
                )
            )
        if not self.tell and not gives_loss:
            self.weight = 0.0
        if asked and not self.weight:
            raise ConfigError(_describe_idle(f"is {asked:g}", type(model).__name__))

    def listen(self) -> None:
        """Keep what the next forward gives; not what gradient checkpointing computes again after it."""
        self._listening = True

    def take(self) -> Routing | None:
        """What was kept; None where nothing was."""
        kept, self._routing, self._listening = self._routing, Routing([], []), False
        return kept if kept.chosen else None

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._listening and _is_routing(output):
            self._routing.logits.append(output[0].flatten(0, -2))
            self._routing.chosen.append(output[2].flatten(0, -2))

    @torch.no_grad()
    def _try(self, model: Any) -> bool:
        """What families give differs, so this model is asked, with one token: has it an auxiliary loss of its own?"""
        was_training = model.training
        model.eval()
        self.listen()
        try:
            device = model.get_input_embeddings().weight.device
            ids = torch.zeros(1, 1, dtype=torch.long, device=device)
            wants = {"output_router_logits": True} if self.weight else {}
            output = model(input_ids=ids, use_cache=False, **wants)
        finally:
            model.train(was_training)
        return getattr(output, "aux_loss", None) is not None


def _find_routers(model: nn.Module) -> list[nn.Module]:
    """The modules of which transformers records the first output as router logits."""
    kinds: tuple[type[nn.Module], ...] = ()
    for module in model.modules():
        recorder = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        kind = getattr(recorder, "target_class", recorder)
        if isinstance(kind, type) and getattr(recorder, "index", 0) == 0:
            kinds = (*kinds, kind)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _is_routing(output: Any) -> bool:
    """(logits, weights, choice), which is what nearly all families' routers give."""
    return isinstance(output, tuple) and len(output) == 3 and not output[2].is_floating_point()


def refuse_dense(config: Any, said: str, fix: str = _OWN) -> None:
    """Raise ConfigError where a model of this config has no auxiliary loss, and `said` is of its weight."""
    if not choose_balance(config, 1.0)[1]:
        raise ConfigError(_describe_idle(said, f"a {config.model_type} model", fix))


def _describe_idle(said: str, model: str, fix: str = _OWN) -> Problem:
    return Problem(
        f"model.aux_loss_coef {said}, and {model} has no auxiliary loss",
        why="it weighs the loss that keeps experts evenly used, which few models give",
        fix=fix,
    )


def choose_balance(config: Any, asked: float | None) -> tuple[Form, float]:
    """The form of a model's auxiliary loss, and its weight: what is asked for, or the model's own; 0: it has none."""
    alpha = getattr(config, SEQUENCE_WEIGHT, None)
    names = ("router_aux_loss_coef", "aux_loss_coef")  # the second is JetMoe's
    owns = [alpha, *(getattr(config, name, None) for name in names)]
    own = next((weight for weight in owns if weight is not None), None)
    if own is None:
        return "batch", 0.0
    return ("batch" if alpha is None else "sequence"), float(own if asked is None else asked)


def compute_balance(form: Form, routing: Routing, segments: Tensor) -> Tensor:
    """The auxiliary loss of a forward, times what it is a mean over: tokens (batch) or examples (sequence).

    Args:
        segments: int64 [rows, width], the number of the example each token is of, from 1; 0 is padding.
    """
    # Autocast would round the sums.
    with torch.autocast(segments.device.type, enabled=False):
        scores = [logits_TE.float().softmax(-1) for logits_TE in routing.logits]
        marks = [_mark_best(scores_TE, routing.chosen[0].shape[-1]) for scores_TE in scores]
        if form == "batch":
            return _sum_over_tokens(scores, marks, segments.flatten() > 0)
        return _sum_over_examples(scores, marks, segments.flatten())


def _mark_best(scores_TE: Tensor, per_token: int) -> Tensor:
    """fp32 [T, E]: 1 at the `per_token` best, 0 elsewhere."""
    best_TK = scores_TE.detach().topk(per_token, dim=-1).indices
    return torch.zeros_like(scores_TE).scatter_(-1, best_TK, 1.0)


def _sum_over_tokens(scores: list[Tensor], marks: list[Tensor], real_T: Tensor) -> Tensor:
    """E · Σ_e f[e] · P[e], times the number of tokens that are no padding; where all experts are even, it is K.

    f is the number of choices of e, P its probability, both in the mean over the tokens of all layers together:
    Switch Transformers (arXiv 2101.03961, equations 4 to 6), as transformers has it.
    """
    num_tokens = real_T.sum()
    rows = (num_tokens * len(scores)).clamp(min=1)
    f_E = torch.stack([(marks_TE * real_T[:, None]).sum(0) for marks_TE in marks]).sum(0) / rows
    p_E = torch.stack([(scores_TE * real_T[:, None]).sum(0) for scores_TE in scores]).sum(0) / rows
    return len(f_E) * (f_E * p_E).sum() * num_tokens


def _sum_over_examples(scores: list[Tensor], marks: list[Tensor], segments_T: Tensor) -> Tensor:
    """Σ over layers and examples of Σ_e ce[e] · mean_t scores[t, e]; where all experts are even, it is L · S.

    ce[e] is the number of the example's choices of e over what each expert had if they were even. An example's
    part depends on nothing else, so it is the same however examples are laid into forwards.
    """
    numbers_S1 = torch.arange(1, int(segments_T.max()) + 1, device=segments_T.device)[:, None]
    member_ST = (segments_T == numbers_S1).float()  # sums by index would not be deterministic on a GPU
    length_S1 = member_ST.sum(1, keepdim=True)
    total = scores[0].new_zeros(())
    for scores_TE, marks_TE in zip(scores, marks, strict=True):
        share_SE = (member_ST @ marks_TE) / (member_ST @ marks_TE).sum(1, keepdim=True)
        total = total + (share_SE * (member_ST @ scores_TE) / length_S1).sum() * marks_TE.shape[1]
    return total


def count_assignments(routing: Routing, segments: Tensor) -> Tensor:
    """int64 [L, E]: the tokens that went to each expert of each layer, padding left out."""
    shape = len(routing.chosen), routing.logits[0].shape[-1]
    counts_LE = torch.zeros(shape, dtype=torch.long, device=segments.device)
    real_T1 = (segments.flatten() > 0).long()[:, None]
    for counts_E, chosen_TK in zip(counts_LE, routing.chosen, strict=True):
        counts_E.scatter_add_(0, chosen_TK.flatten(), real_T1.expand_as(chosen_TK).flatten())
    return counts_LE


def compute_load(assignments_LE: Tensor) -> tuple[float, float]:
    """The fullest and the emptiest expert of any layer, as multiples of an even share of its layer's tokens."""
    even_L1 = assignments_LE.double().mean(1, keepdim=True).clamp(min=1e-9)
    load_LE = assignments_LE / even_L1
    return float(load_LE.max()), float(load_LE.min())
