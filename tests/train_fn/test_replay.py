"""MiniMind's loop, replayed: micro-batch by micro-batch it is the loop that its formulas give."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from local_runs import build_job, run_here
from minimind_model import ReferenceModel, Shape
from tiny_runs import build_config, read_metrics, write_sums
from torch import Tensor, nn

from sftray.train_fn import replay, trainer
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import load_config
from sftray.train_fn.errors import ConfigError, DivergedError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.minimind_folder import read_folder
from sftray.train_fn.model import build_model
from sftray.train_fn.replay import refuse_half
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer
from sftray.train_fn.trainer import build_run_plan

# 62 rows in threes are 21 micro-batches an epoch, the last of two rows: 63 in all. In fours, one leaks.
NUM_ROWS, BATCH, EPOCHS, MAX_LEN, PER_EPOCH = 62, 3, 3, 40, 21
RATE = 5e-5  # the seed's; of larger ones AdamW makes much of how a sum is rounded
OPTIM = {"schedule": "minimind", "betas": (0.9, 0.999), "weight_decay": 0.01}


def build_reference(experts: int) -> ReferenceModel:
    return ReferenceModel(Shape(dim=64, n_layers=2, vocab_size=768, num_experts=experts))


def configure(
    folder: Path, accumulation: int = 1, experts: int = 0, rate: float = RATE, replayed: bool = True
) -> RunConfig:
    weights = folder / "pretrain.pth"
    torch.save(build_reference(experts).state_dict(), weights)
    if not (folder / "train.jsonl").exists():
        write_sums(folder / "train.jsonl", NUM_ROWS)
        write_sums(folder / "validation.jsonl", 8, seed=1)
    train = {
        "epochs": EPOCHS,
        "micro_batch_size": BATCH,
        "global_batch_size": BATCH * accumulation,
        "replay_seed": replayed,
        "eval_every": 0,
        "save_every": 0,
    }
    return build_config(
        folder,
        model={"name": str(weights), "scratch": None, "tokenizer": "quickstart"},
        data={"max_seq_len": MAX_LEN, "overlong": "truncate"},
        optim={"learning_rate": rate, **OPTIM},
        train=train,
        scaling={"num_workers": 1},
    )


def load_rows(job: dict[str, Any], width: int) -> tuple[Tensor, Tensor]:
    """All rows in the order of the file, padded with 0: ids and whether the seed learns a token, [rows, width]."""
    store = TokenStore(Path(job["tokens"]), "train")
    tokenizer = load_tokenizer(RunConfig.model_validate(job["config"]).model).tokenizer
    begin, end = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("<|im_start|>assistant", "<|im_end|>")
    )
    ids, mask = torch.zeros(2, len(store), width, dtype=torch.long)
    for row in range(len(store)):
        one = store[row].input_ids.tolist()
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, mark_as_seed(one, begin, end)] = 1
    return ids, mask


def mark_as_seed(ids: list[int], begin: list[int], end: list[int]) -> list[int]:
    """The tokens that it learns: behind each header and its newline, up to one beyond the end of the turn."""
    marked, place = [], 0
    while place < len(ids):
        if ids[place : place + len(begin)] != begin:
            place += 1
            continue
        start = place + len(begin)
        stop = next((i for i in range(start, len(ids)) if ids[i : i + len(end)] == end), len(ids))
        marked += range(start + 1, min(stop + len(end) + 1, len(ids)))
        place = stop + len(end)
    return marked


def follow_seed(model: ReferenceModel, ids: Tensor, mask: Tensor, accumulation: int, rate: float) -> list[float]:
    """The seed's loop from its description; the masked mean of every micro-batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    trace, total = [], EPOCHS * PER_EPOCH
    for number in range(total):
        step = number % PER_EPOCH
        for group in optimizer.param_groups:
            group["lr"] = rate / 10 + 0.5 * rate * (1 + math.cos(math.pi * number / total))
        rows = slice(step * BATCH, (step + 1) * BATCH)
        X, Y, targets = ids[rows, :-1], ids[rows, 1:], mask[rows, 1:]
        logits, balance = model(X)
        losses = F.cross_entropy(logits.flatten(0, 1), Y.flatten(), reduction="none")
        loss = (losses * targets.flatten()).sum() / targets.sum()
        trace.append(loss.item())
        torch.autograd.backward((loss + balance) / accumulation)
        if (step + 1) % accumulation == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return trace


