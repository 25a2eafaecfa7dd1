"""Folders that are no MiniMind model's, or cannot become a file of its: each is refused with what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_files import refuse, save_small

from sftray.train_fn.errors import ConfigError
from sftray.train_fn.minimind_config import describe_config
from sftray.train_fn.minimind_folder import read_folder, read_minimind, write_folder
from sftray.train_fn.minimind_shape import Asked


def write_small(folder: Path, experts: int = 0, generation: Any = "original", **changes: Any) -> Path:
    """A converted folder, with changes in its config."""
    from transformers import AutoConfig

    write_folder(read_minimind(save_small(folder.with_suffix(".pth"), generation, experts), Asked()), folder)
    config = AutoConfig.from_pretrained(folder)
    config.update(changes)
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("experts", "generation", "changes", "said"),
    [
        (0, "original", {"hidden_act": "gelu"}, "its activation is gelu"),
        (
            0,
            "original",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
            "is scaled: linear",
        ),
        (0, "original", {"head_dim": 16}, "its heads are 16 wide"),
        (4, "original", {"moe_num_shared_experts": 2}, "2 shared experts"),
        (4, "original", {"moe_layer_start_index": 1}, "not all of its layers"),
        (4, "minimind-3", {"norm_topk_prob": False}, "not renormalised"),
        (4, "minimind-3", {"mlp_only_layers": [0]}, "not all of its layers"),
        (0, "minimind-3", {"use_sliding_window": True}, "sliding window"),
    ],
)
def test_a_folder_that_minimind_cannot_hold_is_refused(
    experts: int, generation: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = write_small(tmp_path / "in", experts, generation, **changes)
    problem = refuse(lambda: read_folder(folder, None))
    assert said in str(problem.why) and problem.where == str(folder)


def test_a_model_of_another_family_is_refused() -> None:
    from transformers import AutoConfig

    problem = refuse(lambda: describe_config(AutoConfig.for_model("gpt2"), None, "here"))
    assert "it is a gpt2, and MiniMind's are LlamaForCausalLM" in str(problem.why)


def test_a_folder_without_its_parts_is_refused(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "in")
    assert "is not there" in refuse(lambda: read_folder(tmp_path / "no", None), ConfigError).what
    assert "is a file" in refuse(lambda: read_folder(tmp_path / "in.pth", None), ConfigError).what
    (folder / "model.safetensors").write_bytes(b"12345678 nothing")
    assert "the weights cannot be read" in refuse(lambda: read_folder(folder, None)).what
    (folder / "model.safetensors").unlink()
    assert "the weights cannot be read" in refuse(lambda: read_folder(folder, None)).what
    (folder / "config.json").write_text("{")
    assert "the config cannot be read" in refuse(lambda: read_folder(folder, None)).what
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    folder.rename(run / "checkpoints" / "step-000004")
    problem = refuse(lambda: read_folder(run, None), ConfigError)
    assert str(problem.fix).endswith("run/checkpoints/step-000004")


def test_a_folder_whose_tensors_are_others_is_refused_with_a_table(tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_safetensors
    from safetensors.torch import save_file as save_safetensors

    folder = write_small(tmp_path / "in", 4)
    weights = load_safetensors(folder / "model.safetensors")
    bias = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    save_safetensors({**weights, bias: torch.ones(1, 4)}, folder / "model.safetensors")
    assert refuse(lambda: read_folder(folder, None)).what == f"{bias} is not 0"
    del weights["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_safetensors({**weights, "lm_head.weight": torch.ones(96, 64)}, folder / "model.safetensors")
    problem = refuse(lambda: read_folder(folder, None))
    assert "1 missing" in problem.what and "model.layers.1.mlp.experts.2.up_proj.weight" in str(problem.why)


def test_a_generation_that_it_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "in")
    problem = refuse(lambda: read_folder(folder, "minimind-3"), ConfigError)
    assert "--generation minimind-3, and llama is original or llama" in problem.what
