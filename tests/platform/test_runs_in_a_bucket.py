"""What is read of a run is the same whether it stands in a folder or in a bucket, with the real S3 over HTTP."""

import json
from pathlib import Path

import pytest
from run_dirs import write_finished_run, write_run
from s3_server import make_place
from tiny_runs import write_sums
from typer.testing import CliRunner

from sftray.platform.cli import app
from sftray.platform.inputs import keep_inputs
from sftray.platform.report import write_report
from sftray.platform.results import find_run, load_runs
from sftray.platform.run_directory import check_name_is_free, open_store, take_run_directory
from sftray.platform.run_files import load_checkpoints, load_events, load_metrics, load_samples
from sftray.platform.store_probe import probe_store
from sftray.train_fn.config import DataConfig, RunConfig, StoreConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ConfigError, StoreError
from sftray.train_fn.files import find_files, scan_files
from sftray.train_fn.local_copies import upload_folder
from sftray.train_fn.places import as_path, find_bucket, spell
from sftray.train_fn.prepare import prepare_tokens
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer


@pytest.fixture
def stores(tmp_path: Path, s3_endpoint: str) -> tuple[Path, Path]:
    """Two runs in a folder, and the same in a bucket."""
    here = tmp_path / "runs"
    write_finished_run(here, "alpha")
    write_run(here, "beta", ["train.seed=7"])
    bucket = find_bucket(as_path(make_place(s3_endpoint)))
    assert bucket is not None
    upload_folder(here, bucket)
    return here, as_path(str(bucket))


