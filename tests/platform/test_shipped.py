"""CONFIG is a file or the name of a preset."""

from pathlib import Path

import pytest

from sftray.platform.shipped import PRESETS, list_presets, load_named_config
from sftray.train_fn.errors import ConfigError

TEXT = "model: {name: some/model}\ndata: {train: a.jsonl}\n"


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "my.run.yaml")
    resolved, label = load_named_config(str(path), ["train.epochs=3"])
    assert label == "my.run"
    assert (resolved.config.train.epochs, resolved.origin["train.epochs"]) == (3, "command line")
    assert resolved.origin["data.train"] == f"{path}:2"


def test_a_preset(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml")
    resolved, label = load_named_config("quickstart", ["train.epochs=3"], tmp_path)
    assert (label, resolved.config.train.epochs) == ("quickstart", 3)
    assert resolved.origin["data.train"] == "preset quickstart"


def test_a_file_comes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "presets" / "quickstart.yaml")
    write(tmp_path / "quickstart", TEXT + "train: {epochs: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert load_named_config("quickstart", (), tmp_path / "presets")[0].config.train.epochs == 7


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quikstart", r"no preset quikstart\. Did you mean quickstart\?"),
        ("quickstart.yaml", r"Did you mean quickstart"),
        ("rnu.yaml", r"Did you mean run\.yaml\?\n  why  presets: quickstart; files here: run\.yaml"),
        ("folder", r"folder is a directory, not a config"),
        ("missing/deep/x.yaml", r"no preset missing/deep/x\.yaml"),
        ("train.epochs=3", r"CONFIG comes first, and train\.epochs=3 is a setting"),
    ],
)
def test_no_such_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    write(tmp_path / "presets" / "quickstart.yaml")
    write(tmp_path / "here" / "run.yaml")
    (tmp_path / "here" / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=said):
        load_named_config(name, (), tmp_path / "presets")


def test_every_preset_that_ships_is_a_right_config() -> None:
    assert [load_named_config(name)[1] for name in list_presets()] == list_presets(PRESETS)
