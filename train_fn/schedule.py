"""Learning rate schedules: pure functions of the step and the number of steps."""

import math

from sftray.train_fn.config import OptimConfig


def compute_learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The learning rate of optimizer step `step` (0-based) out of `total_steps`.

    cosine, linear: a linear rise over ceil(warmup_ratio · total) steps, then down to min_lr_ratio · peak,
    which would be reached at `total_steps`. constant: the rise, then the peak. minimind: the seed's
    lr/10 + lr/2 · (1 + cos(π·step/total)), which starts at 1.1 × the peak and has no rise.
    """
    peak = optim.learning_rate
    if optim.schedule == "minimind":
        return peak / 10 + 0.5 * peak * (1 + math.cos(math.pi * step / total_steps))
    warmup_steps = math.ceil(optim.warmup_ratio * total_steps - 1e-9)  # 0.07 × 100 is 7.000000000000001
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if optim.schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    left = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return peak * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * left)
