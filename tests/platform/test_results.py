"""A store becomes a DataFrame, whatever state its runs are in."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from run_dirs import add_answers, log_step, write_checkpoint, write_events, write_finished_run, write_lines, write_run

from sftray.platform.results import (
    COLUMNS,
    find_run,
    load_checkpoints,
    load_events,
    load_metrics,
    load_receipt,
    load_runs,
    load_samples,
    sort_runs,
    to_records,
)
from sftray.train_fn.errors import ConfigError, StoreError
from sftray.train_fn.journal import CONFIG, DATA, EVENTS, METRICS, SAMPLES


def load_one(store: Path) -> dict[str, object]:
    runs = load_runs(store)
    assert len(runs) == 1
    return {str(key): value for key, value in runs.iloc[0].items()}


def test_a_finished_run_in_one_row(tmp_path: Path) -> None:
    write_finished_run(tmp_path)
    row = load_one(tmp_path)
    assert {key: row[key] for key in COLUMNS if key not in ("started", "updated", "seconds", "num_parameters")} == {
        **{"name": "alpha", "state": "finished", "why": "", "attempts": 1, "step": 40, "progress": 1.0},
        **{"train/loss": 1.0, "val/loss_before": 3.0, "val/loss": 1.8, "val/loss_best": 1.5, "best_step": 20},
        **{"perf/target_tokens_per_second": 1025.0, "perf/peak_memory_gb": 1.4},
        **{"exact_match_before": 0.0, "exact_match": 0.5, "num_samples": 2},
        **{"unreadable_lines": 0, "path": str(tmp_path / "alpha")},
    }


def test_configs_are_dotted_columns(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "a", ["optim.learning_rate=1e-4"])
    write_finished_run(tmp_path, "b", ["name=2026-01-01"])
    runs = load_runs(tmp_path).set_index("name")
    assert runs["config.optim.learning_rate"].to_dict() == {"a": 1e-4, "b": 2e-5}
    assert runs.loc["b", "config.name"] == "2026-01-01"  # a text, and no date
    assert runs.loc["a", "config.model.scratch.hidden_size"] == 8
    assert runs.loc["a", "config.optim.betas"] == [0.9, 0.95]


def test_newest_first(tmp_path: Path) -> None:
    for name, start in (("old", 100.0), ("new", 300.0), ("middle", 200.0)):
        write_events(write_run(tmp_path, name).folder, (start, 1, "running"))
    assert list(load_runs(tmp_path)["name"]) == ["new", "middle", "old"]


def test_a_store_without_runs_has_the_columns(tmp_path: Path) -> None:
    runs = load_runs(tmp_path)
    assert runs.empty
    assert list(runs) == list(COLUMNS)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        load_runs(tmp_path / "missing")


def test_foreign_folders_are_no_runs_and_trials_are(tmp_path: Path) -> None:
    for name in ("tokens/x", ".ray/x", "sweep/trial-1", "sweep/trial-2", "alpha"):
        write_run(tmp_path, name)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / CONFIG).write_text("model: {}")
    (tmp_path / "notes.txt").write_text("hello")
    assert sorted(load_runs(tmp_path)["name"]) == ["alpha", "sweep/trial-1", "sweep/trial-2"]


def test_a_run_directory_is_a_store_of_one(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    assert list(load_runs(folder)["name"]) == ["alpha"]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["starting", "running"], "running"),
        (["starting", "running", "checkpoint"], "running"),
        (["starting", "running", "checkpoint", "failed"], "failed"),
        (["starting", "running", "stopped", "starting", "running", "skipped_step"], "running"),
        (["checkpoint"], "checkpoint"),
    ],
)
def test_state_is_that_of_the_last_change(tmp_path: Path, states: list[str], expected: str) -> None:
    folder = write_run(tmp_path).folder
    write_events(folder, *((float(number), 1, state) for number, state in enumerate(states)))
    assert load_one(tmp_path)["state"] == expected


def test_updated_is_the_last_sign_of_life(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    write_events(journal.folder, (100.0, 1, "running"))
    log_step(journal, 10, time=160.0)
    row = load_one(tmp_path)
    assert (row["started"], row["updated"]) == tuple(pd.to_datetime([100, 160], unit="s", utc=True))
    assert row["seconds"] == 60.0


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([(0.0, 0, "starting"), (5.0, 1, "running"), (50.0, 1, "finished")], 50.0),
        # Stopped, and resumed a day later: the day is no time of the run.
        (
            [(0.0, 0, "starting"), (9.0, 1, "stopped"), (90000.0, 1, "starting"), (90010.0, 2, "finished")],
            19.0,
        ),
        # Prepared and then started: the same start.
        ([(0.0, 0, "prepared"), (4.0, 0, "starting"), (9.0, 1, "finished")], 9.0),
        # A worker was lost and replaced: the time that took is the run's.
        ([(0.0, 0, "starting"), (9.0, 1, "running"), (40.0, 2, "running"), (50.0, 2, "finished")], 50.0),
    ],
)
def test_seconds_count_while_something_runs(
    tmp_path: Path, events: list[tuple[float, int, str]], seconds: float
) -> None:
    write_events(write_run(tmp_path).folder, *events)
    assert load_one(tmp_path)["seconds"] == seconds


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    for name in (EVENTS, METRICS, SAMPLES):
        with (folder / name).open("ab") as file:
            file.write(b'{"step": 10, "tr\n[1, 2]\n\xff\xfe\n{"torn": ')
    row = load_one(tmp_path)
    assert (row["state"], row["step"], row["exact_match"], row["unreadable_lines"]) == (
        "finished",
        40,
        0.5,
        9,
    )


def test_well_formed_lines_of_another_shape_are_left_out(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path).folder
    for name in (EVENTS, SAMPLES):
        with (folder / name).open("a") as file:
            file.write('{"state": 3, "when": "later"}\n')
    with (folder / METRICS).open("a") as file:
        file.write('{"step": "41"}\n{"step": 42, "time": "noon", "val/loss": [1], "train/loss": {}}\n')
    row = load_one(tmp_path)
    assert (row["state"], row["step"], row["val/loss"], row["train/loss"]) == ("finished", 42, 1.8, 1.0)
    assert row["unreadable_lines"] == 2


def test_missing_files_are_empty(tmp_path: Path) -> None:
    folder = write_run(tmp_path).folder
    (folder / DATA).unlink()
    row = load_one(tmp_path)
    assert row["state"] == "running"
    assert all(pd.isna(row[key]) for key in ("step", "train/loss", "val/loss_best", "exact_match", "best_step"))
    assert load_metrics(folder).empty
    assert load_samples(folder).empty
    assert load_checkpoints(folder).empty
    assert load_receipt(folder) == {}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (CONFIG, b"model: [", "config.yaml is not YAML"),
        (CONFIG, b"", "config.yaml holds no settings"),
        (CONFIG, b"- a", "config.yaml holds no settings"),
        (CONFIG, b"name: \xff", "config.yaml: "),
        (EVENTS, b"", "events.jsonl holds no event"),
        (EVENTS, b"nothing\n", "events.jsonl holds no event"),
    ],
)
def test_a_broken_run_is_a_row_that_says_why(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    write_finished_run(tmp_path, "whole")
    (write_run(tmp_path, "broken").folder / name).write_bytes(content)
    runs = load_runs(tmp_path).set_index("name")
    assert runs.loc["broken", "state"] == "broken"
    assert why in str(runs.loc["broken", "why"])
    assert runs.loc["whole", "state"] == "finished"


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    log_step(journal, 10, train_loss=math.nan, val_loss=math.inf)
    metrics = load_metrics(journal.folder)
    assert metrics["val/loss"].tolist() == [math.inf]
    assert metrics["train/loss"].isna().all()
    (record,) = to_records(metrics)
    assert (record["train/loss"], record["val/loss"]) == (None, "inf")


def test_of_a_step_logged_twice_the_last_counts(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    for loss in (3.0, 2.5):
        log_step(journal, 20, train_loss=loss)
        log_step(journal, 10, train_loss=4.0)
    assert load_metrics(journal.folder)[["step", "train/loss"]].values.tolist() == [[10, 4.0], [20, 2.5]]


def test_of_a_prompt_answered_twice_the_last_counts(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    add_answers(journal, "before", 0, ["wrong"])  # and then it was cut off, and began anew
    add_answers(journal, "before", 0, ["right", "right", "wrong"])
    row = load_one(tmp_path)
    assert (row["exact_match_before"], row["num_samples"]) == (pytest.approx(2 / 3), 3)


def test_parameters_are_taken_from_an_event(tmp_path: Path) -> None:
    write_run(tmp_path).add_event("running", 2, num_parameters=1234)
    assert load_one(tmp_path)["num_parameters"] == 1234


def test_events_keep_their_facts(tmp_path: Path) -> None:
    events = load_events(write_finished_run(tmp_path).folder)
    assert list(events["state"]) == ["starting", "running", "checkpoint", "checkpoint", "finished"]
    assert list(events["seq"]) == [0, 1, 2, 3, 4]
    assert events["step"].tolist()[1:] == [0, 20, 40, 40]


def test_checkpoints_with_a_manifest_only(tmp_path: Path) -> None:
    journal = write_finished_run(tmp_path)
    (write_checkpoint(journal, 60, None).folder / "MANIFEST.json").write_text("{")
    checkpoints = load_checkpoints(journal.folder)
    assert checkpoints[["step", "val_loss", "bytes"]].values.tolist() == [[20, 1.5, 2048], [40, 1.8, 2048]]


def test_records_are_json(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "a", ["train.max_steps=40"])
    write_run(tmp_path, "b")
    write_lines(write_run(tmp_path, "c").folder / EVENTS, [])
    text = json.dumps(to_records(load_runs(tmp_path)), allow_nan=False)
    by_name = {row["name"]: row for row in json.loads(text)}
    assert by_name["a"]["best_step"] == 20
    assert by_name["a"]["started"].startswith("20")
    assert by_name["b"]["val/loss"] is None
    assert by_name["c"]["config.train.max_steps"] is None


def test_sorting(tmp_path: Path) -> None:
    for name, loss in (("a", 2.0), ("b", 1.0), ("c", None), ("d", 3.0)):
        journal = write_run(tmp_path, name, [f"optim.betas=[0.{'abcd'.index(name) + 1}, 0.9]"])
        if loss is not None:
            log_step(journal, 10, val_loss=loss)
    runs = load_runs(tmp_path)

    def order(column: str, limit: int | None = None) -> str:
        return "".join(sort_runs(runs, column, limit)[0]["name"])

    assert order("val/loss") == "badc"
    assert order("-val/loss") == "dabc"
    assert order("-val/loss", 2) == "da"
    assert order("optim.betas") == "abcd"
    assert order("-name") == "dcba"
    assert sort_runs(runs, "optim.betas")[1] == "config.optim.betas"
    with pytest.raises(ConfigError, match=r"no column vall/loss. Did you mean val/loss\?"):
        sort_runs(runs, "vall/loss")


def test_a_run_is_found_by_path_or_by_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "sweep/trial-1").folder
    assert find_run(str(folder), "nowhere") == folder
    assert find_run("sweep/trial-1", str(tmp_path)) == folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alhpa", r"there is no run alhpa\. Did you mean alpha\?"),
        ("zzz", r"there is no run zzz\.\n.*holds 1 runs"),
        (".source", r"there is no run \.source"),
        ("x" * 500, "there is no run x"),
        ("nul\0", "there is no run"),
    ],
)
def test_no_such_run(tmp_path: Path, name: str, said: str) -> None:
    write_run(tmp_path)
    with pytest.raises(ConfigError, match=said):
        find_run(name, str(tmp_path))


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory, but not of a run"):
        find_run(str(tmp_path), str(tmp_path / "nowhere"))
