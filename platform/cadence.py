"""How often to save: what saving costs against what a failure loses.

With a save every T seconds that costs C, failures at random M seconds apart in the mean, and a restart of R, a
restart comes to its end with probability exp(-R/M), and T with its save with exp(-(T + C)/M). So the share of time
that is lost is 1 - T/M · exp(-R/M) / (exp((T + C)/M) - 1), about C/T + (T/2 + R)/M where that is little, which is
least at T = sqrt(2 C M): Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974).
"""

import math
from dataclasses import dataclass

# Measured on two busy cores without a GPU (tests/bench/LOG.md): what a save adds to the steps beside it, and the time
# from a killed worker to the first new step.
SECONDS_PER_GB = 2.4
RESTART_S = 13.5
# A guess, and a careful one: shared and preemptible machines. Llama 3 was trained on 2,048 nodes of 8 GPUs with 419
# interruptions in 54 days, one in 264 days a node (Grattafiori et al., "The Llama 3 herd of models", 2024, 3.3).
WORKER_FAILS_EVERY_S = 7 * 86400.0
_BYTES_PER_PARAMETER = 12  # weights and AdamW's two moments, in fp32


@dataclass(frozen=True)
class Cadence:
    """`seconds` from save to save; `cost` in seconds of one; `lost`: share of the time that goes into saves, steps
    done again and restarts.
    """

    seconds: float
    cost: float
    num_bytes: int
    lost: float


def compute_loss(seconds: float, cost: float, restart: float, between_failures: float) -> float:
    """The share of time that is lost."""
    cycle = (seconds + cost) / between_failures
    kept = math.exp(-restart / between_failures) * math.exp(-cycle) / -math.expm1(-cycle)
    return 1 - seconds / between_failures * kept


def recommend_cadence(
    num_parameters: int, num_workers: int, worker_fails_every: float = WORKER_FAILS_EVERY_S
) -> Cadence:
    """The best cadence for a model of this size on so many workers, of which one that fails stops all."""
    num_bytes = num_parameters * _BYTES_PER_PARAMETER
    cost = num_bytes / 1e9 * SECONDS_PER_GB
    between = worker_fails_every / num_workers
    seconds = max(math.sqrt(2 * cost * between), cost, 1.0)
    return Cadence(seconds, cost, num_bytes, compute_loss(seconds, cost, RESTART_S, between))


def describe_cadence(cadence: Cadence, save_every: int) -> str:
    """In words, for a run that saves every so many steps (0: at its end alone); what one takes is not known yet."""
    minutes = cadence.seconds / 60
    every = f"{minutes:.0f} min" if minutes >= 2 else f"{cadence.seconds:.0f} s"
    has = (
        f"train.save_every={save_every} is that for steps of {cadence.seconds / save_every:.2g} s"
        if save_every
        else "train.save_every=0 saves at the end alone"
    )
    quick, slow = (max(1, round(cadence.seconds / step)) for step in (1, 10))
    return (
        f"checkpoints: about {cadence.num_bytes / 1e9:.2f} GB and {cadence.cost:.1f} s each; one in {every} loses "
        f"the least, {cadence.lost:.1%} of the time, if a worker fails once a week: train.save_every={quick} where "
        f"a step takes 1 s, {slow} where it takes 10 s; {has}"
    )
