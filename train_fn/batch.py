"""From planned rows of examples to the tensors of one forward.

Shapes: R rows, T tokens of the longest row, N target tokens of the micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sftray.train_fn.ledger import tally_examples

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One prepared conversation: `input_ids` int32 [L]; `loss_mask` bool [L], unshifted.

    `index` is its place in the data set, by which the ledger knows it.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    index: int = 0


class Batch(TypedDict):
    """One micro-batch. The order of `target_ids` is that of `predicts` read row by row."""

    input_ids: Tensor  # int64 [R, T]
    position_ids: Tensor  # int64 [R, T], starting anew with every example
    predicts: Tensor  # bool [R, T]: the next token of the same example is a target
    target_ids: Tensor  # int64 [N]
    segments: Tensor  # int64 [R, T]: which example of the micro-batch a token is of, from 1; 0 is padding
    tally: Tensor  # fp64 [2]: how many examples these are, and the sum of their digests, see ledger.py


def shift_targets(example: Example) -> NDArray[np.bool_]:
    """bool [L]: position t predicts a target token, which is token t + 1. The one place of the shift.

    The first token of an example is predicted by nothing, and the last position predicts nothing.
    """
    predicts = np.zeros(len(example.input_ids), dtype=np.bool_)
    predicts[:-1] = example.loss_mask[1:]
    return predicts


def count_target_tokens(loss_mask: NDArray[np.bool_]) -> int:
    return int(loss_mask[1:].sum())


def build_batch(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """Lay examples into rows, padded on the right to the longest one.

    Padding stands after every example, restarts the positions, and predicts nothing, so under a causal mask
    it reaches no example. With no rows (a worker without work in this step) the batch is one padding token,
    so that the worker still takes part in the reduction of gradients.
    """
    width = max((sum(len(e.input_ids) for e in row) for row in rows), default=1)
    shape = (max(len(rows), 1), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    predicts = np.zeros(shape, dtype=np.bool_)
    segments = np.zeros(shape, dtype=np.int64)
    target_ids, number = [], 0
    for r, row in enumerate(rows):
        start = 0
        for example in row:
            stop = start + len(example.input_ids)
            input_ids[r, start:stop] = example.input_ids
            position_ids[r, start:stop] = np.arange(stop - start)
            predicts[r, start:stop] = shift_targets(example)
            number += 1
            segments[r, start:stop] = number
            target_ids.append(example.input_ids[1:][example.loss_mask[1:]])
            start = stop
        position_ids[r, start:] = np.arange(width - start)
    tally = tally_examples([example.index for row in rows for example in row])
    targets = np.concatenate(target_ids) if target_ids else np.zeros(0, dtype=np.int64)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        predicts=torch.from_numpy(predicts),
        target_ids=torch.from_numpy(targets.astype(np.int64)),
        segments=torch.from_numpy(segments),
        tally=torch.tensor([tally.count, tally.digest], dtype=torch.float64),
    )


def compute_labels(example: Example) -> NDArray[np.int64]:
    """int64 [L] in Hugging Face's meaning: the token's id where it is a target, IGNORE_INDEX elsewhere."""
    return np.where(example.loss_mask, example.input_ids, IGNORE_INDEX).astype(np.int64)
