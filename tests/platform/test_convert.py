"""`sftray convert minimind`: what it says, what it writes, and how it ends."""

import json
from pathlib import Path

import pytest
import torch
from minimind_files import build_small, save_small
from toy_chat import SIMPLE, build_byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftray.platform.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small file of the first generation, whose vocabulary holds the tokenizer beside it."""
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    save_small(tmp_path / "in.pth", tok_embeddings__weight=rows, output__weight=rows)
    tokenizer = build_byte_tokenizer(SIMPLE, ("<|im_start|>", "<|im_end|>"), merges=())
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "model_minimind.py").write_text("raise SystemExit\n")
    return tmp_path


def convert(*arguments: str) -> int:
    return main(["convert", "minimind", *arguments])


def test_there_and_back(here: Path, capsys: Capture) -> None:
    assert convert("in.pth", "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "in.pth: MiniMind (original, dense; 2 layers, width 64, 8 heads of 8, 2 of keys, feed-forward 192, "
        "vocabulary 300)",
        "  0.11 million parameters, float32",
        "  assumed: 8 heads, as MiniMind has: the file does not say (sftray convert minimind --heads N for others)",
        "written: out (LlamaForCausalLM)",
        "  missing: a tokenizer: only config and weights are there (--tokenizer DIR copies one, "
        "or model.tokenizer names it)",
    ]
    assert AutoModelForCausalLM.from_pretrained(here / "out").config.num_attention_heads == 8
    assert convert("out", "back.pth", "--to", "minimind") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written: back.pth (LlamaForCausalLM)"
    first, back = (torch.load(here / name, weights_only=True) for name in ("in.pth", "back.pth"))
    assert set(first) == set(back) and all(torch.equal(first[key], back[key]) for key in first)


def test_a_tokenizer_goes_with_it_and_names_the_special_tokens(here: Path, capsys: Capture) -> None:
    assert convert("in.pth", "out", "--tokenizer", "tokenizer") == 0
    assert "missing" not in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(here / "out")
    config = AutoModelForCausalLM.from_pretrained(here / "out").config
    assert config.eos_token_id == tokenizer.eos_token_id != 2
    assert tokenizer.chat_template == SIMPLE
    assert not (here / "out" / "model_minimind.py").exists()


def test_the_answer_as_json(here: Path, capsys: Capture) -> None:
    torch.save({key: tensor.half() for key, tensor in build_small("minimind-3", 4)[0].items()}, here / "three.pth")
    assert convert("three.pth", "out", "--experts-per-token", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dtype"], told["notes"], len(told["missing"])) == ("float16", [], 1)
    assert told["layout"]["architecture"] == "Qwen3MoeForCausalLM" and told["layout"]["per_token"] == 2
    assert told["parameters"] == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("out").parameters())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no.pth", "new"], 2, "there is no file no.pth"),
        (["tokenizer", "new"], 2, "sftray convert minimind tokenizer OUT.pth --to minimind"),
        (["in.pth", "tokenizer"], 2, "tokenizer is there already"),
        (["in.pth", "s3://bucket/new"], 2, "OUT is a URL"),
        (["in.pth", "new", "--heads", "7"], 2, "7 heads do not fit"),
        (["in.pth", "new", "--generation", "llama"], 2, "--generation with --to transformers"),
        (["in.pth", "new", "--tokenizer", "nowhere"], 2, "there is no tokenizer.json in nowhere"),
        (["in.pth", "new.pth", "--to", "minimind"], 2, "in.pth is a file, and --to minimind reads a folder"),
        (["tokenizer", "new.pth", "--to", "minimind"], 2, "there is no config.json in tokenizer"),
        (["tokenizer", "in.pth", "--to", "minimind"], 2, "in.pth is there already"),
        (["tokenizer", "new.pth", "--to", "minimind", "--heads", "8"], 2, "--heads with --to minimind"),
        (["broken.pth", "new"], 7, "missing  layers.1.attention.wv.weight  16×64     -"),
        (["optimizer.pth", "new"], 7, "the state of an optimizer"),
    ],
)
def test_a_refusal_names_the_mend_and_leaves_nothing(
    arguments: list[str], code: int, said: str, here: Path, capsys: Capture
) -> None:
    save_small(here / "broken.pth", layers__1__attention__wv__weight=None)
    torch.save({"state": {}, "param_groups": []}, here / "optimizer.pth")
    before = sorted(path.name for path in here.iterdir())
    assert convert(*arguments) == code
    error = capsys.readouterr().err
    assert said in error and "  fix  " in error
    assert sorted(path.name for path in here.iterdir()) == before
