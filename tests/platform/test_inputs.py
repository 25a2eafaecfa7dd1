"""In a job, what came with it moves into the store; elsewhere paths stay as they are."""

from pathlib import Path

import pytest
from tiny_runs import build_config

from sftray.platform.driver import settle_paths
from sftray.platform.inputs import keep_inputs
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import StoreError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a job, with data and a chat template in it. The name has a letter that patterns know."""
    folder = tmp_path / "pkg[1]"
    (folder / "data").mkdir(parents=True)
    for name in ("data/a.jsonl", "data/b.jsonl", "chat.jinja"):
        (folder / name).write_text(f"{name}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return folder


def settle(folder: Path, **data: object) -> Resolved:
    model = {"chat_template": "chat.jinja"}
    return settle_paths(Resolved(build_config(folder, data=data, model=model), {}))


def test_files_of_the_job_are_copied_by_their_content_and_others_stay(job: Path, tmp_path: Path) -> None:
    (tmp_path / "far.jsonl").touch()
    resolved = settle(job, train=["data/*.jsonl", str(tmp_path / "far.jsonl")], validation="data/a.jsonl")
    kept = keep_inputs(resolved, store := tmp_path / "store").config
    a, b, far = (Path(path) for path in kept.data.train)  # type: ignore[union-attr]
    assert far == tmp_path / "far.jsonl"
    assert [a.read_text(), b.read_text()] == ["data/a.jsonl\n", "data/b.jsonl\n"]
    assert kept.data.validation == [str(a)], "the same content is kept once"
    template = Path(str(kept.model.chat_template))
    assert template.read_text() == "chat.jinja\n" and template.is_relative_to(store)
    assert keep_inputs(resolved, store).config == kept
    assert len(list((store / "tokens" / "inputs").iterdir())) == 3


def test_a_file_of_weights_keeps_its_name(job: Path, tmp_path: Path) -> None:
    (job / "in.pth").write_bytes(b"weights")
    model = {"scratch": None, "name": "in.pth"}
    resolved = settle_paths(Resolved(build_config(job, data={"train": "data/a.jsonl"}, model=model), {}))
    kept = Path(str(keep_inputs(resolved, store := tmp_path / "store").config.model.name))
    assert kept.name == "in.pth" and kept.read_bytes() == b"weights" and kept.is_relative_to(store)


def test_outside_of_a_job_nothing_is_copied(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    resolved = settle(job, train="data/*.jsonl")
    assert keep_inputs(resolved, tmp_path / "store") is resolved and not (tmp_path / "store").exists()


def test_a_store_that_refuses_is_told(job: Path, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match=r"a\.jsonl cannot be kept in the store: Not a directory"):
        keep_inputs(settle(job, train="data/a.jsonl"), tmp_path / "store")
