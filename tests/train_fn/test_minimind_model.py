"""`model.name: a.pth`: a run that starts from MiniMind's weights, goes on after a stop, and gives them back."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_runs import build_job, run_here
from minimind_files import save_small
from minimind_model import ReferenceModel, Shape
from rich.console import Console
from s3_server import make_place
from tiny_runs import build_config, read_metrics
from toy_data import save_byte_tokenizer

from sftray.cluster.processes import run_processes
from sftray.platform.driver import prepare_run
from sftray.train_fn.config import ModelConfig, RunConfig
from sftray.train_fn.errors import CheckpointError, ConfigError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.local_copies import CACHE
from sftray.train_fn.minimind_folder import read_folder
from sftray.train_fn.model import build_model, load_model_config
from sftray.train_fn.places import as_path
from sftray.train_fn.tokenizer import LoadedTokenizer, load_tokenizer

CPU = torch.device("cpu")
VOCABULARY = 300  # more than the tokenizer of a token a byte has
SHAPE = {"dim": 64, "n_layers": 2, "vocab_size": VOCABULARY}


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[str, LoadedTokenizer]:
    """The folder of a tokenizer of 260 tokens, and itself."""
    model = save_byte_tokenizer(tmp_path / "tokenizer")
    return str(model.tokenizer), load_tokenizer(model)


def save_reference(path: Path, experts: int) -> ReferenceModel:
    """In fp16, as MiniMind saves."""
    reference = ReferenceModel(Shape(**SHAPE, num_experts=experts))  # type: ignore[arg-type]  # all are int
    torch.save({key: tensor.half() for key, tensor in reference.state_dict().items()}, path)
    return reference


def configure(folder: Path, tokenizer: str, **train: Any) -> RunConfig:
    model = {"scratch": None, "name": str(folder / "in.pth"), "tokenizer": tokenizer}
    return build_config(folder, model=model, train={"max_steps": 4, "save_every": 2, "epochs": 2, **train})


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 4])
def test_a_run_starts_from_it_goes_on_and_gives_it_back(
    experts: int, tmp_path: Path, loaded: tuple[str, LoadedTokenizer]
) -> None:
    reference = save_reference(tmp_path / "in.pth", experts)
    job = build_job(configure(tmp_path, loaded[0], max_steps=2), tmp_path)
    run_here(job)
    longer = configure(tmp_path, loaded[0]).model_dump(mode="json")
    if experts:
        ended = run_processes({**job, "config": longer}, 2)  # two workers, from the checkpoint of one
        assert ended.finished, ended.why
    else:
        run_here({**job, "config": longer})
    losses = [row["train/loss"] for row in read_metrics(Path(job["run_dir"])) if "train/loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    newest = max(Path(job["run_dir"], CHECKPOINTS).glob("step-*"))
    weights = read_folder(newest, None).weights
    assert not any(torch.equal(weights[key], tensor) for key, tensor in reference.state_dict().items())
    reference.load_state_dict(weights, strict=True)


def test_it_is_in_fp32_with_the_gradients_that_its_code_says(
    tmp_path: Path, loaded: tuple[str, LoadedTokenizer]
) -> None:
    save_reference(tmp_path / "in.pth", 4)
    model = build_model(ModelConfig(name=str(tmp_path / "in.pth"), tokenizer=loaded[0]), loaded[1], CPU)
    frozen = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"e_score_correction_bias"} and model.dtype == torch.float32
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_it_is_converted_once_for_all_processes_and_again_when_it_changes(
    tmp_path: Path, loaded: tuple[str, LoadedTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    model = ModelConfig(name=str(tmp_path / "in.pth"), tokenizer=loaded[0])

    def list_copies() -> list[str]:
        load_model_config(model, loaded[1])
        return sorted(path.name for path in (tmp_path / "cache").glob("*/minimind-*") if path.is_dir())

    save_reference(tmp_path / "in.pth", 0)
    (first,) = list_copies()
    assert list_copies() == [first]
    save_reference(tmp_path / "in.pth", 4)
    assert len(list_copies()) == 2 and first in list_copies()
    assert load_model_config(model, loaded[1]).model_type == "ernie4_5_moe"


def test_what_the_file_does_not_say_is_in_its_config_and_told(
    tmp_path: Path, loaded: tuple[str, LoadedTokenizer]
) -> None:
    save_reference(tmp_path / "in.pth", 4)
    said = io.StringIO()
    prepare_run(configure(tmp_path, loaded[0]), tmp_path / "runs", Console(file=said, width=300))
    lines = [line for line in said.getvalue().splitlines() if line.startswith("model: ")]
    assert [line.partition(" (")[0] for line in lines] == [
        "model: assumed: 8 heads, as MiniMind has: the file does not say",
        "model: assumed: 2 of 4 experts per token",
    ]
    assert all("(sftray convert minimind --" in line for line in lines)


@pytest.mark.slow
def test_no_room_for_the_copy_is_the_store_s_error(tmp_path: Path, loaded: tuple[str, LoadedTokenizer]) -> None:
    """In a process of its own, which may write files of 20 kB."""
    save_reference(tmp_path / "in.pth", 0)
    code = (
        "import resource, sys\n"
        "from sftray.train_fn.config import ModelConfig\n"
        "from sftray.train_fn.model import load_model_config\n"
        "from sftray.train_fn.tokenizer import load_tokenizer\n"
        "model = ModelConfig(name=sys.argv[1], tokenizer=sys.argv[2])\n"
        "loaded = load_tokenizer(model)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    load_model_config(model, loaded)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, CACHE: str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path / "in.pth"), loaded[0]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("StoreError error") and "cannot be kept on this machine" in done.stdout, done


def test_it_may_stand_in_a_bucket(tmp_path: Path, loaded: tuple[str, LoadedTokenizer], s3_endpoint: str) -> None:
    save_reference(tmp_path / "in.pth", 0)
    url = make_place(s3_endpoint).replace("/alpha?", "/in.pth?")
    with pytest.raises(ConfigError, match=r"(?s)model\.name: no model .*No such object"):
        load_model_config(ModelConfig(name=url, tokenizer=loaded[0]), loaded[1])
    as_path(url).write_bytes((tmp_path / "in.pth").read_bytes())
    assert load_model_config(ModelConfig(name=url, tokenizer=loaded[0]), loaded[1]).vocab_size == VOCABULARY


def test_a_file_that_is_no_model_is_told_as_such(tmp_path: Path, loaded: tuple[str, LoadedTokenizer]) -> None:
    model = ModelConfig(name=str(tmp_path / "in.pth"), tokenizer=loaded[0])
    with pytest.raises(ConfigError, match=r"model\.name: .*in\.pth cannot be read: No such file"):
        load_model_config(model, loaded[1])
    save_small(tmp_path / "in.pth", layers__1__attention__wq__weight=None)
    with pytest.raises(CheckpointError, match="1 missing"):
        load_model_config(model, loaded[1])
    save_small(tmp_path / "in.pth")
    assert load_model_config(model, loaded[1]).hidden_size == 64, "what was refused leaves nothing behind"
