"""A plan says what a run would be: steps, rates, size, memory, and one example with its targets."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import build_config

from sftray.cluster.resources import Node, Placement
from sftray.platform.cli import main
from sftray.platform.plan_cluster import ClusterPlan, describe_cluster
from sftray.platform.planning import Plan, estimate_memory, plan_run, show_plan
from sftray.platform.run_directory import TOKENS
from sftray.platform.shipped import load_named_config
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.files import PRESET, find_files
from sftray.train_fn.model import build_model, count_parameters, load_model_config
from sftray.train_fn.order import order_step
from sftray.train_fn.tokenizer import load_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def plan(config: RunConfig, label: str = "tiny") -> Plan:
    return plan_run(Resolved(config, {}), label, Console(file=io.StringIO()))


def show(found: Plan, **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=200, **settings)
    show_plan(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_the_quickstart_is_planned_whole(tmp_path: Path) -> None:
    found = plan_run(*load_named_config("quickstart", [f"store.path={tmp_path}"]), Console(file=io.StringIO()))
    config = found.resolved.config
    (path,) = find_files(f"{PRESET}quickstart/train.jsonl", "data.train")
    rows = path.read_bytes().count(b"\n")
    assert found.run.total_steps == -(-rows // config.global_batch_size) * config.train.epochs
    assert config.name == "quickstart"
    built = build_model(config.model, load_tokenizer(config.model), torch.device("cpu"))
    assert found.num_parameters == count_parameters(built)
    text = show(found)
    assert f"{found.num_parameters / 1e6:,.2f}M parameters, fp32" in text
    epochs = config.train.epochs
    assert f"steps: {found.run.total_steps:,} of 64 examples, {epochs} epoch(s) of {rows:,} examples;" in text
    assert f"{rows * epochs:,} examples in all" in text
    assert [entry.name for entry in tmp_path.iterdir()] == [TOKENS]  # for the run to find


def test_the_learning_rates_and_steps_are_those_of_the_run(tmp_path: Path) -> None:
    optim = {"learning_rate": 0.012, "schedule": "linear", "warmup_ratio": 0.0, "min_lr_ratio": 0.0}
    found = plan(build_config(tmp_path, optim=optim))
    text = show(found)
    assert "learning rate: 0.012 at the first step, 0.006 in the middle, 0.001 at the last" in text
    assert "steps: 12 of 8 examples, 2 epoch(s) of 48 examples; 96 examples in all" in text
    first = found.run.plan(0)
    assert f"{first.num_tokens:,} tokens, {first.num_target_tokens:,} targets" in text
    assert "steps: 5 of 8 examples" in show(plan(build_config(tmp_path, train={"max_steps": 5})))
    cut = show(plan(build_config(tmp_path, train={"max_examples": 33})))
    assert "steps: 5 of 8 examples" in cut and "; 33 examples in all" in cut


def read_row(path: Path, number: int) -> list[str]:
    messages = json.loads(path.read_text().splitlines()[number])["messages"]
    return [message["content"] for message in messages]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_example_is_the_first_one_and_its_targets_stand_in_brackets(tmp_path: Path, seed: int) -> None:
    found = plan(build_config(tmp_path, train={"seed": seed}))
    first = int(order_step(seed, 0, 8, 48)[1][0])
    question, answer = read_row(tmp_path / "train.jsonl", first)
    expected = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧\n"
    assert f"what is learned is in ⟦ ⟧:\n  {expected}" in show(found)
    painted = show(found, force_terminal=True)
    assert "⟦" not in painted and "what is learned is in green" in painted


def test_what_the_data_holds_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    rows = [{"prompt": "a\x1b]0;title\x07b", "completion": f"{'long ' * 60}\x1b[31m[bold]red"}]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    text = show(plan(build_config(tmp_path, data={"max_seq_len": 1024})))
    assert "\x1b" not in text and "\x07" not in text
    assert f"⟦{'long ' * 60}\\x1b[31m[bold]red<|im_end|>⟧" in text  # in one piece, however long


def test_a_plan_takes_no_name_but_refuses_a_taken_one(tmp_path: Path) -> None:
    config = build_config(tmp_path).model_copy(update={"name": "mine"})
    assert plan(config).resolved.config.name == "mine"
    assert not (tmp_path / "runs" / "mine").exists()
    assert plan(config).prepared.reused
    (tmp_path / "runs" / "mine").mkdir()
    with pytest.raises(ConfigError, match="the name mine is taken"):
        plan(config)


def write_config(folder: Path, workers: int) -> str:
    config = build_config(folder, scaling={"num_workers": workers, "use_gpu": "auto"})
    path = folder / "run.yaml"
    path.write_text(config.model_dump_json(exclude_none=True), encoding="utf-8")  # JSON is YAML
    return str(path)


def test_the_plan_for_a_program(tmp_path: Path, capsys: Capture) -> None:
    assert main(["plan", write_config(tmp_path, 1), "--json"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["fits"] and answer["shortage"] == []
    cluster = answer["cluster"]
    (node,) = cluster.pop("nodes")
    assert node["workers"] == 1 and node["cpus"] == len(os.sched_getaffinity(0))
    assert cluster["per_worker"] == {"CPU": 1.0, **({"GPU": 1.0} if cluster.pop("use_gpu") else {})}
    assert (cluster["placement"], cluster["missing_workers"], cluster["wait_minutes"]) == ("pack", 0, 0.0)
    assert (answer["total_steps"], answer["global_batch_size"]) == (12, 8)
    assert answer["num_parameters"] > 10_000 and answer["memory_bytes_per_worker"] > answer["num_parameters"] * 16
    assert answer["config"]["name"] == "run" and answer["data"]["splits"]["train"]["kept"] == 48
    assert answer["origin"]["train.global_batch_size"].endswith("run.yaml:1")
    taught = "".join(token["text"] for token in answer["example"] if token["target"])
    assert taught.startswith("so") and taught.endswith("<|im_end|>")
    assert said.err.startswith("tokens: prepared")  # the words are for a person


def test_a_shortage_is_said_after_the_plan(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, 100_000)
    assert main(["plan", config]) == 5
    said = capsys.readouterr()
    assert "steps: 12 of 8 examples" in said.out and "cluster: the workers do not fit" in said.out
    assert said.err.startswith("error  100000 workers of 1 CPU each need 100000 CPU;")
    assert main(["plan", config, "--json"]) == 5
    said = capsys.readouterr()
    answer = json.loads(said.out)  # one document
    assert not answer["fits"] and answer["shortage"][0]["what"].startswith("100000 workers")
    assert "error  100000 workers" in said.err


def test_where_workers_would_be_is_told() -> None:
    nodes = [Node(2, 0, name="left"), Node(4, 0, name="right"), Node(2, 0, name="left")]
    placement = Placement(8, False, 1, strategy="spread", wait_s=0.0)
    found = ClusterPlan(nodes, False, placement, (2, 4, 2))
    assert describe_cluster(found) == [
        "cluster: 8 worker(s) on CPU fit",
        "  where (spread, if nothing else runs there): 2 on each of 2 nodes named left, 4 on right",
        "  trials of a sweep: 1 side by side",
    ]
    waiting = ClusterPlan(nodes, True, replace(placement, num_workers=9), (2, 4, 2), 15.0)
    assert describe_cluster(waiting) == [
        "cluster: 8 of 9 worker(s) on CPU fit (1 CPU each); nodes for 1 would be waited for, up to 15 min",
        "  where (spread, if nothing else runs there): 2 on each of 2 nodes named left, 4 on right",
        "  an autoscaler adds nodes; how many there may be, Ray does not say",
    ]
    assert not waiting.fits and waiting.to_json()["missing_workers"] == 1


def test_nothing_is_waited_for_on_one_machine(tmp_path: Path) -> None:
    found = plan(build_config(tmp_path, scaling={"num_workers": 100_000, "wait_minutes": 5}))
    assert found.shortage is not None and not found.cluster.fits and found.cluster.wait_minutes == 0


def estimate(counts: dict[str, int] | None = None, **changes: dict[str, Any]) -> int:
    scratch = {
        **{"architecture": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        **{"intermediate_size": 512, "vocab_size": 4000},
    }
    sections: dict[str, dict[str, Any]] = {
        "model": {"scratch": scratch, "tokenizer": "quickstart"},
        "data": {"train": "a"},
        "train": {"micro_batch_size": 4},
    }
    for name, section in changes.items():
        sections[name] = {**sections[name], **section}
    sections["model"]["scratch"] = {**scratch, **sections["model"]["scratch"]}
    config = RunConfig.model_validate(sections)
    model_config = load_model_config(config.model, load_tokenizer(config.model))
    receipt = {"splits": {"train": counts or {"tokens": 1000, "target_tokens": 500}}}
    return estimate_memory(config, model_config, 10_000_000, receipt)


def test_the_estimate_of_memory_grows_with_what_needs_it() -> None:
    usual = estimate()
    assert usual > 600 * 2**20
    more: list[dict[str, Any]] = [
        {"data": {"max_seq_len": 2048}},
        {"train": {"micro_batch_size": 8}},
        {"train": {"precision": "fp32"}},
        {"model": {"scratch": {"vocab_size": 8000}}},
        {"model": {"scratch": {"hidden_size": 512}}},
        {"model": {"scratch": {"num_hidden_layers": 8}}},
        {"counts": {"tokens": 1000, "target_tokens": 900}},
    ]
    assert all(estimate(**changes) > usual for changes in more)
    assert estimate(model={"gradient_checkpointing": True}) < usual


def test_a_parameter_takes_sixteen_bytes_and_two_more_at_half_precision() -> None:
    model = {"scratch": {"architecture": "llama"}, "tokenizer": "quickstart"}
    config = RunConfig.model_validate({"model": model, "data": {"train": "a"}})
    full = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    receipt = {"splits": {"train": {"tokens": 1, "target_tokens": 1}}}
    model_config = load_model_config(config.model, load_tokenizer(config.model))
    for each, size in ((config, 18), (full, 16)):
        sizes = [estimate_memory(each, model_config, count, receipt) for count in (10**6, 10**9)]
        assert sizes[1] - sizes[0] == (10**9 - 10**6) * size
