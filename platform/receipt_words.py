"""The data receipt in words."""

from typing import Any


def describe_receipt(receipt: dict[str, Any]) -> list[str]:
    """Lines for a person: what was kept, and everything that was not, with the first places."""
    lines = []
    for split, counts in receipt["splits"].items():
        lines.append(
            f"{split}: {counts['kept']:,} of {counts['rows']:,} rows, {counts['tokens']:,} tokens, "
            f"{counts['target_tokens']:,} of them targets"
        )
        for fate, words in _FATES.items():
            if counts[fate]:
                lines.append(f"  {counts[fate]:,} {words}{_show_places(counts['places'].get(fate))}")
    overlap = receipt["overlap"]
    for kind, words in _OVERLAPS.items():
        if overlap[kind]:
            lines.append(f"{overlap[kind]:,} {words}{_show_places(overlap['places'][kind])}")
    return lines


_FATES = {
    "cut": "rows cut to fit in data.max_seq_len",
    "dropped_overlong": "rows dropped: too long for data.max_seq_len",
    "without_target": "rows left out: no target token in them",
    "target_tokens_lost": "target tokens lost by cuts and drops",
    "typed_markers": "special tokens typed in a message, kept as plain text",
}
_OVERLAPS = {
    "train_duplicates": "training rows are copies of another",
    "validation_in_train": "validation rows are in train too: the validation loss will look too good",
}


def _show_places(places: list[str] | None) -> str:
    return f" (first: {', '.join(places[:3])})" if places else ""


def describe_preparation(receipt: dict[str, Any], reused: bool) -> str:
    if reused:
        return f"tokens: found in the store ({receipt['key']})"
    cost = receipt["preparation"]
    return (
        f"tokens: prepared in {cost['seconds']:.1f} s, {cost['rows_per_second']:,.0f} rows/s, "
        f"{cost['processes']} process(es), peak {cost['peak_memory_mb']:,.0f} MB"
    )
