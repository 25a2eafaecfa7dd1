"""Fixed prompts answered before and after training, side by side: the proof a person can read."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftray.platform.terminal import plain

# Characters of a cell; what is longer is folded, keeping the end of a prompt and the beginning of an answer.
MOST_CHARACTERS = 400

Sample = Mapping[str, Any]
_Prompt = tuple[str, str]  # the prompt's text and its reference


def show_samples(console: Console, rows: Iterable[Sample], limit: int = 3) -> None:
    """Print the first `limit` prompts of samples.jsonl with their answers. Nothing where there are none."""
    before, after = _split(rows)
    prompts = list(dict.fromkeys([*before, *after]))[:limit]
    if not prompts:
        return
    table = Table(show_lines=True, expand=False)
    for name in ("prompt", "before", "after", "reference"):
        table.add_column(name, overflow="fold", ratio=1)
    for prompt in prompts:
        text, reference = prompt
        table.add_row(
            plain(_fold(text, keep_end=True)),
            _show_answer(before.get(prompt)),
            _show_answer(after.get(prompt)),
            plain(_fold(reference)),
        )
    console.print(table)


def describe_exact_match(rows: Iterable[Sample], held_out: bool = True) -> str:
    """`held-out answers exactly right: 0 of 100 before, 97 of 100 after`.

    `held_out`: the prompts are validation examples; without validation data they are training examples.
    """
    before, after = _split(rows)
    counts = [_count(before, "before"), _count(after, "after")]
    kind = "held-out" if held_out else "training"
    return f"{kind} answers exactly right: {', '.join(filter(None, counts)) or 'none were asked for'}"


def _split(rows: Iterable[Sample]) -> tuple[dict[_Prompt, Sample], dict[_Prompt, Sample]]:
    """Answers before and after, by prompt. Of a prompt answered twice (the run was cut off) the last counts."""
    sides: dict[str, dict[_Prompt, Sample]] = {"before": {}, "after": {}}
    for row in rows:
        sides[row["when"]][row["prompt"], row["reference"]] = row
    return sides["before"], sides["after"]


def _count(answers: Mapping[_Prompt, Sample], when: str) -> str:
    right = sum(row["exact_match"] for row in answers.values())
    return f"{right} of {len(answers)} {when}" if answers else ""


def _show_answer(row: Sample | None) -> Text:
    if row is None:
        return Text("not asked", style="dim")
    return plain(_fold(row["answer"]), "green" if row["exact_match"] else "")


def _fold(text: str, keep_end: bool = False) -> str:
    """Cut to MOST_CHARACTERS, saying how many are left out; ∅ for no text at all."""
    spare = len(text) - MOST_CHARACTERS
    if spare <= 0:
        return text or "∅"
    left_out = f"[{spare} characters]"
    return f"{left_out} … {text[spare:]}" if keep_end else f"{text[:MOST_CHARACTERS]} … {left_out}"
