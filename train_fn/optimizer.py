"""AdamW, and what it does not decay."""

import torch
from torch import Tensor, nn

from sftray.train_fn.config import OptimConfig


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW. Weight decay acts on the matrices of linear layers alone.

    Norms, biases and embeddings are left out, as is usual: decay would pull scales away from 1 and shrink
    the vectors of tokens that a batch does not contain. Tied output embeddings count as embeddings.
    """
    decayed = set(_matrices(model)) - set(_embeddings(model))  # parameters hash by identity
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p in decayed], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=optim.betas,
        fused=True,
    )


def _matrices(model: nn.Module) -> list[Tensor]:
    # The biases of fused experts have two dimensions.
    return [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("bias")]


def _embeddings(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
