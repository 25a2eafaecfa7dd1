"""Trials of two workers, one after another on a real cluster: they share their workers, and nothing else."""

from pathlib import Path

import pytest
from tiny_runs import read_events, read_metrics, train
from tiny_sweeps import read_states, sweep

from sftray.cluster.crew import CREWS
from sftray.train_fn.checkpoint import find_newest
from sftray.train_fn.config_file import load_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]

TWO = {"num_workers": 2, "use_gpu": False}
RATES = [1e-2, 5e-3, 1e30, 2e-3]


@pytest.fixture(scope="module")
def folder(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trials, one at a time; the third diverges."""
    space = {"optim.learning_rate": {"grid": RATES}}
    changes = {"scaling": TWO, "optim": {"schedule": "constant"}}
    return sweep(tmp_path_factory.mktemp("workers"), space, changes, concurrent=1)


def find_pids(run_dir: Path) -> list[int]:
    (pids,) = [event["pids"] for event in read_events(run_dir) if event["state"] == "running"]
    return pids  # type: ignore[no-any-return]  # JSON


def test_trials_share_their_workers_and_one_that_fails_costs_only_itself(folder: Path) -> None:
    assert list(read_states(folder).values()) == ["finished", "finished", "failed", "finished"]
    first, second, third, fourth = (find_pids(folder / f"trial-00{number}") for number in range(4))
    assert first == second == third and len(set(first)) == 2
    assert not set(fourth) & set(first)
    assert not (folder / CREWS).exists()


def test_each_has_the_weights_and_losses_of_the_same_run_alone(folder: Path, tmp_path: Path) -> None:
    config = load_config(folder / "trial-001" / "config.yaml").config
    store = config.store.model_copy(update={"path": str(tmp_path)})
    alone = train(config.model_copy(update={"store": store, "name": "alone"}))
    newest = find_newest(folder / "trial-001" / "checkpoints")
    assert newest is not None
    weights = "model.safetensors"
    assert (newest.folder / weights).read_bytes() == (alone.checkpoint / weights).read_bytes()
    rows = [row["train/loss"] for row in read_metrics(folder / "trial-001") if "train/loss" in row]
    assert rows == [row["train/loss"] for row in read_metrics(tmp_path / "alone") if "train/loss" in row]
