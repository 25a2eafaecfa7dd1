"""MiniMind's loop from the command line: what does not go with it, and what its runs say of themselves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from local_runs import build_job, run_here
from tiny_runs import build_config, read_metrics

from sftray.platform.cli import main
from sftray.platform.ledger_check import check_ledger
from sftray.platform.resuming import load_changed
from sftray.train_fn.config_file import Resolved, dump_config
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, DATA
from sftray.train_fn.token_store import read_receipt

Capture = pytest.CaptureFixture[str]
SEEDS: dict[str, dict[str, Any]] = {
    "data": {"overlong": "truncate"},
    "optim": {"schedule": "minimind", "betas": (0.9, 0.999), "weight_decay": 0.01},
    "scaling": {"num_workers": 1},
}
REPLAYED = ["minimind", "train.replay_seed=true", "train.precision=fp32", "optim.schedule=minimind"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["verify", *REPLAYED], "MiniMind's loop keeps none of the promises that are verified"),
        (["tune", *REPLAYED, "--space", "lr"], "train.replay_seed does not go with a sweep"),
        (["plan", *REPLAYED[:2]], "has other values of optim.schedule, train.precision"),
    ],
    ids=["verify", "tune", "plan"],
)
def test_what_does_not_go_with_it_is_refused(
    command: list[str], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("replayed", [True, False])
def test_the_micro_batch_is_what_a_replayed_run_is(replayed: bool, tmp_path: Path) -> None:
    config = build_config(tmp_path, **SEEDS, train={"replay_seed": replayed, "packing": False})
    (tmp_path / CONFIG).write_text(dump_config(Resolved(config, {})), encoding="utf-8")
    if not replayed:
        assert load_changed(tmp_path, ["train.micro_batch_size=4"])[1] == {"train.micro_batch_size": (2, 4)}
        return
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size is 2 in this run, and cannot become 4"):
        load_changed(tmp_path, ["train.micro_batch_size=4"])


@pytest.mark.slow
def test_its_ledger_is_not_held_against_our_order(tmp_path: Path) -> None:
    config = build_config(tmp_path, **SEEDS, train={"replay_seed": True})
    job = build_job(config, tmp_path)
    run_here(job)
    run_dir = Path(job["run_dir"])
    (run_dir / CONFIG).write_text(dump_config(Resolved(config, {})), encoding="utf-8")
    receipt = read_receipt(Path(job["tokens"]))
    assert receipt["splits"]["train"]["kept"] == 48
    (run_dir / DATA).write_text(json.dumps(receipt), encoding="utf-8")
    found = check_ledger(run_dir)
    assert found.broken_at is None and not found.holds
    assert "the seed's loop was replayed" in found.describe()


@pytest.mark.slow
def test_a_run_of_each_loop_can_be_compared_by_what_they_hold_out(tmp_path: Path, capsys: Capture) -> None:
    for name, replayed in (("seed", True), ("ours", False)):
        config = build_config(tmp_path, **SEEDS, train={"replay_seed": replayed, "packing": False})
        job = build_job(config, tmp_path / "runs", name)
        run_here(job)
        named = config.model_copy(update={"name": name})
        Path(job["run_dir"], CONFIG).write_text(dump_config(Resolved(named, {})), encoding="utf-8")
    store = str(Path(job["run_dir"]).parent)
    assert main(["runs", "compare", "seed", "ours", "--store", store, "--json"]) == 0
    told = json.dumps(json.loads(capsys.readouterr().out))
    last = [read_metrics(Path(store, name))[-1]["val/loss"] for name in ("seed", "ours")]
    assert last[0] != last[1] and all(str(value) in told for value in last)
    assert "train.replay_seed" in told


def test_a_plan_says_the_rates_and_the_first_row_of_the_loop(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = build_config(tmp_path, **SEEDS, train={"replay_seed": True})
    (tmp_path / "run.yaml").write_text(dump_config(Resolved(config, {})), encoding="utf-8")
    assert main(["plan", "run.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    first = json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["messages"][0]["content"] in "".join(part["text"] for part in told["example"])
    assert main(["plan", "run.yaml"]) == 0
    # Of micro-batches 3, 27 and 47 of 48, at a rate of 0.01: four are a step.
    rates = [0.01 * (0.1 + 0.5 * (1 + math.cos(math.pi * number / 48))) for number in (3, 27, 47)]
    expected = "learning rate: {:.3g} at the first step, {:.3g} in the middle, {:.3g} at the last".format(*rates)
    assert expected in capsys.readouterr().out
    assert main(["plan", "run.yaml", "train.precision=fp16"]) == 2
    assert "train.replay_seed on a CPU goes with fp32, not fp16" in capsys.readouterr().err
