"""Reports: one file that asks for nothing, shows what is there, and obeys nobody's text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from html_pages import HtmlPage, read_page
from plotly.offline import get_plotlyjs
from run_dirs import add_answers, log_step, write_finished_run, write_lines, write_run
from sweep_dirs import KEYS, build_settings, rewrite_ledger, write_sweep, write_trial

from sftray.platform.cli import main
from sftray.platform.report import find_folder, write_report
from sftray.platform.sweep_files import BASE, SETTINGS, TrialRecord, load_settings, read_ledger, save_settings
from sftray.train_fn.errors import ConfigError, StoreError
from sftray.train_fn.journal import CONFIG, DATA, EVENTS, METRICS, Journal

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> <b>%{x}</b> \x1b[31m \u202e"
SHOWN = "</script><script>alert(1)</script><img src=x onerror=alert(2)> <b>%{x}</b> \\x1b[31m \\x202e"
SCRIPTS = 3  # figures, library, the page's own


def report(folder: Path) -> HtmlPage:
    return read_page(write_report(folder))


def titles(page: HtmlPage) -> list[str]:
    return [text.strip() for text in page.texts if text.strip()]


def test_a_run_in_one_file(tmp_path: Path) -> None:
    write_finished_run(tmp_path, settings=["optim.learning_rate=1e-4"])
    path = write_report(tmp_path / "alpha")
    assert path == tmp_path / "alpha" / "report.html"
    page = read_page(path)
    for words in (
        "alpha finished",
        "validation loss before 3.0000 validation loss after 1.8000 best validation loss 1.5000 at step 20",
        "Held-out answers exactly right: 0 of 2 before, 1 of 2 after.",
        "train: 9 of 12 rows, 900 tokens, 400 of them targets",
        "optim.learning_rate 1.0e-4 command line",
        "20 1.5000 2 KiB best",
    ):
        assert words in page.text
    loss = page.figures[0]["data"]
    assert [(line["name"], line["x"], line["y"]) for line in loss] == [
        ("training", [10, 20, 30, 40], [2.5, 2, 1.5, 1]),
        ("validation", [0, 20, 40], [3.0, 1.5, 1.8]),
    ]


@pytest.mark.slow
def test_the_file_asks_for_nothing(tmp_path: Path) -> None:
    html = write_report(write_sweep(tmp_path, repeats=2)).read_text(encoding="utf-8")
    library = get_plotlyjs()
    assert html.count(library) == 1
    rest = html.replace(library, "")
    assert re.findall(r"(?:https?:|wss?:)?//[\w.]+\.[a-z]", rest) == []
    page = read_page(html)
    links = [
        (tag, key, value) for tag, given in page.elements for key, value in given.items() if key in ("src", "href")
    ]
    assert links == [("link", "href", "data:,")]
    policy = next(given["content"] for tag, given in page.elements if "http-equiv" in given)
    assert policy is not None and policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy


def test_text_of_a_run_is_never_obeyed(tmp_path: Path) -> None:
    name = "<script>alert(1)<"
    journal = write_finished_run(tmp_path, name, [f"tracking.project={json.dumps(EVIL[:60])}"])
    add_answers(journal, "after", 40, [EVIL], prompt=EVIL)
    journal.add_event("failed", 1, EVIL)
    page = report(tmp_path / name)
    assert len(page.scripts) == SCRIPTS
    assert "img" not in [tag for tag, _ in page.elements]
    assert page.text.startswith(f"{name} – run run {name} failed {SHOWN}")
    assert f"{SHOWN} 0 not asked {SHOWN} right" in page.text
    assert page.text.count(EVIL[:60]) >= 4


def write_evil_sweep(store: Path) -> Path:
    folder = write_sweep(store)
    records = read_ledger(folder)
    key = "<b>evil</b>.</script>"
    rewrite_ledger(folder, [replace_point(r, {**r.point, key: EVIL if r.number % 2 else "%{y}"}) for r in records])
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings |= {"name": EVIL, "space_name": EVIL, "space": {EVIL: {"choice": [EVIL]}}}
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    Journal(folder / "trial-001").add_event("failed", 1, EVIL)
    return folder


def replace_point(record: TrialRecord, point: dict[str, Any]) -> TrialRecord:
    return TrialRecord(record.number, record.kind, point, record.seed, record.repeat_of, record.time)


def test_text_of_a_sweep_is_never_obeyed(tmp_path: Path) -> None:
    page = report(write_evil_sweep(tmp_path))
    assert len(page.scripts) == SCRIPTS
    assert "img" not in [tag for tag, _ in page.elements]
    assert SHOWN in page.text
    figures = json.dumps(page.figures, ensure_ascii=False)
    assert "alert(1)" in figures
    # Plotly obeys some tags in its texts: of ours it may be only these two.
    assert set(re.findall(r"<[^>]*>", figures)) <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}
    templates = re.findall(r'"hovertemplate": "([^"]*)"', figures)
    assert templates and not any("evil" in template or "alert" in template for template in templates)


@pytest.mark.slow
def test_a_sweep_in_one_file(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path, repeats=2))
    assert page.text.startswith("sweep – sweep sweep sweep finished Best: trial-004, learning_rate 0.00207")
    assert "trials 8 of 8 2 finished, 5 pruned, 1 failed" in page.text
    assert "1 trial-004 1.2542 0.00207 4 40 100 % finished" in page.text
    assert "– trial-001 1.9555 0.00568 1 10 25 % failed torch.OutOfMemoryError: CUDA out of memory." in page.text
    assert "trial-004 learning_rate 0.00207, gradient_accumulation_steps 4 1.2542 1.2589 1.2261 1.2425" in page.text
    assert "None of 5 stopped trials could have won, as measured here." in page.text
    assert "trial-002 was stopped at 50 % with 1.562: trial-004, which won, had 1.438 there" in page.text
    curves = page.figures[0]["data"]
    assert [curve["name"] for curve in curves[-2:]] == ["trial-007", "trial-004"]  # the best lies on top
    assert curves[-1]["x"] == [count / 8 for count in range(1, 9)]


@pytest.mark.slow
def test_many_trials_have_a_short_legend_and_all_pictures(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path, trials=40))
    assert sum(curve["showlegend"] for curve in page.figures[0]["data"]) == 6
    titles = [text.strip() for text in page.texts]
    for title in (
        *("Validation loss", "Learning rate", "Training loss", "Throughput", "When they were stopped"),
        *("Parallel coordinates", "Importance", "learning_rate × gradient_accumulation_steps"),
        *("learning_rate, trial by trial", "gradient_accumulation_steps, trial by trial"),
    ):
        assert titles.count(title) == 1
    contour = next(f for f in page.figures if any(trace["type"] == "contour" for trace in f["data"]))
    assert contour["layout"]["xaxis"]["categoryarray"] == ["1", "2", "4", "8"]
    assert "µ" not in json.dumps(page.figures, ensure_ascii=False)


def test_all_failed(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path, trials=4, fates=dict.fromkeys(range(4), "failed")))
    assert "None of 4 trials has finished" in page.text
    assert "What mattered cannot be told: no trial finished, and it takes 2." in page.text
    assert "– trial-000" in page.text
    assert "stopped early" not in page.text


def test_two_trials(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path, trials=2))
    assert "Importance takes 6 finished trials, and 2 trials did." in page.text
    assert "The map of two settings takes 4 finished trials, and 2 trials did." in page.text
    assert len(page.figures) == 7


def test_population_based_training_has_its_lineage(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path, trials=6, scheduler="pbt"))
    lineage = page.text.partition("Who took over from whom")[2]
    assert re.search(r"trial-\d+ 50 % trial-004 learning_rate \S+ → 0.00248", lineage)
    assert "Trials that took over others' weights and settings" in page.text


def test_equal_settings(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=4, scheduler="none")
    same = read_ledger(folder)[0].point
    rewrite_ledger(folder, [replace_point(record, same) for record in read_ledger(folder)])
    assert "all finished trials have the same settings" in report(folder).text


@pytest.mark.slow
@pytest.mark.parametrize("values", [[1e-4] * 8, [None] * 8, ["cosine", None, True, 3, [1, 2], {"a": 1}, "–", 0.0]])
def test_any_values_of_settings(tmp_path: Path, values: list[Any]) -> None:
    folder = write_sweep(tmp_path, scheduler="none")
    records = read_ledger(folder)
    changed = [
        replace_point(record, {**record.point, "optim.schedule": value})
        for record, value in zip(records, values, strict=True)
    ]
    rewrite_ledger(folder, changed)
    assert "Parallel coordinates" in titles(report(folder))


@pytest.mark.slow
def test_a_setting_that_only_some_trials_have(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=20, scheduler="none")
    records = read_ledger(folder)
    rewrite_ledger(
        folder, [replace_point(r, {KEYS[0]: r.point[KEYS[0]]} if r.number % 2 else r.point) for r in records]
    )
    page = report(folder)
    assert re.search(r"trial-005 [0-9.]+ 0.000148 – ", page.text)
    assert "Parallel coordinates" in titles(page)


def test_a_sweep_that_has_just_started(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=0)
    write_lines(folder / EVENTS, [{"seq": 0, "time": 1.0, "attempt": 1, "state": "running", "why": ""}])
    page = report(folder)
    assert "sweep running" in page.text
    assert "No trial has started." in page.text
    assert page.scripts == []  # no picture, no library


@pytest.mark.slow
@pytest.mark.parametrize("name", [METRICS, EVENTS, CONFIG, DATA])
def test_damaged_trials(tmp_path: Path, name: str) -> None:
    folder = write_sweep(tmp_path, trials=6, scheduler="none")
    for number, content in enumerate([None, "", "{torn", '{"step": "a", "state": 3}\n[]\n', "\x00\n"]):
        path = folder / f"trial-{number:03d}" / name
        path.unlink()
        if content is not None:
            path.write_text(content, encoding="utf-8")
            assert report(path.parent).text.startswith(f"trial-{number:03d} – run")
    page = report(folder)
    assert all(f"trial-00{number}" in page.text for number in range(6))
    assert len(page.figures) >= 4


def test_losses_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=5, scheduler="none")
    record = TrialRecord(5, "search", read_ledger(folder)[0].point, 1)
    journal = write_trial(folder, record, ("running", 0.0))
    log_step(journal, 5, val_loss=float("nan"), milestone=0.125, train_loss=float("inf"))
    journal.add_event("pruned", 1, "nan", step=5, progress=0.125, val_loss=float("nan"))
    page = report(folder)
    assert "trial-005 was stopped at 12.5 % with no number" in page.text
    assert "NaN" not in page.scripts[0] and "Infinity" not in page.scripts[0]


def test_half_a_character_is_written(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=2)
    (folder / SETTINGS).write_text(
        json.dumps({**vars(load_settings(folder)), "name": "half \ud800"}), encoding="utf-8"
    )
    assert report(folder).text.startswith(r"half \ud800 – sweep")


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    rows = [{"step": step, "progress": step / 9999, "time": 0.0, "train/loss": 2.0} for step in range(10_000)]
    write_lines(journal.folder / METRICS, rows)
    page = report(journal.folder)
    steps = page.figures[0]["data"][0]["x"]
    assert 1900 < len(steps) <= 2001
    assert (steps[0], steps[-1]) == (0, 9999)
    assert "Of 10,000 logged steps, about 2,000 are drawn" in page.text


def test_a_run_that_has_logged_nothing(tmp_path: Path) -> None:
    page = report(write_run(tmp_path).folder)
    assert "No step has been logged yet." in page.text
    assert "No prompts were answered." in page.text


def test_a_pruned_trial_says_so(tmp_path: Path) -> None:
    page = report(write_sweep(tmp_path) / "trial-006")
    assert page.text.startswith("trial-006 – run run trial-006 pruned asha: 3.3030 is not among the best half at 25%")


def test_searched_seeds_are_a_column(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=3)
    records = [TrialRecord(r.number, r.kind, r.point, r.number + 1, None, r.time) for r in read_ledger(folder)]
    rewrite_ledger(folder, records)
    columns = "best val loss learning_\u200brate gradient_\u200baccumulation_\u200bsteps seed at step"
    assert columns in report(folder).text


def test_finding_what_to_report(tmp_path: Path) -> None:
    sweep, store = write_sweep(tmp_path, trials=2), str(tmp_path)
    write_run(tmp_path, "alpha")
    assert find_folder("sweep", store) == find_folder(str(sweep), "elsewhere") == sweep
    assert find_folder("alpha", store) == tmp_path / "alpha"
    assert find_folder("sweep/trial-000", store) == sweep / "trial-000"
    with pytest.raises(ConfigError, match=r"no run alpga\. Did you mean alpha"):
        find_folder("alpga", store)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, trials=2)
    target = tmp_path / "new" / "page.html"
    assert main(["runs", "report", "sweep", "--store", str(tmp_path), "--output", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(target)}
    assert target.is_file()
    assert main(["runs", "report", "sweep/trial-001", "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/sweep/trial-001/report.html\n"
    assert main(["runs", "report", "nothing", "--store", str(tmp_path)]) == 2


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="the report cannot be written: File exists"):
        write_report(tmp_path / "alpha", tmp_path / "file" / "report.html")


def test_a_report_replaces_the_last_one_whole(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=2)
    write_report(folder)
    save_settings(folder, build_settings("renamed", 2))
    assert report(folder).text.startswith("renamed")
    assert [path.name for path in folder.glob(".report*")] == []
    assert load_settings(folder).name == "renamed"
    assert (folder / BASE).is_file()
