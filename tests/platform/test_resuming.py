"""What may be changed when a run is resumed, and what would make it another run."""

from pathlib import Path

import pytest
from tiny_runs import build_config, read_events

from sftray.platform.cli import main
from sftray.platform.resuming import describe_changes, load_changed, save_changes
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, Journal


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    config = build_config(tmp_path).model_copy(update={"name": "tiny"})
    (folder / CONFIG).write_text(dump_config(Resolved(config, {})))
    return folder


def test_nothing_asked_is_nothing_changed(run_dir: Path) -> None:
    text = (run_dir / CONFIG).read_text()
    resolved, changes = load_changed(run_dir, [])
    save_changes(run_dir, resolved, changes)
    assert changes == {} and (run_dir / CONFIG).read_text() == text and not (run_dir / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "key", "before", "after"),
    [
        ("optim.learning_rate=1e-3", "optim.learning_rate", 1e-2, 1e-3),
        ("train.max_steps=40", "train.max_steps", None, 40),
        ("train.log_every=5", "train.log_every", 1, 5),
        ("train.micro_batch_size=4", "train.micro_batch_size", 2, 4),
        ("scaling.num_workers=1", "scaling.num_workers", 2, 1),
        ("model.gradient_checkpointing=true", "model.gradient_checkpointing", False, True),
    ],
)
def test_pace_layout_and_logging_may_change_and_are_shown(
    run_dir: Path, override: str, key: str, before: object, after: object
) -> None:
    resolved, changes = load_changed(run_dir, [override])
    assert changes == {key: (before, after)}
    save_changes(run_dir, resolved, changes)
    assert load_config(run_dir / CONFIG).config == resolved.config
    (event,) = read_events(run_dir)
    assert event["state"] == "changed" and event["changes"] == {key: [before, after]}
    assert event["why"] == describe_changes(changes)[0]


@pytest.mark.parametrize(
    "override",
    [
        *("train.seed=2", "train.global_batch_size=16", "train.precision=bf16", "data.max_seq_len=64"),
        *("data.train=other.jsonl", "model.scratch.hidden_size=64", "name=other", "store.path=elsewhere"),
    ],
)
def test_what_would_make_it_another_run_is_refused_with_the_difference(run_dir: Path, override: str) -> None:
    text, key = (run_dir / CONFIG).read_text(), override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        load_changed(run_dir, [override, "optim.learning_rate=1e-3"])
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{key} is ") and "cannot become" in problem.what
    assert (run_dir / CONFIG).read_text() == text


def test_all_that_is_refused_is_said_at_once(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Journal(run_dir).add_event("starting", 0)
    assert main(["resume", str(run_dir), "train.seed=2", "data.max_seq_len=64"]) == 2
    said = capsys.readouterr().err
    assert "train.seed is 1 in this run" in said and "data.max_seq_len is 128 in this run" in said
