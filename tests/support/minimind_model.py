"""MiniMind's model of April 2025 from its formulas, as a reference: rotation of neighbours, grouped queries, experts.

B batch, T positions, D width, H query heads, G key heads, d width of a head, E experts, K experts per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """`num_experts` 0 is dense. `alpha` weighs the balance loss."""

    dim: int = 512
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 2
    vocab_size: int = 6400
    num_experts: int = 0
    experts_per_token: int = 2
    alpha: float = 0.1
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    halves: bool = False  # the rotary embedding of later versions: (0, d/2), (1, d/2 + 1)… are turned

    @property
    def hidden_dim(self) -> int:
        """Two thirds of four widths, rounded up to a multiple of 64."""
        return 64 * -(-int(8 * self.dim / 3) // 64)


def rotate(x_BTHd: Tensor, theta: float, halves: bool) -> Tensor:
    """Turn each pair of neighbours (0, 1), (2, 3)… by position · theta^(-2i/d), as complex numbers; or of halves."""
    if halves:
        mixed = x_BTHd.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return rotate(mixed, theta, False).unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    _, length, _, width = x_BTHd.shape
    speeds = theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), speeds)
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    pairs = torch.view_as_complex(x_BTHd.float().reshape(*x_BTHd.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3).type_as(x_BTHd)


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.width = shape, shape.dim // shape.n_heads
        self.wq = nn.Linear(shape.dim, shape.n_heads * self.width, bias=False)
        self.wk = nn.Linear(shape.dim, shape.n_kv_heads * self.width, bias=False)
        self.wv = nn.Linear(shape.dim, shape.n_kv_heads * self.width, bias=False)
        self.wo = nn.Linear(shape.n_heads * self.width, shape.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (w(x_BTD).unflatten(-1, (-1, self.width)) for w in (self.wq, self.wk, self.wv))
        q, k = (rotate(x, self.shape.rope_theta, self.shape.halves) for x in (q, k))
        sharing = self.shape.n_heads // self.shape.n_kv_heads
        k, v = k.repeat_interleave(sharing, dim=2), v.repeat_interleave(sharing, dim=2)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / self.width**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        output: Tensor = self.wo(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))
        return output


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
        return output


def compute_balance_losses(scores_BTE: Tensor, chosen_BTK: Tensor, alpha: float, real_BT: Tensor) -> Tensor:
    """Per sequence alpha · Σ_e ce[e] · mean_t scores[t, e], ce[e] = assignments of e / (T · K / E); shape (B,).

    Only positions where `real_BT` is true count, T being their number in each sequence.
    """
    num_experts, per_token = scores_BTE.shape[-1], chosen_BTK.shape[-1]
    length_B1 = real_BT.sum(1, keepdim=True).float()
    assigned_BTE = nn.functional.one_hot(chosen_BTK, num_experts).sum(2) * real_BT[..., None]
    ce_BE = assigned_BTE.sum(1) / (length_B1 * per_token / num_experts)
    mean_BE = (scores_BTE * real_BT[..., None]).sum(1) / length_B1
    return alpha * (ce_BE * mean_BE).sum(-1)


class Experts(nn.Module):
    """The best of E experts per token, weighted by their renormalised softmax scores, and one that all share."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.gate = nn.Linear(shape.dim, shape.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(shape.dim, shape.hidden_dim) for _ in range(shape.num_experts))
        self.shared_experts = FeedForward(shape.dim, shape.hidden_dim)

    def forward(self, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        scores_BTE = self.gate(x_BTD).softmax(-1)
        best_BTK, chosen_BTK = scores_BTE.topk(self.shape.experts_per_token, dim=-1)
        share_BTK = best_BTK / best_BTK.sum(-1, keepdim=True)
        share_BTE = torch.zeros_like(scores_BTE).scatter(-1, chosen_BTK, share_BTK)
        output = self.shared_experts(x_BTD)
        for e, expert in enumerate(self.experts):
            output = output + share_BTE[..., e, None] * expert(x_BTD)
        return output, compute_balance_losses(scores_BTE, chosen_BTK, self.shape.alpha, real_BT)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(shape.dim, shape.norm_eps), Norm(shape.dim, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward = Experts(shape) if shape.num_experts else FeedForward(shape.dim, shape.hidden_dim)

    def forward(self, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        normed = self.ffn_norm(x_BTD)
        if isinstance(self.feed_forward, Experts):
            output, balance_B = self.feed_forward(normed, real_BT)
        else:
            output, balance_B = self.feed_forward(normed), x_BTD.new_zeros(len(x_BTD))
        return x_BTD + output, balance_B


class ReferenceModel(nn.Module):
    """Its state dict has the seed's keys; `output.weight` is `tok_embeddings.weight`."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocab_size, shape.dim)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = Norm(shape.dim, shape.norm_eps)
        self.output = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        self.output.weight = self.tok_embeddings.weight
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            spread, centre = (0.1, 1.0) if "norm" in name else (0.02, 0.0)
            nn.init.normal_(parameter, centre, spread, generator=generator)

    def compute_balance_losses(self, ids_BT: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T, vocabulary), and the balance loss of each sequence (B,), summed over the layers."""
        real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if real_BT is None else real_BT
        x_BTD, balance_B = self.tok_embeddings(ids_BT), torch.zeros(len(ids_BT))
        for layer in self.layers:
            x_BTD, added_B = layer(x_BTD, real_BT)
            balance_B = balance_B + added_B
        return self.output(self.norm(x_BTD)), balance_B

    def forward(self, ids_BT: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and the mean over sequences of the balance loss (0 where dense).

        Args:
            real_BT: where there is no padding; all positions if None, as in the seed.
        """
        logits, balance_B = self.compute_balance_losses(ids_BT, real_BT)
        return logits, balance_B.mean()
