"""Loading a tokenizer: its template settled, tokens added where a shipped one needs them, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_checkpoint
from toy_chat import SIMPLE, build_byte_tokenizer
from toy_data import save_byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftray.train_fn.chat_template import ensure_template
from sftray.train_fn.config import DataConfig, ModelConfig, RunConfig
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.model import build_model
from sftray.train_fn.tokenizer import SHIPPED, LoadedTokenizer, hash_tokenizer, load_tokenizer
from sftray.train_fn.trainer import Place, build_trainer

MARKERS = ("<|im_start|>", "<|im_end|>")
SIZES = {
    **{"architecture": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}
CPU = torch.device("cpu")


@pytest.fixture
def bare(tmp_path: Path) -> ModelConfig:
    """An untrained model whose tokenizer has no template and no markers: as a base model's."""
    model = save_byte_tokenizer(tmp_path / "bare", template=None, special=())
    return model.model_copy(update={"scratch": SIZES, "chat_template": "chatml"})


def save_pretrained(folder: Path, model: ModelConfig, vocab_size: int, tie: bool) -> ModelConfig:
    """A pretrained folder of that tokenizer, with so many rows in its embedding."""
    scratch = {**SIZES, "vocab_size": vocab_size, "tie_word_embeddings": tie}
    plain = LoadedTokenizer(AutoTokenizer.from_pretrained(model.tokenizer), ())
    build_model(ModelConfig(scratch=scratch, tokenizer="x"), plain, CPU).save_pretrained(folder)
    shutil.copytree(str(model.tokenizer), folder, dirs_exist_ok=True)
    return ModelConfig(name=str(folder), chat_template="chatml")


def test_the_template_that_ships_brings_its_tokens(bare: ModelConfig) -> None:
    loaded = load_tokenizer(bare)
    before = len(AutoTokenizer.from_pretrained(bare.tokenizer))
    assert loaded.added_tokens == MARKERS
    assert loaded.tokenizer.convert_tokens_to_ids(list(MARKERS)) == [before, before + 1]
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == "<|im_start|>user\na<|im_end|>\n"
    assert len(loaded.tokenizer(text)["input_ids"]) == 9


def test_tokens_that_are_there_are_not_added(tmp_path: Path) -> None:
    model = save_byte_tokenizer(tmp_path / "toy").model_copy(update={"chat_template": "chatml"})
    assert load_tokenizer(model).added_tokens == ()


def test_an_untrained_model_has_a_row_for_every_token(bare: ModelConfig) -> None:
    loaded = load_tokenizer(bare)
    model = build_model(bare, loaded, CPU)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(loaded.tokenizer)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 2, 64])
def test_a_pretrained_model_grows_where_its_rows_are_too_few(
    bare: ModelConfig, tmp_path: Path, spare: int, tie: bool
) -> None:
    before = len(AutoTokenizer.from_pretrained(bare.tokenizer))
    pretrained = save_pretrained(tmp_path / "model", bare, before + spare, tie)
    loaded = load_tokenizer(pretrained)
    torch.manual_seed(1)
    model = build_model(pretrained, loaded, CPU)
    rows = max(before + spare, before + 2)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape[0] == rows == model.config.vocab_size
        assert layer.weight.isfinite().all()
    old = AutoModelForCausalLM.from_pretrained(pretrained.name)
    kept = model.get_input_embeddings().weight[: before + spare]
    assert torch.equal(kept, old.get_input_embeddings().weight)


def test_a_checkpoint_carries_the_template_and_the_tokens(bare: ModelConfig, tmp_path: Path) -> None:
    before = len(AutoTokenizer.from_pretrained(bare.tokenizer))
    pretrained = save_pretrained(tmp_path / "model", bare, before, tie=True)
    loaded = load_tokenizer(pretrained)
    config = RunConfig(model=pretrained, data=DataConfig(train="a.jsonl"))
    trainer, _ = build_trainer(config, loaded, Place(0, 1, CPU), None)
    write_checkpoint(tmp_path / "checkpoint", trainer, loaded.tokenizer, {"step": 1})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert hash_tokenizer(tokenizer) == hash_tokenizer(loaded.tokenizer)
    assert tokenizer.convert_tokens_to_ids(list(MARKERS)) == [before, before + 1]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_tensors="pt", return_dict=True)
    assert model(**ids).logits.shape[-1] == before + 2
    assert model.generation_config.eos_token_id == [before + 1]
    again = load_tokenizer(ModelConfig(name=str(tmp_path / "checkpoint")))  # no template asked for: it has one
    assert again.added_tokens == () and again.tokenizer.chat_template == loaded.tokenizer.chat_template


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "chat_template", SIMPLE + " "),
        lambda tokenizer: tokenizer.add_tokens(["hello"]),
        lambda tokenizer: setattr(tokenizer, "bos_token", "<|im_start|>"),
        lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", None),
    ],
)
def test_the_digest_of_a_tokenizer_is_of_all_that_decides_tokens(change: Any) -> None:
    from tokenizers import normalizers

    def build() -> Any:
        tokenizer = build_byte_tokenizer(SIMPLE)
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        return tokenizer

    changed = build()
    change(changed)
    assert hash_tokenizer(build()) == hash_tokenizer(build())
    assert hash_tokenizer(changed) != hash_tokenizer(build())


def break_file(name: str, text: str, folder: Path) -> None:
    shutil.copytree(SHIPPED["quickstart"], folder)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("tokenizer.json", "garbage", "Expecting value"),
        ("tokenizer.json", "{}", "KeyError: 'added_tokens'"),
        ("tokenizer.json", '{"added_tokens": [], "model": {}}', "did not match any variant"),  # Rust's own
        ("tokenizer_config.json", "[]", "AttributeError: 'list'"),
        ("tokenizer_config.json", '{"bos_token": 5}', "TypeError: Special token bos_token"),
        ("config.json", "[]", "TypeError"),
    ],
)
def test_a_broken_tokenizer_is_refused_in_words(tmp_path: Path, name: str, text: str, why: str) -> None:
    break_file(name, text, tmp_path / "broken")
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(ModelConfig(scratch={"architecture": "llama"}, tokenizer=str(tmp_path / "broken")))
    (problem,) = caught.value.problems
    assert problem.what.startswith("model.tokenizer: no tokenizer can be loaded from")
    assert why in str(problem.why) and problem.fix


def test_a_tokenizer_without_a_template_names_the_one_that_ships(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template=chatml"):
        ensure_template(build_byte_tokenizer(None), None)


def test_padding_needs_no_token_of_its_own() -> None:
    tokenizer = build_byte_tokenizer(SIMPLE)
    assert LoadedTokenizer(tokenizer, ()).pad_id == 0
    tokenizer.pad_token = "<|im_end|>"
    assert LoadedTokenizer(tokenizer, ()).pad_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
