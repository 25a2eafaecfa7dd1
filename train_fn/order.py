"""The order of examples: a pure function of (seed, epoch, position).

Nothing is stored and nothing has to be replayed: any position can be asked for at once, and the answer
does not depend on the number of workers. The function is a Feistel permutation of the next power of four,
walked until it lands below n (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). Its round function is the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection of 64 bits; the caller allows for overflow."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _build_round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """One 64-bit key for each round; SeedSequence spreads (seed, epoch) over them.

    The epoch is the spawn key, for as [seed, epoch] seed 2**32 + 5 of epoch 0 would be seed 5 of epoch 1.
    """
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(_ROUNDS, np.uint64).astype(np.uint64)


def _permute(x: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One Feistel pass over [0, 4**half_bits)."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> bits, x & mask
    for key in keys:
        left, right = right, left ^ (mix(right + key) & mask)
    return (left << bits) | right


def order_positions(seed: int, epoch: int, positions: NDArray[np.int64], num_examples: int) -> NDArray[np.int64]:
    """The examples that stand at `positions` of an epoch.

    Args:
        positions: int64 [k], each in [0, num_examples).
        num_examples: size of the data set; the result is a permutation of it over all positions.

    Returns:
        int64 [k], indices into the data set.
    """
    if positions.size and (positions.min() < 0 or positions.max() >= num_examples):
        raise IndexError(f"positions must lie in [0, {num_examples})")
    half_bits = max(1, (max(num_examples - 1, 1).bit_length() + 1) // 2)
    keys = _build_round_keys(seed, epoch)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = _permute(positions.astype(np.uint64), half_bits, keys)
        while (outside := x >= num_examples).any():
            x[outside] = _permute(x[outside], half_bits, keys)
    return x.astype(np.int64)


def order_step(seed: int, step: int, global_batch_size: int, num_examples: int) -> tuple[int, NDArray[np.int64]]:
    """The global batch of optimizer step `step` (0-based): its epoch, and its examples, int64 [<= G].

    The last batch of an epoch holds what is left, so it may be smaller.
    """
    epoch, in_epoch = divmod(step, count_steps_per_epoch(num_examples, global_batch_size))
    first = in_epoch * global_batch_size
    positions = np.arange(first, min(first + global_batch_size, num_examples), dtype=np.int64)
    return epoch, order_positions(seed, epoch, positions, num_examples)


def count_steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    return -(-num_examples // global_batch_size)


def count_examples_before(step: int, num_examples: int, global_batch_size: int) -> int:
    """Examples consumed when `step` steps are done."""
    epoch, in_epoch = divmod(step, count_steps_per_epoch(num_examples, global_batch_size))
    return epoch * num_examples + in_epoch * global_batch_size
