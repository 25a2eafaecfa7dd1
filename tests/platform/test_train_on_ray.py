"""Whole runs on a real Ray cluster: layout, lost workers, stops, and what is refused."""

import hashlib
import io
import threading
from pathlib import Path

import pytest
from killers import kill_a_worker_after
from rich.console import Console
from tiny_runs import build_config, read_events, read_metrics, trace, train

from sftray.cluster.connection import connect_for
from sftray.cluster.preparation import spread_over_cluster
from sftray.platform.driver import resume_run
from sftray.train_fn import prepare
from sftray.train_fn.errors import ClusterError, ConfigError, DivergedError, StoppedError
from sftray.train_fn.journal import SAMPLES, read_lines
from sftray.train_fn.tokenizer import load_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]


def hash_weights(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def reference(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of two workers that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    return train(build_config(folder)).run_dir


def test_a_run_leaves_everything_that_is_promised(reference: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in reference.iterdir()}
    expected = {"config.yaml", "events.jsonl", "metrics.jsonl", "data.json", "samples.jsonl", "checkpoints"}
    expected |= {"LEASE.json", "claims", "leases"}
    assert names == expected
    metrics = read_metrics(reference)
    assert [row["step"] for row in metrics] == list(range(13))
    assert metrics[-1]["val/loss"] < metrics[0]["val/loss"] * 0.8
    assert metrics[-1]["progress"] == 1.0 and metrics[-1]["examples"] == 96
    assert {row["when"] for row in read_lines(reference / SAMPLES)} == {"before", "after"}
    states = [event["state"] for event in read_events(reference)]
    assert states == ["starting", "running", "checkpoint", "checkpoint", "checkpoint", "finished"]
    kept = sorted(path.name for path in (reference / "checkpoints").iterdir())
    assert kept == ["step-000008", "step-000012"]
    newest = reference / "checkpoints" / "step-000012"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(newest), AutoTokenizer.from_pretrained(newest)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1 = ?"}], add_generation_prompt=True)
    answer = model.generate(torch.tensor([prompt["input_ids"]]), max_new_tokens=4)
    assert answer.shape[1] > len(prompt["input_ids"])


@pytest.mark.parametrize(
    ("workers", "layout"), [(1, {"micro_batch_size": 8}), (3, {"micro_batch_size": 2, "packing": False})]
)
def test_the_layout_does_not_change_the_losses(
    reference: Path, tmp_path: Path, workers: int, layout: dict[str, object]
) -> None:
    run = train(build_config(tmp_path, scaling={"num_workers": workers}, train=layout))
    steps, losses = zip(*trace(run.run_dir), strict=True)
    expected_steps, expected = zip(*trace(reference), strict=True)
    assert steps == expected_steps == tuple(range(1, 13))
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_killed_worker_is_replaced_and_nothing_changes(reference: Path, tmp_path: Path) -> None:
    config = build_config(tmp_path, train={"save_every": 2})
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "runs" / "tiny", "checkpoint"))
    killer.start()
    run = train(config)
    killer.join()
    running = [event for event in read_events(run.run_dir) if event["state"] == "running"]
    assert len(running) == 2 and running[1]["step"] >= 2
    assert trace(run.run_dir) == trace(reference)
    assert hash_weights(run.checkpoint) == hash_weights(reference / "checkpoints" / "step-000012")


def test_a_time_limit_saves_and_resume_goes_on(reference: Path, tmp_path: Path) -> None:
    config = build_config(tmp_path, limits={"max_minutes": 0.001})
    with pytest.raises(StoppedError, match="sftray resume") as stop:
        train(config)
    assert stop.value.exit_code == 75
    run_dir = tmp_path / "runs" / "tiny"
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("max_minutes: 0.001", "max_minutes: null"))
    run = resume_run(run_dir, Console(file=io.StringIO()))
    assert trace(run.run_dir) == trace(reference)
    assert hash_weights(run.checkpoint) == hash_weights(reference / "checkpoints" / "step-000012")


def test_divergence_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        train(build_config(tmp_path, optim={"learning_rate": 1e30, "schedule": "constant"}))
    assert caught.value.exit_code == 6
    events = read_events(tmp_path / "runs" / "tiny")
    skipped = [event for event in events if event["state"] == "skipped_step"]
    assert len(skipped) == 5 and skipped[0]["examples"][0].startswith(str(tmp_path / "train.jsonl:"))
    assert [event["state"] for event in events].count("running") == 1  # it was not tried again
    assert events[-1]["state"] == "failed"


def test_a_model_that_cannot_pack_is_refused_once(tmp_path: Path) -> None:
    scratch = {
        "architecture": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "word_embed_proj_dim": 32,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"train\.packing=false"):
        train(build_config(tmp_path, model={"scratch": scratch}))
    states = [event["state"] for event in read_events(tmp_path / "runs" / "tiny")]
    assert states == ["starting", "failed"]


def test_more_workers_than_fit_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="9 workers of 1 CPU each need 9 CPU"):
        train(build_config(tmp_path, scaling={"num_workers": 9}))
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    config = build_config(tmp_path).model_copy(update={"name": "mine"})
    with pytest.raises(ConfigError, match="sftray resume"):
        train(config)


def test_the_cluster_prepares_the_same_tokens(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    loaded = load_tokenizer(config.model)
    here = prepare.prepare_tokens(config.model, config.data, tmp_path / "here", loaded)
    with connect_for(config.scaling):
        there = prepare.prepare_tokens(config.model, config.data, tmp_path / "there", loaded, spread_over_cluster)
    assert not there.reused
    assert {k: v for k, v in here.receipt.items() if k != "preparation"} == {
        k: v for k, v in there.receipt.items() if k != "preparation"
    }
    for path in here.folder.glob("*.arrow"):
        assert path.read_bytes() == (there.folder / path.name).read_bytes()
