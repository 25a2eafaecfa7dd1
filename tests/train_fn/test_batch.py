"""From rows of examples to tensors, as lists that can be checked by eye. T is the last token of an answer."""

import pytest
from tiny import PAD_ID, example

from sftray.train_fn.batch import (
    IGNORE_INDEX,
    Example,
    build_batch,
    compute_labels,
    count_target_tokens,
    shift_targets,
)

# user: 5 6 | assistant: 7 8 9 (9 ends the turn) | user: 5 | assistant: 4 9
TWO_ANSWERS = example([5, 6, 7, 8, 9, 5, 4, 9], [0, 0, 1, 1, 1, 0, 1, 1])
NO_TARGET = example([5, 6, 7], [0, 0, 0])
ALL_TARGETS = example([5, 6, 7], [1, 1, 1])
ONE_TOKEN = example([5], [1])


@pytest.mark.parametrize(
    ("one", "predicts", "targets"),
    [
        (TWO_ANSWERS, [0, 1, 1, 1, 0, 1, 1, 0], [7, 8, 9, 4, 9]),
        (NO_TARGET, [0, 0, 0], []),
        (ALL_TARGETS, [1, 1, 0], [6, 7]),
        (ONE_TOKEN, [0], []),
    ],
)
def test_a_position_predicts_the_token_after_it(one: Example, predicts: list[int], targets: list[int]) -> None:
    assert shift_targets(one).astype(int).tolist() == predicts
    assert count_target_tokens(one.loss_mask) == len(targets)
    batch = build_batch([[one]], PAD_ID)
    assert batch["predicts"].int().tolist() == [predicts]
    assert batch["target_ids"].tolist() == targets


def test_packed_rows_start_positions_anew_and_never_predict_a_neighbour() -> None:
    batch = build_batch([[TWO_ANSWERS, ALL_TARGETS], [NO_TARGET, ALL_TARGETS, ONE_TOKEN]], PAD_ID)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 8, 9, 5, 4, 9, 5, 6, 7],
        [5, 6, 7, 5, 6, 7, 5, 0, 0, 0, 0],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2],
        [0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 3],
    ]
    assert batch["predicts"].int().tolist() == [
        [0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert batch["target_ids"].tolist() == [7, 8, 9, 4, 9, 6, 7, 6, 7]
    assert batch["segments"].tolist() == [[1] * 8 + [2] * 3, [3] * 3 + [4] * 3 + [5] + [0] * 4]


def test_targets_stand_in_the_order_of_their_positions() -> None:
    """The head keeps hidden states row by row, so the targets must come row by row too."""
    batch = build_batch([[NO_TARGET, TWO_ANSWERS], [ALL_TARGETS]], PAD_ID)
    rows, columns = batch["predicts"].nonzero(as_tuple=True)
    assert batch["input_ids"][rows, columns + 1].tolist() == batch["target_ids"].tolist()


@pytest.mark.parametrize("pad_id", [0, 7])
def test_padding_predicts_nothing(pad_id: int) -> None:
    batch = build_batch([[ONE_TOKEN], [ALL_TARGETS]], pad_id)
    assert batch["input_ids"].tolist() == [[5, pad_id, pad_id], [5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert batch["predicts"].int().tolist() == [[0, 0, 0], [1, 1, 0]]


def test_a_batch_without_rows_is_one_token_of_padding() -> None:
    batch = build_batch([], 7)
    assert {name: value.tolist() for name, value in batch.items()} == {  # type: ignore[attr-defined]  # all tensors
        "input_ids": [[7]],
        "position_ids": [[0]],
        "predicts": [[False]],
        "target_ids": [],
        "segments": [[0]],
        "tally": [0.0, 0.0],
    }
    assert batch["target_ids"].dtype == batch["input_ids"].dtype


def test_labels_are_unshifted() -> None:
    assert compute_labels(TWO_ANSWERS).tolist() == [IGNORE_INDEX, IGNORE_INDEX, 7, 8, 9, IGNORE_INDEX, 4, 9]
