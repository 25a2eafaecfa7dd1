"""What the driver settles and refuses before anything of a run exists or Ray is started."""

import io
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import read_output, start_command, wait_for
from rich.console import Console
from run_dirs import write_checkpoint
from tiny_runs import build_config, read_events, train, write_sums
from toy_data import save_byte_tokenizer

from sftray.platform.driver import _drive, _record_failure, fix_batch, prepare_run, resume_run, settle_paths
from sftray.platform.run_directory import TOKENS
from sftray.platform.watch import stop_run
from sftray.train_fn.config import DataConfig, ModelConfig, RunConfig
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.errors import (
    ClusterError,
    ConfigError,
    DataError,
    DivergedError,
    Problem,
    StoppedError,
    UserError,
)
from sftray.train_fn.journal import CONFIG, DATA, Journal


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a working directory whose name has letters that mean something in patterns."""
    (tmp_path / "home" / "model").mkdir(parents=True)
    here = tmp_path / "here [1]*"
    for name in ("model", "quickstart"):
        (here / name).mkdir(parents=True)
    (here / "chat.jinja").touch()
    for folder in (tmp_path / "home", here):
        write_sums(folder / "a.jsonl", 1)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def settle(model: dict[str, Any], data: dict[str, Any]) -> RunConfig:
    config = RunConfig(model=ModelConfig(**model), data=DataConfig(**{"train": "a.jsonl", **data}))
    settled = settle_paths(Resolved(config, {}))
    assert settle_paths(settled) == settled
    return settled.config


@pytest.mark.parametrize(
    ("key", "given", "settled"),
    [
        ("name", "model", "{here}/model"),
        ("name", "./model/", "{here}/model"),
        ("name", "../here [1]*/model", "{here}/../here [1]*/model"),
        ("name", "~/model", "{home}/model"),
        ("name", "~/none", "~/none"),
        ("name", "quickstart", "{here}/quickstart"),
        ("name", "org/model", "org/model"),
        ("name", "x" * 300, "x" * 300),
        ("tokenizer", "model", "{here}/model"),
        ("tokenizer", "quickstart", "quickstart"),  # the one that ships, whatever folders there are
        ("chat_template", "chat.jinja", "{here}/chat.jinja"),
        ("chat_template", "chatml", "chatml"),
    ],
)
def test_local_models_are_named_by_their_whole_path(home: Path, key: str, given: str, settled: str) -> None:
    model = settle({"name": "m", key: given}, {}).model
    assert getattr(model, key) == settled.format(here=os.getcwd(), home=home)


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ("a.jsonl", "{here}/a.jsonl"),
        ("./a.jsonl", "{here}/a.jsonl"),
        ("~/a.jsonl", "{home}/a.jsonl"),
        ("none.jsonl", "{here}/none.jsonl"),
        ("preset://quickstart/train.jsonl", "preset://quickstart/train.jsonl"),
        ("/data/*.jsonl", "/data/*.jsonl"),
        (["a.jsonl", "~/a.jsonl"], ["{here}/a.jsonl", "{home}/a.jsonl"]),
    ],
)
def test_data_is_named_by_its_whole_path(home: Path, given: str | list[str], settled: str | list[str]) -> None:
    places = {"here": os.getcwd(), "home": str(home)}
    expected = settled.format(**places) if isinstance(settled, str) else [text.format(**places) for text in settled]
    data = settle({"name": "m"}, {"train": given, "validation": given}).data
    assert (data.train, data.validation) == (expected, expected)


def test_a_pattern_means_the_same_from_elsewhere(home: Path) -> None:
    from sftray.train_fn.files import find_files

    pattern = settle({"name": "m"}, {"train": "*.jsonl"}).data.train
    expected = [Path.cwd() / "a.jsonl"]
    os.chdir(home)
    assert find_files(pattern, "data.train") == expected


@pytest.mark.parametrize("validation", [0.25, None])
def test_what_is_no_path_stays(home: Path, validation: float | None) -> None:
    assert settle({"name": "m"}, {"validation": validation}).data.validation == validation


def test_the_global_batch_and_the_name_are_written_out() -> None:
    scaling = {"num_workers": (1, 3)}
    train = {"micro_batch_size": 4, "gradient_accumulation_steps": 2}
    sections = {"model": {"name": "m"}, "data": {"train": "a"}, "scaling": scaling, "train": train}
    fixed = fix_batch(Resolved(RunConfig.model_validate(sections), {}), "quick-2")
    assert fixed.config.name == "quick-2" and fixed.origin["name"] == "made"
    assert fixed.config.train.global_batch_size == fixed.config.global_batch_size == 24
    assert fixed.config.train.gradient_accumulation_steps is None
    assert "3 workers × 4 examples × 2 accumulated" in fixed.origin["train.global_batch_size"]
    assert fix_batch(fixed, "quick-2") == fixed
    named = RunConfig.model_validate({**sections, "name": "mine"})
    assert "name" not in fix_batch(Resolved(named, {}), "mine").origin


def test_tokens_that_a_template_adds_are_told(tmp_path: Path) -> None:
    model = save_byte_tokenizer(tmp_path / "bare", template=None, special=())
    config = build_config(tmp_path, model={"tokenizer": model.tokenizer, "chat_template": "chatml"})
    console = Console(file=io.StringIO(), width=200)
    prepare_run(config, tmp_path / "runs", console)
    assert isinstance(console.file, io.StringIO)
    assert "tokenizer: <|im_start|> <|im_end|> added for the chat template\n" in console.file.getvalue()


def bad_rows(folder: Path) -> RunConfig:
    config = build_config(folder)
    with Path(str(config.data.train)).open("a") as file:
        file.write("no row\n")
    return config


def taken_name(folder: Path) -> RunConfig:
    (folder / "runs" / "mine").mkdir(parents=True)
    return build_config(folder).model_copy(update={"name": "mine"})


@pytest.mark.parametrize(
    ("spoil", "kind", "left"),
    [
        (bad_rows, DataError, [TOKENS]),
        (lambda folder: build_config(folder, scaling={"num_workers": 100_000}), ClusterError, []),
        (lambda folder: build_config(folder, model={"tokenizer": "no-such"}), ConfigError, []),
        (lambda folder: build_config(folder, model={"scratch": {"architecture": "lama"}}), ConfigError, []),
        (lambda folder: build_config(folder).model_copy(update={"name": TOKENS}), ConfigError, []),
        (taken_name, ConfigError, ["mine"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_of_the_run_exists(
    spoil: Any, kind: type[UserError], left: list[str], tmp_path: Path
) -> None:
    with pytest.raises(kind):
        train(spoil(tmp_path))
    runs = tmp_path / "runs"
    assert [path.name for path in runs.iterdir()] == left
    assert all(list((runs / name).iterdir()) == [] for name in left)


def write_started(folder: Path, **changes: dict[str, Any]) -> Path:
    """The directory of a run that has started and was cut off."""
    config, run_dir = build_config(folder, **changes), folder / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    prepared = prepare_run(config, run_dir.parent, Console(file=io.StringIO()))
    (run_dir / DATA).write_text(json.dumps(prepared.receipt), encoding="utf-8")
    (run_dir / CONFIG).write_text(dump_config(fix_batch(Resolved(config, {}), "tiny")), encoding="utf-8")
    return run_dir


def resume(run_dir: Path) -> None:
    resume_run(run_dir, Console(file=io.StringIO()))


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run: it has no config\.yaml"):
        resume(tmp_path)


@pytest.mark.parametrize("change", ["a blank line", "change a row", "cut the rows", "hold some out"])
def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, change: str) -> None:
    run_dir = write_started(tmp_path)
    held_out = load_config(run_dir / CONFIG).config.data.validation
    name, old, new = {
        "a blank line": ("train.jsonl", "\n", "\n\n"),
        "change a row": ("train.jsonl", "so", "SO"),
        "cut the rows": ("runs/tiny/config.yaml", "max_seq_len: 128", "max_seq_len: 18"),
        "hold some out": ("runs/tiny/config.yaml", f"validation: {held_out}", "validation: 0.5"),
    }[change]
    path = tmp_path / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match="the data is not what it was at the start") as caught:
        resume(run_dir)
    assert caught.value.problems[0].where == str(run_dir / DATA)
    assert sorted(path.name for path in run_dir.iterdir()) == ["LEASE.json", CONFIG, DATA, "leases"]


def test_a_run_is_not_resumed_where_its_data_is_gone(tmp_path: Path) -> None:
    run_dir = write_started(tmp_path)
    (tmp_path / "train.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(DataError, match=r"data\.train: no file .*train\.jsonl"):
        resume(run_dir)


def test_a_run_is_not_resumed_on_a_machine_that_cannot_hold_it(tmp_path: Path) -> None:
    run_dir = write_started(tmp_path, scaling={"num_workers": 100_000})
    with pytest.raises(ClusterError, match="100000 workers"):
        resume(run_dir)


@pytest.mark.parametrize(
    ("error", "saved", "raised", "state", "why"),
    [
        (DivergedError(Problem("it diverged")), True, DivergedError, "failed", "it diverged"),
        (ZeroDivisionError("bug"), True, ZeroDivisionError, "failed", "ZeroDivisionError: bug"),
        (KeyboardInterrupt(), False, KeyboardInterrupt, "interrupted", "Ctrl-C"),
        (KeyboardInterrupt(), True, StoppedError, "interrupted", "Ctrl-C"),
        (KeyboardInterrupt("SIGTERM"), True, StoppedError, "interrupted", "SIGTERM"),
    ],
)
def test_what_ended_a_run_stands_in_its_events(
    error: BaseException, saved: bool, raised: type[BaseException], state: str, why: str, tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    if saved:
        write_checkpoint(journal, 7)
    with pytest.raises(raised) as caught, _drive(tmp_path), _record_failure(journal):
        raise error
    assert [(event["state"], event["why"]) for event in read_events(tmp_path)] == [
        *([("checkpoint", "")] if saved else []),
        (state, why),
    ]
    if isinstance(caught.value, StoppedError):
        assert "saved at step 7" in str(caught.value) and f"sftray resume {tmp_path}" in str(caught.value)


def interrupt(process: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    process.send_signal(signal.SIGTERM)


def ask(process: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    stop_run(run_dir, lambda text: None)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("stop", "by", "saved", "code"),
    [(ask, "sftray stop", True, 75), (interrupt, "SIGTERM", True, 75), (ask, "sftray stop", False, 130)],
)
def test_a_stop_while_nodes_are_waited_for_ends_the_wait(
    stop: Any, by: str, saved: bool, code: int, ray_address: str, tmp_path: Path
) -> None:
    run_dir = write_started(tmp_path, scaling={"num_workers": 60, "wait_minutes": 10})
    journal = Journal(run_dir)
    journal.add_event("starting", 0)
    if saved:
        write_checkpoint(journal, 7)
    process = start_command(tmp_path, "resume", str(run_dir), address=ray_address)
    wait_for(lambda: "waiting for nodes, up to 10 min" in read_output(tmp_path), process, tmp_path)
    stop(process, run_dir)
    assert process.wait(60) == code, read_output(tmp_path)
    last = read_events(run_dir)[-1]
    assert (last["state"], last["why"]) == ("interrupted", by)
    said = read_output(tmp_path)
    assert by in said and (f"sftray resume {run_dir}" in said) == saved
