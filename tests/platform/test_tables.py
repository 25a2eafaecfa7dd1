"""What `runs list` and `runs show` print, at several widths."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from run_dirs import RECEIPT, add_answers, log_step, write_finished_run, write_lines, write_run

from sftray.platform.results import load_runs
from sftray.platform.run_page import describe_run, show_run
from sftray.platform.tables import show_runs
from sftray.train_fn.journal import CHECKPOINTS, CONFIG, DATA, EVENTS, METRICS

WIDTHS = (60, 80, 160)


def recording(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, record=True)


def print_list(store: Path, width: int, sorted_by: str | None = None) -> list[str]:
    console = recording(width)
    show_runs(load_runs(store), console, sorted_by)
    return console.export_text().splitlines()


def print_page(folder: Path, width: int) -> str:
    console = recording(width)
    show_run(folder, console)
    return console.export_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_fits_and_says_the_most_important(tmp_path: Path, width: int) -> None:
    write_finished_run(tmp_path)
    lines = print_list(tmp_path, width)
    assert max(map(len, lines)) <= width
    assert lines[0].split()[:4] == ["run", "state", "step", "val/loss"]
    assert lines[1].split()[:7] == ["alpha", "finished", "40", "100%", "3.0000", "→", "1.8000"]


def test_a_wider_terminal_gets_more_columns(tmp_path: Path) -> None:
    write_finished_run(tmp_path)
    heads = [print_list(tmp_path, width)[0] for width in WIDTHS]
    assert ["train/loss" in head for head in heads] == [False, True, True]
    assert ["exact match" in head for head in heads] == [False, False, True]
    assert "0% → 50%" in print_list(tmp_path, 160)[1]


def test_a_long_name_is_folded_and_never_cut(tmp_path: Path) -> None:
    name = "a-name-of-sixty-three-characters-which-is-the-most-that-is-lega"
    write_finished_run(tmp_path, name)
    lines = print_list(tmp_path, 60)
    assert max(map(len, lines)) <= 60
    assert "".join(line.partition(" ")[0] for line in lines[1:]) == name


def test_the_sorting_column_is_shown_at_any_width(tmp_path: Path) -> None:
    write_finished_run(tmp_path, settings=["optim.learning_rate=1e-4"])
    lines = print_list(tmp_path, 70, "config.optim.learning_rate")
    assert lines[0].endswith("optim.learning_rate")
    assert lines[1].endswith(" 0.0001")


def test_reasons_stand_below_the_list(tmp_path: Path) -> None:
    write_run(tmp_path, "a").add_event("failed", 1, "loss [nan] at step 3")
    (write_run(tmp_path, "b").folder / CONFIG).write_text("")
    write_finished_run(tmp_path, "c")
    below = print_list(tmp_path, 80)[4:]
    assert sorted(below) == ["broken b: config.yaml holds no settings", "failed a: loss [nan] at step 3"]


def test_what_a_run_does_not_have_is_a_dash(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert print_list(tmp_path, 80)[1].split() == ["alpha", "running", "–", "–", "→", "–", "–"]


def test_an_empty_store(tmp_path: Path) -> None:
    assert print_list(tmp_path, 80) == ["no runs here"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_run_has_everything(tmp_path: Path, width: int) -> None:
    journal = write_finished_run(tmp_path, settings=["optim.learning_rate=1e-4"])
    page = print_page(journal.folder, width)
    assert max(map(len, page.splitlines())) <= width
    flat = " ".join(page.split())
    for text in (
        "alpha finished",
        "validation loss 3.0000 → 1.8000",
        "best 1.5000 at step 20",
        "exact match 0% → 50%",
        "starting 2",
        "finished step 40",
        "optim.learning_rate 1.0e-4 command line",
        "data.validation 0.05 run.yaml",
        "train.epochs=1",
        "9 of 12 rows",
        "2 rows dropped",
        "20 1.5000 2 KiB best",
        "40 1.8000 2 KiB newest",
        "held-out answers exactly right: 0 of 2 before, 1 of 2 after",
    ):
        assert text in flat
    assert str(journal.folder) in "".join(page.split()), "folded, and never cut"


def test_the_last_metrics_are_shown(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    for step in range(1, 31):
        log_step(journal, step, train_loss=step / 100)
    page = print_page(journal.folder, 80).splitlines()
    start = next(index for index, line in enumerate(page) if "train/loss" in line)
    assert [line.split()[0] for line in page[start + 1 : start + 10] if line] == [str(n) for n in range(23, 31)]


@pytest.mark.parametrize("width", WIDTHS)
def test_markup_and_escape_sequences_of_others_are_text(tmp_path: Path, width: int) -> None:
    journal = write_run(tmp_path, settings=["tracking.tags=['[red]']"])
    add_answers(journal, "before", 0, ["[/nothing]", "\x1b[31mred"], prompt="[bold]say[/bold]")
    journal.add_event("failed", 1, "[link=https://x.y]why[/link] :boom: \x1b]0;title\x07")
    for text in (print_page(journal.folder, width), "\n".join(print_list(tmp_path, width))):
        assert "[link=https://x.y]why[/link]" in text.replace("\n", "")
        assert ":boom:" in text
        assert "\x1b" not in text
        assert "\x07" not in text
    page = print_page(journal.folder, 160)
    for text in ("[bold]say[/bold] 0", "[/nothing]", r"\x1b[31mred", "['[red]']".replace("'", '"')):
        assert text in page


@pytest.mark.parametrize("broken", [DATA, METRICS, CONFIG])
def test_the_page_of_a_damaged_run(tmp_path: Path, broken: str) -> None:
    journal = write_finished_run(tmp_path)
    (journal.folder / broken).write_text('{"splits": 3')
    page = print_page(journal.folder, 80)
    assert {
        DATA: "no receipt that can be read",
        METRICS: "none yet",
        CONFIG: "broken: config.yaml is not YAML",
    }[broken] in page


def test_a_config_of_another_version_is_shown_without_origins(tmp_path: Path) -> None:
    journal = write_finished_run(tmp_path)
    (journal.folder / CONFIG).write_text("old_setting: 3\nmodel: {name: x}\n")
    lines = [line.split() for line in print_page(journal.folder, 80).splitlines()]
    assert ["old_setting", "3", "–"] in lines
    assert ["model.name", "x", "–"] in lines


def test_a_page_of_a_run_without_checkpoints(tmp_path: Path) -> None:
    page = print_page(write_run(tmp_path).folder, 80)
    assert "checkpoints\n  none\n" in page


def test_a_run_described_as_json(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, settings=["train.epochs=3"]).folder
    facts = describe_run(folder)
    assert list(facts) == ["run", "config", "origin", "data", "events", "metrics", "checkpoints", "samples", "ledger"]
    assert (facts["config"]["train.epochs"], facts["origin"]["train.epochs"]) == (3, "command line")
    assert facts["origin"]["data.validation"] == "run.yaml"
    assert facts["data"] == RECEIPT
    assert facts["metrics"][0]["train/loss"] is None
    assert [row["step"] for row in facts["checkpoints"]] == [20, 40]
    assert facts["checkpoints"][1]["path"] == str(folder / CHECKPOINTS / "step-000040")
    assert [row["exact_match"] for row in facts["samples"]] == [False, False, True, False]
    assert facts["run"]["val/loss_best"] == 1.5


def test_unreadable_lines_are_told(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    write_lines(folder / METRICS, ["rubbish\n", {"step": 10}])
    assert "unreadable lines  1" in print_page(folder, 80)


def test_half_a_character_does_not_end_the_page(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    events = (folder / EVENTS).read_text().splitlines()
    (folder / EVENTS).write_text(
        "\n".join([*events[:-1], events[-1].replace('"why": ""', '"why": "\\ud800!"')]) + "\n"
    )
    print_page(folder, 80)
    assert load_runs(tmp_path).iloc[0]["why"] == "?!"
