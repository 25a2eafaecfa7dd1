"""What is wrong with a sweep is told before anything starts."""

import json
from pathlib import Path

import pytest
from tiny_runs import read_events

from sftray.platform.cli import main
from sftray.platform.sweep_run import drive_sweep
from sftray.train_fn.errors import StoppedError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space", "lr_acumulation"], "Did you mean lr_accumulation"),
        (["--space", "quickstart", "--repeats", "1"], "--repeats 1 says nothing of chance"),
        (["--space", "quickstart", "--repeats", "2", "--finalists", "1"], "at least 2 are compared"),
        (["--space", "quickstart", "--scheduler", "pbt", "--repeats", "2"], "--repeats does not go with"),
        (["--space", "quickstart", "data.validation=null"], "a sweep needs data.validation"),
        (["--space", "quickstart", "--search", "grid"], "is a range, and a grid has values"),
        (["--space", "batch.yaml", "--scheduler", "pbt"], "nothing that pbt could change in mid-run"),
        (["--space", "grid.yaml", "--search", "tpe"], "is a grid, and tpe samples"),
        (["--space", "wrong.yaml"], "wrong.yaml:1"),
        (["--space", "experts.yaml"], "model.aux_loss_coef is searched, and a llama model has no auxiliary loss"),
        (
            ["--space", "quickstart", "model.aux_loss_coef=0.1"],
            "model.aux_loss_coef is 0.1, and a llama model has no",
        ),
        (["--space", "quickstart", "--trials", "0"], "--trials"),
        (["--space", "quickstart", "--scheduler", "best"], "--scheduler"),
        (["--space", "quickstart", "optim.learnign_rate=1"], "Did you mean optim.learning_rate"),
        (["--space", "quickstart", "--max-minutes", "-1"], "--max-minutes"),
        (["--space", "quickstart", "scaling.num_workers=4000"], "need 4000 CPU"),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "batch.yaml").write_text("train.gradient_accumulation_steps: {choice: [1, 2]}")
    (tmp_path / "grid.yaml").write_text("train.gradient_accumulation_steps: {grid: [1, 2]}")
    (tmp_path / "experts.yaml").write_text("model.aux_loss_coef: {log_uniform: [1e-3, 1e-1]}")
    (tmp_path / "wrong.yaml").write_text("optim.learning_rate: {log_uniform: [1e-3, 1e-5]}")
    code = main(["tune", "quickstart", *arguments])
    said = capsys.readouterr().err
    assert code == (5 if "4000" in words else 2)
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("tune-*"))


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "quickstart", "--space", "nothing", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize(
    ("interrupt", "why"), [(KeyboardInterrupt(), "Ctrl-C"), (KeyboardInterrupt("sftray stop"), "sftray stop")]
)
def test_what_interrupts_a_sweep_stands_in_its_events_and_it_can_go_on(
    interrupt: KeyboardInterrupt, why: str, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError) as caught, drive_sweep(tmp_path):
        raise interrupt
    last = read_events(tmp_path)[-1]
    assert (last["state"], last["why"]) == ("interrupted", why)
    assert f"sftray resume {tmp_path}" in str(caught.value)