def spy_on_micro_batches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of all micro-batches that are run from now on."""
    seen: list[float] = []
    run_micro_batch = replay.run_micro_batch

    def run(*args: Any) -> Any:
        found = run_micro_batch(*args)
        seen.append(float(found[0]))
        return found

    monkeypatch.setattr(replay, "run_micro_batch", run)
    return seen


def compute_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: Any) -> Any:
        model = build_model(*args).double()
        if model.config.model_type == "ernie4_5_moe":
            model.set_experts_implementation("eager")  # the fused kernel knows no fp64
        return model

    monkeypatch.setattr(trainer, "build_model", build)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
@pytest.mark.parametrize(("accumulation", "lost"), [(1, 0), (4, 1)])
@pytest.mark.parametrize(("dtype", "rate"), [(torch.float32, RATE), (torch.float64, 2e-3)], ids=["fp32", "fp64"])
def test_the_trace_of_losses_is_that_of_the_seeds_loop(
    dtype: torch.dtype,
    rate: float,
    accumulation: int,
    lost: int,
    experts: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure(tmp_path, accumulation, experts, rate)
    if dtype == torch.float64:
        compute_in_fp64(monkeypatch)
    job = build_job(config, tmp_path)
    seen = spy_on_micro_batches(monkeypatch)
    run_here(job)

    model = build_reference(experts).to(dtype)
    expected = follow_seed(model, *load_rows(job, MAX_LEN), accumulation, rate)
    assert len(seen) == len(expected) - lost > 50
    assert seen == pytest.approx(expected[: len(seen)], rel=1e-6)
    assert expected[-1] < expected[0] - 0.3

    rows = [row for row in read_metrics(Path(job["run_dir"])) if "train/loss" in row]
    last_ones = [epoch * PER_EPOCH + end for epoch in range(EPOCHS) for end in range(accumulation, 22, accumulation)]
    assert [row["train/loss"] for row in rows] == [seen[number - 1] for number in last_ones]
    newest = max(Path(job["run_dir"], CHECKPOINTS).glob("step-*"))
    if dtype == torch.float32:  # in fp64 no weights of MiniMind's are saved
        weights = read_folder(newest, "original").weights
        assert weights.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.allclose(weights[name], tensor, atol=2e-6), name


@pytest.mark.slow
def test_what_is_stopped_goes_on_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every one of the steps of an epoch and the first of the next, into which a micro-batch leaks."""
    whole, torn = (build_job(configure(tmp_path, 4), tmp_path, name) for name in ("whole", "torn"))
    run_here(whole)
    stop = tmp_path / "stop"
    for _ in range(6):
        stop.touch()
        run_here({**torn, "stop_files": [str(stop)]})
        stop.unlink()
    run_here(torn)
    one, other = (
        [(r["step"], r["train/loss"], r["ledger"]) for r in read_metrics(Path(job["run_dir"])) if "train/loss" in r]
        for job in (whole, torn)
    )
    assert one == other and len(one) == 15


@pytest.mark.slow
def test_the_same_config_without_it_learns_otherwise_and_validates_alike(tmp_path: Path) -> None:
    rows = []
    for name, replayed in (("seed", True), ("ours", False)):
        job = build_job(configure(tmp_path, 4, replayed=replayed), tmp_path, name)
        run_here(job)
        rows.append(read_metrics(Path(job["run_dir"])))
    assert rows[0][0]["val/loss"] == pytest.approx(rows[1][0]["val/loss"], rel=1e-6)
    assert rows[0][-1]["val/loss"] != pytest.approx(rows[1][-1]["val/loss"], rel=1e-4)


def test_the_plan_of_the_steps(tmp_path: Path) -> None:
    config = configure(tmp_path, 4)
    job = build_job(config, tmp_path)
    run = build_run_plan(config, TokenStore(Path(job["tokens"]), "train"), 1)
    assert isinstance(run, replay.ReplayPlan) and run.total_steps == 15
    assert [run.find_micro_batches(step) for step in (0, 4, 5, 14)] == [
        range(4), range(16, 20), range(20, 25), range(58, 62),
    ]  # fmt: skip
    assert run.plan(5).examples.tolist() == [60, 61, *range(12)] and run.plan(5).epoch == 1
    assert [run.count_examples(steps) for steps in (0, 1, 5, 6, 15)] == [0, 12, 60, 74, 184]
    planned = [run.plan(step) for step in range(15)]
    assert sum(len(plan.examples) for plan in planned) == 184
    assert [len(plan.micro_batches[0]) for plan in planned] == [4] * 5 + ([5] + [4] * 4) * 2


