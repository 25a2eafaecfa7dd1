"""Cross entropy over target tokens, computing logits only where there is a target.

Shapes: N target tokens of the micro-batch, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftray.train_fn.balance import Routers, compute_balance, count_assignments
from sftray.train_fn.batch import Batch

# Above this many logits of one forward (2 GiB in fp32) the [N, V] tensor is not built: torch's chunked
# linear cross entropy takes 1.8 to 4 times as long on a CPU (tests/bench/LOG.md) and a fixed, small memory.
CHUNK_ABOVE_LOGITS = 2**29


@dataclass(frozen=True)
class Forward:
    """`loss_sum`: cross entropy in nats over the N targets, fp32.

    `aux_sum`: the auxiliary loss times what it is a mean over, tokens or examples; None where it was not wanted.
    `assignments`: int64 [L, E], how many tokens each expert got; None where nobody listened or told.
    """

    loss_sum: Tensor
    aux_sum: Tensor | None = None
    assignments: Tensor | None = None


class TargetHead:
    """A hook on the model's output embedding that keeps just the positions that predict a target.

    Whatever the model does to logits afterwards (soft-capping, scaling) happens to the kept ones, so any
    causal language model works unchanged. Positions are set by `forward_loss` before each forward.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]  # a method of transformers' models
        if not isinstance(head, nn.Module):
            raise TypeError(f"{type(model).__name__} has no output embedding")
        self.head = head
        self.predicts: Tensor | None = None
        self.chunked = False
        self.hidden: Tensor | None = None
        self.plain = isinstance(head, nn.Linear) and _is_plain_head(model, head)
        self.vocab_size = head.weight.shape[0] if isinstance(head, nn.Linear) else 0
        head.register_forward_pre_hook(self._keep_targets)

    def _keep_targets(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.predicts is None:  # generation, or any use that wants every logit
            return None
        hidden_NH = args[0][self.predicts]
        if not self.chunked:
            return (hidden_NH, *args[1:])
        self.hidden = hidden_NH
        return (hidden_NH[:0], *args[1:])


@torch.no_grad()
def _is_plain_head(model: nn.Module, head: nn.Linear) -> bool:
    """Whether logits are the output embedding's result, untouched: no capping, no scaling.

    Models name these in many ways, so this one is asked: what it makes of known logits of one token.
    """
    vocab_size = head.weight.shape[0]
    known = torch.linspace(-100.0, 100.0, vocab_size, device=head.weight.device).view(1, 1, vocab_size)
    hook = head.register_forward_hook(lambda *_: known)
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=known.device), use_cache=False).logits
    finally:
        hook.remove()
        model.train(was_training)
    return torch.equal(logits.float(), known)


def forward_loss(model: nn.Module, head: TargetHead, batch: Batch, routers: Routers | None = None) -> Forward:
    """One forward of the model, which may be wrapped in DDP, and the loss over its targets.

    With `routers`, which are listened to, the auxiliary loss too.

    With no target at all the loss is 0 and still depends on every parameter, so that DDP's reduction runs.
    """
    num_targets = batch["target_ids"].numel()
    chunked = head.plain and num_targets * head.vocab_size > CHUNK_ABOVE_LOGITS
    head.predicts, head.chunked = batch["predicts"], chunked
    own_aux = routers is not None and routers.weight > 0 and not routers.tell
    extra = {"output_router_logits": True} if own_aux else {}  # so asked it computes that, of padding too
    if routers is not None:
        routers.listen()
    try:
        output = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=None,  # with use_cache=False and restarting positions this makes the packed mask
            use_cache=False,
            **extra,
        )
        logits_NV: Tensor = output.logits
        if chunked:
            loss_sum = _chunked_cross_entropy(head, batch["target_ids"]) + logits_NV.sum()
        elif num_targets:
            loss_sum = F.cross_entropy(logits_NV.float(), batch["target_ids"], reduction="sum")
        else:
            loss_sum = logits_NV.float().sum() * 0.0
    finally:
        head.predicts = head.hidden = None
        routing = routers.take() if routers is not None else None
    segments = batch["segments"]
    if own_aux:
        return Forward(loss_sum, output.aux_loss * (segments > 0).sum())
    if routers is None or routing is None:
        return Forward(loss_sum)
    aux_sum = compute_balance(routers.form, routing, segments) if routers.weight > 0 else None
    return Forward(loss_sum, aux_sum, count_assignments(routing, segments))


def _chunked_cross_entropy(head: TargetHead, target_ids: Tensor) -> Tensor:
    assert head.hidden is not None
    weight, bias = head.head.weight, head.head.bias
    assert isinstance(weight, Tensor)
    hidden = head.hidden.to(weight.dtype)  # fp32: the chunked kernel keeps no logits for autocast to halve
    return F.linear_cross_entropy(
        hidden,
        weight,
        target_ids,
        linear_bias=bias if isinstance(bias, Tensor) else None,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(),
    )
