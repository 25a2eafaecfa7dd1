"""Planted faults, end to end: each ends with its exit code, a place, and a fix, and never with a traceback."""

import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from sftray.platform.cli import main

Capture = pytest.CaptureFixture[str]

BASE = """\
model:
  scratch: {architecture: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 64}
  tokenizer: quickstart
data: {train: train.jsonl, max_seq_len: 64}
"""
AT = BASE.count("\n") + 1  # the line on which what is added to BASE begins
GOOD = b'{"prompt": "a", "completion": "b"}\n'
OTHER = b'{"prompt": "c", "completion": "d"}\n'
INNER_WORDS = re.compile(r"pydantic|[Vv]alidation error|Traceback|Input should|type=|our bug|sftray-crash")


class Fault(NamedTuple):
    """Files of a folder, settings of the command line, the exit code, and where the trouble is said to be."""

    files: dict[str, bytes]
    settings: tuple[str, ...]
    code: int
    place: str


def added(text: str, line: int = AT) -> Fault:
    return Fault({"run.yaml": f"{BASE}{text}\n".encode()}, (), 2, f"run.yaml:{line}: ")


def whole(config: str | bytes, place: str) -> Fault:
    return Fault({"run.yaml": config.encode() if isinstance(config, str) else config}, (), 2, place)


def setting(text: str, code: int = 2, place: str | None = None) -> Fault:
    return Fault({}, (text,), code, f"command line: {text}: " if place is None else place)


def data(content: bytes, place: str, name: str = "train.jsonl") -> Fault:
    return Fault({name: content}, (f"data.train={name}",), 3, f"{name}{place}: ")


def tokenizer(name: str, content: bytes) -> Fault:
    return Fault({f"broken/{name}": content}, ("model.tokenizer=broken",), 2, "model.tokenizer: ")


def chat(*messages: object) -> bytes:
    return json.dumps({"messages": messages}).encode() + b"\n"