@pytest.mark.slow
def test_rates_are_those_of_the_last_micro_batches(tmp_path: Path) -> None:
    config = configure(tmp_path, 4)
    job = build_job(config, tmp_path)
    run_here(job)
    run = build_run_plan(config, TokenStore(Path(job["tokens"]), "train"), 1)
    rows = [row for row in read_metrics(Path(job["run_dir"])) if "train/loss" in row]
    told = [run.compute_rate(step, config.optim) for step in range(15)]
    assert told == [row["optim/learning_rate"] for row in rows]
    expected = [RATE * (0.1 + 0.5 * (1 + math.cos(math.pi * number / 63))) for number in (3, 61)]
    assert [told[0], told[-1]] == pytest.approx(expected) and run.find_first() == 0


@pytest.mark.slow
def test_a_step_that_is_no_number_ends_the_run_and_leaves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, rate=1e30)
    job = build_job(config, tmp_path)
    with pytest.raises(DivergedError, match=r"diverged: step \d+ had no finite loss and gradient"):
        run_here(job)
    losses = [row["train/loss"] for row in read_metrics(Path(job["run_dir"])) if "train/loss" in row]
    assert all(math.isfinite(loss) for loss in losses)


def test_fewer_micro_batches_than_a_step_needs_are_refused(tmp_path: Path) -> None:
    config = configure(tmp_path, 22)
    job = build_job(config, tmp_path)
    with pytest.raises(ConfigError, match="an epoch is 21 micro-batches, and a step 22"):
        build_run_plan(config, TokenStore(Path(job["tokens"]), "train"), 1)


WORDS = ["train.replay_seed=true", "train.precision=fp32", "optim.schedule=minimind"]  # what the preset needs
CONFLICTS = {
    "data.overlong": "turns",
    "data.train_on": "last",
    "optim.schedule": "cosine",
    "optim.weight_decay": "0.0",
    "optim.betas": "[0.9, 0.95]",
    "train.max_steps": "10",
    "train.max_examples": "10",
    "train.global_batch_size": "30",
    "train.packing": "true",
    "train.precision": "bf16",
    "scaling.num_workers": "2",
}


@pytest.mark.parametrize(("key", "value"), CONFLICTS.items())
def test_what_the_seed_does_otherwise_is_refused_with_its_value(key: str, value: str) -> None:
    good = [word for word in WORDS if not word.startswith(f"{key}=")]
    with pytest.raises(ConfigError) as caught:
        load_preset([*good, f"{key}={value}"])
    (problem,) = caught.value.problems
    assert key in problem.what and problem.where is not None and problem.fix is not None
    load_preset([*good, *shlex.split(problem.fix)])


def load_preset(overrides: list[str]) -> RunConfig:
    path = Path(__file__).parents[2] / "platform" / "presets" / "minimind.yaml"
    return load_config(path, overrides).config


def test_the_preset_is_replayed_with_three_words() -> None:
    config = load_preset(WORDS)
    assert not config.train.packing and config.train.micro_batch_size == 8 and config.global_batch_size == 32


def test_half_precision_without_a_gpu_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = configure(tmp_path)
    half = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp16"})})
    job = build_job(half, tmp_path)
    with pytest.raises(ConfigError, match="on a CPU goes with fp32, not fp16"):
        run_here(job)
    assert not (Path(job["run_dir"]) / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="on a CPU goes with fp32, not fp16"):
        refuse_half(False, "fp16")
    refuse_half(True, "fp16")


@pytest.mark.parametrize(("module", "users"), [("replay", ["trainer.py"]), ("config_replay", ["config.py"])])
def test_one_file_alone_knows_each_of_its_modules(module: str, users: list[str]) -> None:
    root = Path(__file__).parents[2]
    named = [
        path.name
        for folder in ("platform", "train_fn", "tune_spaces", "cluster")
        for path in (root / folder).glob("*.py")
        if re.search(rf"from sftray\.train_fn\.{module} import", path.read_text(encoding="utf-8"))
    ]
    assert named == users
