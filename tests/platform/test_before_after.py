"""Answers before and after, as a person sees them."""

import io
from typing import Any

from rich.console import Console

from sftray.platform.before_after import MOST_CHARACTERS, describe_exact_match, show_samples

Sample = dict[str, Any]


def answer(when: str, prompt: str, text: str, reference: str = "4") -> Sample:
    return {
        "when": when,
        "step": 0 if when == "before" else 40,
        "prompt": prompt,
        "reference": reference,
        "answer": text,
        "exact_match": text == reference,
    }


def show(rows: list[Sample], limit: int = 3, width: int = 120, terminal: bool = False) -> str:
    file = io.StringIO()
    show_samples(Console(file=file, width=width, force_terminal=terminal), rows, limit)
    return file.getvalue()


def read_cells(shown: str) -> list[list[str]]:
    """The table's lines of text, each as its cells."""
    lines = [line for line in shown.splitlines() if line[0] in "┃│"]
    return [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines]


def test_prompts_stand_side_by_side() -> None:
    rows = [
        answer("before", "2+2?", "a cat"),
        answer("before", "3+3?", "", reference="6"),
        answer("after", "2+2?", "4"),
        answer("after", "3+3?", "7", reference="6"),
    ]
    assert read_cells(show(rows)) == [
        ["prompt", "before", "after", "reference"],
        ["2+2?", "a cat", "4", "4"],
        ["3+3?", "∅", "7", "6"],
    ]


def test_first_prompts_are_shown_and_no_more() -> None:
    rows = [answer(when, f"{i}?", "x") for when in ("before", "after") for i in range(5)]
    assert [row[0] for row in read_cells(show(rows, limit=2))] == ["prompt", "0?", "1?"]


def test_nothing_is_shown_without_answers() -> None:
    assert show([]) == ""


def test_run_cut_off_shows_what_it_has() -> None:
    assert read_cells(show([answer("before", "2+2?", "a cat")]))[1] == ["2+2?", "a cat", "not asked", "4"]


def test_foreign_text_is_shown_and_never_obeyed() -> None:
    text = "[red]a[/b]\x1b[2J :smile: \u202edcba"
    shown = show([answer("after", "[link=x]2+2?", text)], width=200)
    assert read_cells(shown)[1] == ["[link=x]2+2?", "not asked", r"[red]a[/b]\x1b[2J :smile: \x202edcba", "4"]


def test_line_ends_of_an_answer_stay() -> None:
    assert [row[2] for row in read_cells(show([answer("after", "2+2?", "2\n+\n2")]))[1:]] == ["2", "+", "2"]


def test_long_texts_are_cut_where_they_matter_least_and_folded() -> None:
    prompt = "p" * 500 + "the question?"
    text = "the-answer:" + "a" * 600
    cells = read_cells(show([answer("after", prompt, text)]))
    shown_prompt, shown_answer = ("".join(row[column] for row in cells[1:]) for column in (0, 2))
    assert shown_prompt.startswith("[113 characters]") and shown_prompt.endswith("the question?")
    assert shown_answer.startswith("the-answer:a") and shown_answer.endswith("[211 characters]")
    assert len(shown_answer) == MOST_CHARACTERS + len(" … [211 characters]")
    assert len(cells) > 4  # lines of one row: folded, not cropped


def test_right_answers_are_green_on_a_terminal() -> None:
    shown = show([answer("after", "2+2?", "4"), answer("after", "1+1?", "five")], terminal=True)
    assert "\x1b[32m4" in shown
    assert "\x1b[32mfive" not in shown


def test_exact_matches_are_counted_before_and_after() -> None:
    rows = [answer("before", f"{i}?", "x") for i in range(100)]
    rows += [answer("after", f"{i}?", "4" if i < 97 else "x") for i in range(100)]
    assert describe_exact_match(rows) == "held-out answers exactly right: 0 of 100 before, 97 of 100 after"


def test_exact_matches_of_a_run_cut_off() -> None:
    rows = [answer("before", "a", "4"), answer("before", "b", "5")]
    assert describe_exact_match(rows, held_out=False) == "training answers exactly right: 1 of 2 before"


def test_exact_matches_without_answers() -> None:
    assert describe_exact_match([]) == "held-out answers exactly right: none were asked for"


def test_prompts_answered_again_after_a_restart_count_once() -> None:
    rows = [answer("before", "a", "x"), answer("before", "a", "4"), answer("before", "b", "x")]
    assert describe_exact_match(rows) == "held-out answers exactly right: 1 of 2 before"