USER = {"role": "user", "content": "hi"}
SCRATCH = "model.scratch."
FAULTS = [
    # The config's text.
    whole("", "run.yaml: "),
    whole("- a\n", "run.yaml:1: "),
    whole(BASE.encode("utf-16"), "run.yaml:1: "),
    whole(BASE.encode() + b"name: caf\xe9\n", f"run.yaml:{AT}: "),
    whole("data: {train: train.jsonl}\n", "run.yaml: "),
    whole("model: {name: m}\n", "run.yaml: "),
    whole("model: {scratch: {hidden_size: 8}, tokenizer: quickstart}\ndata: {train: a}\n", "run.yaml:1: "),
    whole("model: {name: m, scratch: {architecture: llama}}\ndata: {train: a}\n", "run.yaml:1: "),
    added("optim:\n  learnign_rate: 3e-4", AT + 1),
    added("optm: {learning_rate: 1}"),
    added("train:\n  epochs: 1\n  epochs: 2", AT + 2),
    added("train:\n\tepochs: 1", AT + 1),
    added("optim: {betas: [0.9}"),
    added("optim: {learning_rate: fast}"),
    added("optim: {learning_rate: -1}"),
    added("optim: {learning_rate: .nan}"),
    added("optim: {schedule: cosin}"),
    added("train: {epochs: 1.5}"),
    added("train: {epochs: 0}"),
    added("train: {packing: maybe}"),
    added("train: {precision: bf61}"),
    added("train: {global_batch_size: 8, gradient_accumulation_steps: 2}"),
    added("scaling: {num_workers: [4, 2]}"),
    added("scaling: {num_workers: two}"),
    added("name: My Run"),
    added("name: ../escape"),
    added("name: " + "x" * 64),
    added("name: no"),
    added("tracking: {wandb: on}"),
    added("output_dir: out"),
    added("optim: !!python/object/apply:os.system [ls]"),
    # The command line's settings.
    setting("optim.lr=3"),
    setting("train.epochs"),
    setting("train.epochs=1=2"),
    setting("optim.learning_rate.x=3"),
    setting("data.max_seq_len=1"),
    setting("name=tokens", place="runs/tokens: "),
    # The model and its tokenizer.
    setting(SCRATCH + "architecture=lama", place="model.scratch.architecture"),
    setting(SCRATCH + "architecture=t5gemma", place="model.scratch"),
    setting(SCRATCH + "hiden_size=8", place="model.scratch"),
    setting(SCRATCH + "hidden_size=wide", place="model.scratch"),
    setting(SCRATCH + "hidden_size=30", place="model.scratch"),
    setting(SCRATCH + "hidden_size=-8", place="model.scratch"),
    setting(SCRATCH + "num_attention_heads=0", place="model.scratch"),
    setting(SCRATCH + "max_position_embeddings=16", place="data.max_seq_len"),
    setting(SCRATCH + "num_key_value_heads=3", place="model.scratch.num_key_value_heads"),
    setting(SCRATCH + "vocab_size=10", place="model.scratch.vocab_size"),
    setting(SCRATCH + "hidden_act=foo", place="model"),
    setting(SCRATCH + "pad_token_id=99999", place="model"),
    setting("model.tokenizer=no-such-folder", place="model.tokenizer: "),
    setting("model.tokenizer=.", place="model.tokenizer: "),
    setting("model.tokenizer=" + "x" * 300, place="model.tokenizer: "),
    setting("model.chat_template=chatm", place="model.chat_template: "),
    setting("model.chat_template=train.jsonl", place="model.chat_template"),
    Fault({"t.jinja": b"{% for m in messages %}"}, ("model.chat_template=t.jinja",), 2, "t.jinja:1: "),
    tokenizer("tokenizer.json", b"{}"),
    tokenizer("tokenizer_config.json", b"[]"),
    tokenizer("config.json", b'{"model_type": "nothing"}'),
    # Which files.
    setting("data.train=none.jsonl", 3, "data.train: "),
    setting("data.train=~/none.jsonl", 3, "data.train: "),
    setting("data.train=none-*.jsonl", 3, "data.train: "),
    setting("data.train=.", 3, "data.train: "),
    setting("data.train=run.yaml", 3, "data.train: "),
    setting("data.train=https://host/a.jsonl", 3, "data.train: "),
    setting("data.train=preset://quickstart/trian.jsonl", 3, "preset://quickstart/train.jsonl"),
    setting("data.train=[train.jsonl, ./train.jsonl]", 3, "data.train: "),
    setting("data.validation=none.jsonl", 3, "data.validation: "),
    setting("data.validation=0.9999999", 3, "data.validation"),
    setting("data.max_seq_len=4", 3, "data.max_seq_len"),
    # What stands in them.
    data(b"", ""),
    data(b"[" + GOOD.strip() + b"]", ""),
    data(gzip.compress(GOOD), ""),
    data(GOOD, "", "train.parquet"),
    data(gzip.compress(GOOD * 9)[:-9], f":10:{9 * len(GOOD)}", "train.jsonl.gz"),
    data(GOOD + b'{"prompt": "a" "completion": "b"}\n', f":2:{len(GOOD) + 15}"),
    data(GOOD + b'{"prompt": "a", "comp', f":2:{len(GOOD) + 21}"),
    data(GOOD + b'{"prompt": "caf\xe9"}\n', f":2:{len(GOOD) + 15}"),
    data(GOOD + b"\0" * 20 + b"\n", f":2:{len(GOOD)}"),
    data(GOOD + b'{"text": "a"}\n', f":2:{len(GOOD)}"),
    data(GOOD + chat(), f":2:{len(GOOD) + 13}"),
    data(GOOD + chat({"role": "asistant", "content": "x"}), f":2:{len(GOOD) + 23}"),
    data(GOOD + chat(USER, {"role": "assistant", "content": 4}), f":2:{len(GOOD) + 82}"),
    data(b"prompt,completion\na,b\nc\n", ":3", "train.csv"),
    data(b"prompt;completion\na;b\n", ":1", "train.csv"),
    data(chat(USER), "", "train.jsonl")._replace(place="data.train: "),
    data(chat(USER, {"role": "assistant", "content": "x " * 99}), ":1")._replace(settings=("data.overlong=error",)),
    # The store.
    setting("store.path=ftp://bucket/runs", 2, "store.path: "),
    setting("store.path=s3://bucket/runs?colour=red", 2, "store.path: "),
    setting("store.path=train.jsonl", 4, "store.path: "),
    setting("store.path=/proc/runs", 4, "store.path: "),
    setting("store.path=~nobody-of-this-name/runs", 4, "store.path: "),
    setting("store.path=" + "x" * 300, 4, "store.path: "),
    Fault({"runs/tokens": b""}, (), 4, "runs/tokens: "),
    # The cluster.
    setting("scaling.num_workers=100000", 5, "scaling.num_workers="),
    setting("scaling.num_workers=[5000,9000]", 5, "scaling.num_workers="),
    setting("scaling.cpus_per_worker=100000", 5, "100000 CPU"),
    setting("scaling={use_gpu: true, num_workers: 900}", 5, "scaling."),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: " ".join([*fault.settings, *fault.files])[:50])
def test_a_planted_fault_is_said_with_its_place_and_its_fix(
    fault: Fault, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, content in {"run.yaml": BASE.encode(), "train.jsonl": GOOD + OTHER, **fault.files}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    before = set(Path("runs").glob("*"))
    code = main(["plan", "run.yaml", *fault.settings])
    said = capsys.readouterr()
    assert code == fault.code, said.err
    assert re.match(r"error  \S", said.err)
    assert fault.place in said.err
    assert re.findall(r"^(error|  fix)  ", said.err, re.MULTILINE) == ["error", "  fix"] * said.err.count("error  ")
    assert not INNER_WORDS.search(said.err + said.out)
    assert code == 5 or said.out == ""
    # No run, no draft, and tokens only where the data was good.
    left = set(Path("runs").rglob("*.arrow")) | set(Path("runs").glob("*")) - before - {Path("runs/tokens")}
    assert code == 5 or not left
    assert not list(Path("runs").glob("tokens/.draft-*"))


def test_the_planted_set_is_large_and_has_every_kind() -> None:
    codes = [fault.code for fault in FAULTS]
    assert len(codes) >= 60 and set(codes) == {2, 3, 4, 5}


def test_what_the_faults_are_planted_in_is_good(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("run.yaml").write_text(BASE)
    Path("train.jsonl").write_bytes(GOOD + OTHER)
    assert main(["plan", "run.yaml"]) == 0
    assert "cluster: 1 worker(s) on CPU fit" in capsys.readouterr().out.replace("GPU", "CPU")
