"""Receipts of chunks add up to that of the whole, however the rows are cut into chunks."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sftray.train_fn.errors import Problem
from sftray.train_fn.receipt import ChunkReceipt, SplitReceipt

FATES = ("cut", "dropped_overlong", "without_target")


def count_rows(fates: list[str], first_row: int) -> ChunkReceipt:
    train = SplitReceipt()
    receipt = ChunkReceipt(splits={"train": train}, peak_memory_bytes=first_row)
    for row, fate in enumerate(fates, first_row):
        receipt.cross_check["rows_checked"] += 1
        if fate == "bad":
            receipt.add_problem(Problem("bad", f"a.jsonl:{row}"))
        else:
            train.counts["rows"] += 1
            train.add(fate, f"a.jsonl:{row}")
    return receipt


@given(st.lists(st.sampled_from([*FATES, "bad"]), max_size=90), st.lists(st.integers(0, 90), max_size=4))
def test_the_whole_is_the_sum_of_its_chunks(fates: list[str], cuts: list[int]) -> None:
    total, bounds = ChunkReceipt(), sorted([0, *cuts, len(fates)])
    for start, stop in pairwise(bounds):
        total.merge(count_rows(fates[start:stop], start))
    whole = count_rows(fates, 0)
    assert total.to_json() == whole.to_json()
    assert (total.problems, total.num_problems) == (whole.problems, whole.num_problems)


def test_the_first_places_of_a_fate_and_the_first_problems_are_shown() -> None:
    receipt = count_rows(["cut"] * 7 + ["bad"] * 23 + ["cut"] * 2, 1)
    train = receipt.splits["train"]
    assert train.counts == Counter(rows=9, cut=9)
    assert train.places == {"cut": [f"a.jsonl:{row}" for row in range(1, 6)]}
    assert [problem.where for problem in receipt.problems] == [f"a.jsonl:{row}" for row in range(8, 28)]
    assert receipt.num_problems == 23


def test_places_of_many_chunks_are_the_first_ones() -> None:
    total = ChunkReceipt()
    for first in (1, 5, 9):
        total.merge(count_rows(["cut"] * 4, first))
    assert total.splits["train"].places == {"cut": [f"a.jsonl:{row}" for row in range(1, 6)]}


def test_every_count_is_there_though_it_is_none() -> None:
    assert set(SplitReceipt().to_json()) == {
        *("rows", "kept", "cut", "dropped_overlong", "without_target"),
        *("tokens", "target_tokens", "target_tokens_lost", "typed_markers", "places"),
    }
    assert "kept" not in SplitReceipt().counts


def test_the_peak_of_memory_is_that_of_the_largest_process() -> None:
    total = ChunkReceipt()
    for peak in (3, 9, 5):
        total.merge(ChunkReceipt(peak_memory_bytes=peak))
    assert total.peak_memory_bytes == 9
