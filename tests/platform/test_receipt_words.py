"""A data receipt in words: what was kept, and everything that was not."""

import copy
from typing import Any

from run_dirs import RECEIPT

from sftray.platform.receipt_words import describe_preparation, describe_receipt


def with_counts(**counts: int) -> dict[str, Any]:
    receipt: dict[str, Any] = copy.deepcopy(RECEIPT)
    receipt["splits"]["train"] |= counts
    return receipt


def test_every_fate_is_told_with_its_first_places() -> None:
    receipt = with_counts(typed_markers=3)
    receipt["splits"]["train"]["places"] = {
        "cut": [f"a.jsonl:{n}" for n in range(1, 6)],
        "without_target": ["a.jsonl:9"],
    }
    assert describe_receipt(receipt) == [
        "train: 9 of 12 rows, 900 tokens, 400 of them targets",
        "  1 rows cut to fit in data.max_seq_len (first: a.jsonl:1, a.jsonl:2, a.jsonl:3)",
        "  2 rows dropped: too long for data.max_seq_len",
        "  1 rows left out: no target token in them (first: a.jsonl:9)",
        "  7 target tokens lost by cuts and drops",
        "  3 special tokens typed in a message, kept as plain text",
    ]


def test_what_did_not_happen_is_not_told() -> None:
    nothing = dict.fromkeys(("cut", "dropped_overlong", "without_target", "target_tokens_lost"), 0)
    assert describe_receipt(with_counts(**nothing, rows=1_234_567, kept=1_234_567)) == [
        "train: 1,234,567 of 1,234,567 rows, 900 tokens, 400 of them targets"
    ]


def test_splits_and_overlap_have_lines_of_their_own() -> None:
    receipt = with_counts(cut=0, dropped_overlong=0, without_target=0, target_tokens_lost=0)
    receipt["splits"]["validation"] = {
        **receipt["splits"]["train"],
        "kept": 0,
        "rows": 3,
        "tokens": 0,
        "target_tokens": 0,
    }
    receipt["overlap"] = {
        **{"train_duplicates": 4, "validation_in_train": 1},
        "places": {"train_duplicates": ["a:1", "a:2", "a:3", "a:4"], "validation_in_train": ["b:1"]},
    }
    assert describe_receipt(receipt)[1:] == [
        "validation: 0 of 3 rows, 0 tokens, 0 of them targets",
        "4 training rows are copies of another (first: a:1, a:2, a:3)",
        "1 validation rows are in train too: the validation loss will look too good (first: b:1)",
    ]


def test_what_preparing_cost_or_that_it_cost_nothing() -> None:
    cost = {"seconds": 12.34, "rows_per_second": 4567.8, "processes": 2, "peak_memory_mb": 1234.5}
    receipt = {"key": "abc", "preparation": cost}
    assert describe_preparation(receipt, reused=True) == "tokens: found in the store (abc)"
    said = describe_preparation(receipt, reused=False)
    assert said == "tokens: prepared in 12.3 s, 4,568 rows/s, 2 process(es), peak 1,234 MB"