def run_command(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    return found.exit_code, found.output


def test_the_frames_are_equal(stores: tuple[Path, Path]) -> None:
    here, there = stores
    for load in (load_events, load_metrics, load_samples):
        assert load(there / "alpha").equals(load(here / "alpha"))
    checkpoints = [load_checkpoints(store / "alpha").drop(columns="path") for store in stores]
    assert checkpoints[0].equals(checkpoints[1]) and len(checkpoints[0]) == 2
    runs = [load_runs(str(store)).drop(columns=["path", "updated"]) for store in stores]
    assert runs[0].equals(runs[1]) and list(runs[0]["name"]) == ["beta", "alpha"]


@pytest.mark.slow
def test_commands_find_it_by_url_and_by_name(stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = stores
    monkeypatch.setenv("COLUMNS", "240")  # room for both places in a line, whatever the terminal
    for arguments in (("runs", "list"), ("runs", "show", "alpha"), ("status", "alpha"), ("logs", "alpha")):
        expected = run_command(*arguments, "--store", str(here))
        code, told = run_command(*arguments, "--store", str(there))
        assert code == expected[0] == 0
        assert told.replace(str(there / "alpha"), str(here / "alpha")).split() == expected[1].split()
    by_url = run_command("runs", "show", str(there / "alpha"), "--json")[1]
    assert json.loads(by_url)
    with pytest.raises(ConfigError, match="Did you mean alpha"):
        find_run("alhpa", str(there))


@pytest.mark.slow
def test_reports_and_comparisons_are_written(stores: tuple[Path, Path], tmp_path: Path) -> None:
    _, there = stores
    report = write_report(there / "alpha")
    assert report == there / "alpha" / "report.html" and "alpha" in report.read_text()
    code, told = run_command("runs", "compare", str(find_run("alpha", str(there))), str(there / "beta"))
    assert code == 0 and "train.seed" in told
    code, _ = run_command("runs", "export", "--store", str(there), "--output", str(tmp_path / "runs.csv"))
    assert code == 0 and (tmp_path / "runs.csv").read_text().count("\n") == 3


def test_a_name_is_taken_once(s3_endpoint: str) -> None:
    store = open_store(StoreConfig(path=make_place(s3_endpoint)))
    check_name_is_free(store, "mine")
    assert take_run_directory(store, "mine", "label") == store / "mine"
    with pytest.raises(ConfigError, match="the name mine is taken") as caught:
        take_run_directory(store, "mine", "label")
    assert f"sftray resume {spell(store / 'mine')}" in str(caught.value)  # quoted: it holds an ampersand
    with pytest.raises(ConfigError, match="taken"):
        check_name_is_free(store, "mine")
    assert [take_run_directory(store, None, "label").name for _ in range(2)] == ["label", "label-2"]


@pytest.mark.parametrize(
    ("url", "said", "kind"),
    [
        ("s3://no-such-bucket/runs", "no-such-bucket", StoreError),
        ("s3://", "no place for a store", ConfigError),
        ("ftp://host/runs", "no place for a store", ConfigError),
        ("s3://bucket/runs?colour=red", "colour is no option", ConfigError),
    ],
)
def test_a_store_that_is_none_is_refused(url: str, said: str, kind: type[Exception], s3_endpoint: str) -> None:
    options = "" if "colour" in url else f"?endpoint_override={s3_endpoint}&region=us-east-1"
    with pytest.raises(kind, match=said):
        open_store(StoreConfig(path=url + options))


def test_where_no_run_is_there_is_no_store(s3_endpoint: str) -> None:
    with pytest.raises(StoreError, match="there is no store at s3://"):
        load_runs(make_place(s3_endpoint))


def test_the_probe_says_why_it_failed(s3_endpoint: str) -> None:
    place = f"s3://no-such-bucket/store?endpoint_override={s3_endpoint}&region=us-east-1"
    ((level, said, fix),) = probe_store(place)
    assert level == "bad" and "cannot be written" in said and "bucket does not exist" in said and "bucket" in fix


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    return write_sums(path, 40)


def build_config(rows: Path | str) -> RunConfig:
    sections = {
        "model": {"scratch": {"architecture": "llama", "hidden_size": 8}, "tokenizer": "quickstart"},
        "data": {"train": str(rows), "validation": 0.2},
    }
    return RunConfig.model_validate(sections)


def test_rows_are_read_from_a_bucket(rows: Path, s3_endpoint: str) -> None:
    there = find_bucket(as_path(make_place(s3_endpoint)))
    assert there is not None
    upload_folder(rows.parent, there)
    for named in (str(there / "train.jsonl"), str(there / "*.jsonl")):
        (found,) = find_files(named, "data.train")
        assert str(found) == str(there / "train.jsonl")
        scanned = scan_files([found])
        assert scanned.fingerprint == scan_files([rows]).fingerprint
        assert scanned.chunks[0].file == str(there / "train.jsonl")
    url, options = str(there).split("?")
    for name in ("part#1.jsonl", "what-?.jsonl", "what-1.jsonl", "odd[1].jsonl"):
        (there / name).write_bytes(rows.read_bytes())
        (named,) = find_files(f"{url}/{name}?{options}", "data.train")  # an object of this very name comes first
        assert named.name == name and scan_files([named]).fingerprint == scan_files([rows]).fingerprint
    for pattern in (f"{url}/tr?in.json??{options}", f"{url}/*#?.jsonl?{options}"):
        (named,) = find_files(pattern, "data.train")
        assert named.name in ("train.jsonl", "part#1.jsonl")
    assert [path.name for path in find_files(f"{url}/w*-?.jsonl?{options}", "data.train")] == [
        "what-1.jsonl",
        "what-?.jsonl",
    ]
    with pytest.raises(Exception, match="no object"):
        find_files(str(there / "nothing.jsonl"), "data.train")
    with pytest.raises(Exception, match="matches no object"):
        find_files(str(there / "*.csv"), "data.train")


def test_tokens_are_prepared_into_a_bucket_once(rows: Path, tmp_path: Path, s3_endpoint: str) -> None:
    config, root = build_config(rows), as_path(make_place(s3_endpoint))
    loaded = load_tokenizer(config.model)
    near = prepare_tokens(config.model, config.data, tmp_path / "tokens", loaded)
    far = prepare_tokens(config.model, config.data, root / "tokens", loaded)
    assert not far.reused and far.folder.name == near.folder.name
    assert prepare_tokens(config.model, config.data, root / "tokens", loaded).reused
    for split in ("train", "validation"):
        here, there = TokenStore(near.folder, split), TokenStore(far.folder, split)
        assert len(here) and [e.input_ids.tolist() for e in here] == [e.input_ids.tolist() for e in there]
    bad = config.data.model_copy(update={"max_seq_len": 1})
    with pytest.raises(Exception, match="nothing is left"):
        prepare_tokens(config.model, bad, root / "tokens", loaded)
    assert not [path for path in (root / "tokens").iterdir() if not (path / "data.json").exists()]


def test_what_came_with_a_job_is_kept_in_the_bucket(
    rows: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(rows.parent.parent)
    store = as_path(make_place(s3_endpoint))
    kept = [keep_inputs(Resolved(build_config(rows), {}), store).config.data for _ in range(2)]
    assert isinstance(kept[0], DataConfig) and kept[0] == kept[1]
    assert isinstance(kept[0].train, list) and kept[0].train[0].startswith("s3://")
    (found,) = find_files(kept[0].train, "data.train")
    assert scan_files([found]).fingerprint == scan_files([rows]).fingerprint
