"""MiniMind's weights in transformers: the same logits, and the same bits on the way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_files import build_small, no_grad, save_small
from minimind_model import ReferenceModel, Shape
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sftray.train_fn.errors import CheckpointError, ConfigError
from sftray.train_fn.minimind_file import load_file, save_file
from sftray.train_fn.minimind_folder import read_folder, read_minimind, write_folder
from sftray.train_fn.minimind_layout import GENERATIONS, Generation, count_parameters
from sftray.train_fn.minimind_shape import Asked

ARCHITECTURES = {
    ("original", 0): "LlamaForCausalLM",
    ("original", 4): "Ernie4_5_MoeForCausalLM",
    ("llama", 0): "LlamaForCausalLM",
    ("llama", 4): "Ernie4_5_MoeForCausalLM",
    ("minimind-3", 0): "Qwen3ForCausalLM",
    ("minimind-3", 4): "Qwen3MoeForCausalLM",
}


def draw_ids(vocab: int, length: int = 33) -> Tensor:
    return torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(1))


def convert(path: Path, folder: Path, asked: Asked | None = None) -> Any:
    """The folder's model as plain transformers loads it."""
    write_folder(read_minimind(path, asked or Asked()), folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def export(folder: Path, path: Path, generation: Generation | None = None) -> dict[str, Tensor]:
    save_file(read_folder(folder, generation).weights, path)
    return load_file(path)


def assert_same_bits(back: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert set(back) == set(state)
    assert all(back[key].dtype == tensor.dtype and torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "millions"),
    [(Shape(512, 8), 25.83), (Shape(768, 16), 104.03), (Shape(640, 8, num_experts=4), 145.03)],
    ids=["512x8", "768x16", "640x8-experts"],
)
def test_models_of_minimind_s_own_sizes(shape: Shape, millions: float, tmp_path: Path) -> None:
    reference = ReferenceModel(shape).eval()
    torch.save(reference.state_dict(), tmp_path / "in.pth")
    converted = read_minimind(tmp_path / "in.pth", Asked())
    write_folder(converted, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    parameters = count_parameters(converted.layout)
    assert round(parameters / 1e6, 2) == millions and parameters == sum(p.numel() for p in reference.parameters())
    assert parameters == sum(p.numel() for name, p in model.named_parameters() if "moe_statics" not in name)
    ids = draw_ids(shape.vocab_size)
    expected, found = no_grad(lambda ids: reference(ids)[0])(ids), no_grad(lambda ids: model(ids).logits)(ids)
    assert (found - expected).abs().max() < 1e-5 < 0.1 < expected.std()
    assert_same_bits(read_folder(tmp_path / "out", None).weights, reference.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_generation_keeps_its_logits_and_its_bits(generation: Generation, experts: int, tmp_path: Path) -> None:
    state, logits = build_small(generation, experts)
    torch.save(state, tmp_path / "in.pth")
    model = convert(tmp_path / "in.pth", tmp_path / "out")
    assert type(model).__name__ == ARCHITECTURES[generation, experts] == model.config.architectures[0]
    ids = draw_ids(96)
    with torch.no_grad():
        found = model(ids).logits
    assert (found - logits(ids)).abs().max() < 1e-5 < 0.1 < found.std()
    assert_same_bits(export(tmp_path / "out", tmp_path / "back.pth"), state)


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_transformers_saved_itself_comes_back(generation: Generation, experts: int, tmp_path: Path) -> None:
    state, _ = build_small(generation, experts)
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out").save_pretrained(tmp_path / "again", max_shard_size="40KB")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    assert_same_bits(export(tmp_path / "again", tmp_path / "back.pth"), state)


@pytest.mark.parametrize("generation", ["original", "minimind-3"])
def test_experts_in_one_tensor_are_understood_too(generation: Generation, tmp_path: Path) -> None:
    state, _ = build_small(generation, 4)
    torch.save(state, tmp_path / "in.pth")
    model = convert(tmp_path / "in.pth", tmp_path / "out")
    stacked = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    assert "model.layers.1.mlp.experts.gate_up_proj" in stacked
    save_safetensors(stacked, tmp_path / "out" / "model.safetensors")
    assert_same_bits(export(tmp_path / "out", tmp_path / "back.pth"), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in build_small("original", 4)[0].items()}
    torch.save(state, tmp_path / "in.pth")
    model = convert(tmp_path / "in.pth", tmp_path / "out")
    assert model.config.dtype == model.dtype == dtype
    assert_same_bits(export(tmp_path / "out", tmp_path / "back.pth"), state)


def test_the_generation_can_be_changed_on_the_way(tmp_path: Path) -> None:
    """The weights of an original one under Llama's names give the same logits with halves that are turned."""
    state, logits = build_small("original", 0)
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out")
    newer = export(tmp_path / "out", tmp_path / "new.pth", "llama")
    assert set(newer) == set(build_small("llama", 0)[0])
    again = convert(tmp_path / "new.pth", tmp_path / "again")
    with torch.no_grad():
        assert (again(draw_ids(96)).logits - logits(draw_ids(96))).abs().max() < 1e-5
    first, second = (load_safetensors(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_model_that_never_was_minimind_s_gets_the_oldest_names(tmp_path: Path) -> None:
    torch.save(build_small("original", 0)[0], tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    del config.minimind_generation
    config.rms_norm_eps = 1e-6
    config.save_pretrained(tmp_path / "out")
    converted = read_folder(tmp_path / "out", None)
    assert converted.layout.generation == "original" and "output.weight" in converted.weights
    assert [note.partition(":")[0] for note in converted.notes] == ["assumed", "to be set in MiniMind's config"]
    assert "epsilon of norms 1e-06, not its default 1e-05" in converted.notes[1]


def test_other_heads_and_experts_per_token_are_asked_for(tmp_path: Path) -> None:
    """16 heads of 4 give other logits than 8 of 8, over the same tensors."""
    wide = {"dim": 64, "n_layers": 1, "vocab_size": 96, "num_experts": 4}
    reference = ReferenceModel(Shape(**wide, n_heads=16, n_kv_heads=4, experts_per_token=1)).eval()
    torch.save(reference.state_dict(), tmp_path / "in.pth")
    model = convert(tmp_path / "in.pth", tmp_path / "out", Asked(heads=16, experts_per_token=1))
    assumed = convert(tmp_path / "in.pth", tmp_path / "assumed")
    expected = no_grad(lambda ids: reference(ids)[0])(draw_ids(96))
    found, wrong = (no_grad(lambda ids, m=m: m(ids).logits)(draw_ids(96)) for m in (model, assumed))  # type: ignore[misc]  # a default in a lambda
    assert (found - expected).abs().max() < 1e-5 < 1e-2 < (wrong - expected).abs().max()
    assert_same_bits(export(tmp_path / "out", tmp_path / "back.pth"), dict(reference.state_dict()))
    assert len(read_minimind(tmp_path / "in.pth", Asked()).notes) == 2
    assert read_minimind(tmp_path / "in.pth", Asked(16, 1)).notes == []


@pytest.mark.parametrize(("heads", "said"), [(7, "one of 2, 4, 8, 16, 32"), (64, "7 heads do not fit")])
def test_heads_that_do_not_fit_are_refused(heads: int, said: str, tmp_path: Path) -> None:
    path = save_small(tmp_path / "in.pth")
    with pytest.raises(ConfigError) as caught:
        read_minimind(path, Asked(heads=heads))
    assert f"{heads} heads do not fit" in str(caught.value)
    assert "sftray convert minimind IN OUT --heads N, one of 4, 8, 16" in str(caught.value)


def test_one_tensor_under_two_names_is_written_as_two(tmp_path: Path) -> None:
    state, _ = build_small("original", 0)
    state["layers.1.feed_forward.w1.weight"] = state["layers.0.feed_forward.w1.weight"]
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out")
    assert_same_bits(export(tmp_path / "out", tmp_path / "back.pth"), state)


@pytest.mark.parametrize("generation", ["original", "minimind-3"])
def test_the_balance_loss_is_minimind_s(generation: Generation, tmp_path: Path) -> None:
    model = convert(save_small(tmp_path / "in.pth", generation, 4), tmp_path / "out")
    own = {"original": ("seq_aux_alpha", 0.1), "minimind-3": ("router_aux_loss_coef", 5e-4)}[generation]
    assert getattr(model.config, own[0]) == own[1]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    converted = read_minimind(save_small(tmp_path / "in.pth"), Asked())
    converted.weights.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"missing_keys.*model\.norm\.weight"):
        write_folder(converted, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    write_folder(read_minimind(tmp_path / "in.pth", Asked()), tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in.pth"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["config.json", "model.safetensors"]
