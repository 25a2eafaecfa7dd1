"""The runs of a store as one file, in three formats, read back."""

import json
from pathlib import Path

import pandas as pd
import pytest
from run_dirs import write_finished_run, write_run
from sweep_dirs import write_sweep

from sftray.platform.cli import main
from sftray.platform.export import export_runs
from sftray.platform.results import load_runs
from sftray.train_fn.errors import ConfigError, StoreError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Values of all kinds in one column: a list of files beside a name, a number beside a file, and none at all."""
    folder = tmp_path / "runs"
    write_finished_run(folder, "alpha", ["data.train=[a.jsonl, b.jsonl]", "tracking.tags=[quick, 'a, \"b\"']"])
    write_run(folder, "beta", ["data.validation=held/out.jsonl", "scaling.num_workers=[1, 2]"])
    write_sweep(folder, trials=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
def test_every_run_and_number_is_read_back(store: Path, tmp_path: Path, format: str) -> None:
    path, count = export_runs(str(store), tmp_path / "new" / f"all.{format}")
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: pd.read_json(p, lines=True)}[format]
    found, runs = read(path).set_index("name"), load_runs(store).set_index("name")
    assert (count, list(found.index)) == (6, list(runs.index))
    assert list(found.columns) == list(runs.columns)
    for column in ("val/loss_best", "progress", "config.optim.learning_rate", "step"):
        expected = runs[column].astype("float64")
        pd.testing.assert_series_equal(found[column].astype("float64"), expected, check_exact=False, rtol=1e-12)
    assert found.loc["sweep/trial-000", "state"] == "pruned"
    started = pd.to_datetime(found["started"], utc=True, format="ISO8601")
    assert abs(started - runs["started"]).max() < pd.Timedelta("1ms")
    value = found.loc["alpha", "config.tracking.tags"]
    assert (value if format == "jsonl" else json.loads(value)) == ["quick", 'a, "b"']
    assert [path.name for path in path.parent.iterdir()] == [path.name]  # no draft is left


def test_json_lines_keep_values_as_they_are(store: Path, tmp_path: Path) -> None:
    path, _ = export_runs(str(store), tmp_path / "all.jsonl")
    rows = {row["name"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert rows["alpha"]["config.data.validation"] == 0.05
    assert rows["beta"]["config.data.validation"] == "held/out.jsonl"
    assert rows["beta"]["config.scaling.num_workers"] == [1, 2]
    assert rows["beta"]["val/loss_best"] is None


def test_a_file_that_is_there_is_kept_unless_it_is_forced(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.csv"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export_runs(str(store), target)
    assert target.read_text() == "mine"
    export_runs(str(store), target, force=True)
    assert target.read_text().startswith("name,state,")


def test_a_format_that_the_name_denies_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--format jsonl, but --output .*all\.csv says csv"):
        export_runs(str(store), tmp_path / "all.csv", "jsonl")
    path, _ = export_runs(str(store), tmp_path / "all.txt", "jsonl")
    assert path.read_text().startswith("{")


def test_a_place_that_cannot_be_written_is_told(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="the runs cannot be written"):
        export_runs(str(store), tmp_path / "file" / "all.csv")


@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
def test_an_empty_store_is_a_file_without_rows(tmp_path: Path, format: str) -> None:
    path, count = export_runs(str(tmp_path), tmp_path / f"all.{format}")
    assert (count, path.exists()) == (0, True)


def test_the_command(store: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "export", "--store", str(store)]) == 0
    assert capsys.readouterr().out == "6 runs in runs.csv\n"
    assert main(["runs", "export", "--store", str(store), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "runs.csv", "runs": 6}
    assert main(["runs", "export", "--store", str(store), "--format", "xml"]) == 2
    assert main(["runs", "export", "--store", str(tmp_path / "none"), "--output", "n.csv"]) == 4
