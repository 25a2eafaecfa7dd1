"""A wrong config is refused in words that a person can act on: what, the line, what is legal, and a right line."""

from pathlib import Path

import pytest
from config_problems import BASE, problems_of

from sftray.train_fn.config_file import load_config
from sftray.train_fn.config_names import FOREIGN
from sftray.train_fn.config_words import is_legal, leaf_fields
from sftray.train_fn.errors import ConfigError

GLOBAL, STEPS = "global_batch_size", "gradient_accumulation_steps"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# What stands below BASE -> the line of the key that is none, the key that was meant, and the fix.
MEANT = [
    ("optim:\n  learnign_rate: 3e-4", 4, "optim.learning_rate", "optim: {learning_rate: 3.0e-4}"),
    ("optm: {learning_rate: 1}", 3, "optim", "optim: {learning_rate: 1}"),
    ("nmae: x", 3, "name", "name: x"),
    ("learning_rate: 1", 3, "optim.learning_rate", "optim: {learning_rate: 1}"),
    ("optim:\n  epochs: 3", 4, "train.epochs", "train: {epochs: 3}"),
    ("optim:\n  Learning-Rate: 1", 4, "optim.learning_rate", "optim: {learning_rate: 1}"),
    ("train:\n  epochs: 1\n  optim:\n    learning_rate: 1", 5, "optim", "optim: {learning_rate: 1}"),
    ("per_device_train_batch_size: 8", 3, "train.micro_batch_size", "train: {micro_batch_size: 8}"),
    ("train: {batch_size: 8}", 3, "train.micro_batch_size", "train: {micro_batch_size: 8}"),
    ("train: {num_train_epochs: 3}", 3, "train.epochs", "train: {epochs: 3}"),
    ("optim: {lr: 1e-3}", 3, "optim.learning_rate", "optim: {learning_rate: 0.001}"),
    ("bf16: true", 3, "train.precision", "train: {precision: bf16}"),
    ("fp16: true", 3, "train.precision", "train: {precision: fp16}"),
    ("fp16: false", 3, "train.precision", "train: {precision: fp32}"),
    ("accumulation_steps: 8", 3, "train.gradient_accumulation_steps", "train: {gradient_accumulation_steps: 8}"),
    ("max_length: 512", 3, "data.max_seq_len", "data: {max_seq_len: 512}"),
    ("save_steps: 50", 3, "train.save_every", "train: {save_every: 50}"),
    ("eval_steps: 50", 3, "train.eval_every", "train: {eval_every: 50}"),
    ("logging_steps: 5", 3, "train.log_every", "train: {log_every: 5}"),
    ("output_dir: out", 3, "store.path", "store: {path: out}"),
    ("report_to: wandb", 3, "tracking.wandb", "tracking: {wandb: online}"),
    ("report_to: none", 3, "tracking.wandb", "tracking: {wandb: disabled}"),
    ("optim: {warmup_steps: 1}", 3, "optim.warmup_ratio", "optim: {warmup_ratio: 0.03}"),
]

# What stands below BASE -> the line of the one problem, words of it, words of its fix.
PLANTED = [
    ("optim.learning_rate: 1", 3, "optim.learning_rate is written here as one key", "optim: {learning_rate: 1}"),
    ("zzzzz: 1", 3, "zzzzz is not a setting.", "remove it"),
    ("on: 1", 3, "on is not a setting.", "remove it"),
    # the traps of YAML
    ("train:\n  epochs: 1\n  epochs: 2", 5, "train.epochs is set twice", "keep one of the two"),
    ("data: {train: b.jsonl}", 3, "data is set twice", "keep one of the two"),
    ("optim:\n\tlearning_rate: 1", 4, "a tab stands where YAML allows only spaces", "spaces"),
    ("train:\n  epochs: 1\t# one", 4, "a tab stands where YAML allows only spaces", "spaces"),
    ("optim:\n  learning_rate:3", 4, "optim is a section with keys of its own, not learning_rate:3", "2.0e-5"),
    ("optim: {learning_rate:3}", 3, "optim.learning_rate:3 is not a setting", "learning_rate: 3"),
    ("name:x\ntrain: {epochs: 1}", 3, "not a 'key: value' pair", "key: value"),
    ("name: a: b", 3, "a second ': ' on this line", "quotes"),
    ("train:\n    epochs: 1\n  seed: 2", 5, "does not fit what stands above it", "same column"),
    ("train:\n  epochs\n  seed: 2", 5, "the one above is no 'key: value' pair", "key: value"),
    ("optim:\n  betas: - 0.9", 4, "a list cannot begin with '- ' behind a key", "[a, b]"),
    ("tracking:\n  tags: *.jsonl", 4, "a value that begins with * is an alias", '"*.jsonl"'),
    ("tracking:\n  project: *x", 4, "the alias *x has no anchor &x", "quote the text"),
    ("tracking: {project: &x a, tags: [&x b]}", 3, "the anchor &x is defined twice", "another name"),
    ("tracking: {project: @home}", 3, "a value cannot begin with @", "quotes"),
    ("name: ]", 3, "a value cannot begin with ]", "quotes"),
    ("name: 'open\ntrain: {epochs: 1}", 3, "a quote opened here is never closed", "close the quote"),
    ("optim:\n  betas: [0.9, 0.95\n  schedule: linear", 4, "is not closed", "close the bracket"),
    ('store: {path: "C:\\data"}', 3, "begins an escape between double quotes", "single quotes"),
    ("---\nname: x", 3, "a second document begins here", "'---'"),
    ("optim: !!python/object/apply:os.system [ls]", 3, "the tag !!python/object/apply:os.system", "delete"),
    ("train: {seed: !!int '3'}", 3, "carries the tag !!int", "delete"),
    ("tracking: !!set {a}", 3, "carries the tag !!set", "delete"),
    ("name: !e!foo x", 3, "the tag !e! is not known", "delete"),
    ("? [a]\n: 1", 3, "a key of the config is not plain text", "key: value"),
    ("limits: {<<: 3}", 3, "<< needs the alias of a mapping", "<<: *anchor"),
    ("limits: &a {<<: *a}", 3, "an alias holds itself", "flatter"),
    ("limits: " + "[" * 40, 3, "nested more than 24 levels deep", "flatter"),
    ('store: {path: "a\\0b"}', 3, "store.path holds the control character U+0000", "remove"),
    ('store: {path: "\\ud800"}', 3, "store.path holds the control character U+D800", "remove"),
    ("name: a\0b", 3, "an invisible character stands here: U+0000", "delete"),
    # what cannot stand together
    (
        f"train:\n  {GLOBAL}: 8\n  epochs: 1\n  {STEPS}: 2",
        6,
        f"give train.{STEPS} or train.{GLOBAL}, not both",
        "keep one",
    ),
    ("train:\n  max_steps: 8\n  max_examples: 64", 5, "give train.max_steps or train.max_examples", "keep one"),
    ("scaling:\n  num_workers: [4, 2]", 4, "this min is above the max", "scaling: {num_workers: [2, 4]}"),
    (
        "scaling:\n  num_workers: [1, 4]\n  node_labels: {zone: a}",
        5,
        "scaling.node_labels does not go with an elastic scaling.num_workers",
        "scaling: {num_workers: 4}",
    ),
    ("scaling: {resources_per_worker: {CPU: 2}}", 3, "holds CPU, which has a key of its own", "cpus_per_worker: 2"),
    ("scaling: {resources_per_worker: {GPU: 1}}", 3, "holds GPU, which has a key of its own", "use_gpu: true"),
    (
        "scaling: {node_labels: {zone: in(a)}}",
        3,
        "scaling.node_labels.zone is in(a), and",
        "scaling: {node_labels: {",
    ),
    # sections that are none
    ("optim: 3", 3, "optim is a section with keys of its own, not 3", "optim: {learning_rate: 2.0e-5}"),
    ("scaling: [1]", 3, "scaling is a section with keys of its own, not [1]", "scaling: {num_workers: 1}"),
]

# Whole files -> the place of the one problem, words of it, words of its fix.
LLAMA, NAMED = "architecture: llama", "model: {name: HuggingFaceTB/SmolLM2-135M}"
HALF = "data: {train: a}\nmodel:\n  tokenizer: t\n"
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9))
WHOLE = [
    ("", "run.yaml", "the file is empty", NAMED),
    ("# nothing\n", "run.yaml", "the file is empty", NAMED),
    ("- a\n", "run.yaml:1", "the file holds a list, not settings", NAMED),
    ("text\n", "run.yaml:1", "the file holds one value, not settings", NAMED),
    (b"model: {name: m}\nname: caf\xe9\n", "run.yaml:2", "the byte 0xE9 is not UTF-8", "iconv"),
    (BASE.encode("utf-16"), "run.yaml:1", "the file is UTF-16", "iconv -f UTF-16"),
    (b"\0" * (1 << 21), None, "run.yaml is larger than 1 MiB", "data.train"),
    (BOMB, "run.yaml:1", "more than 20,000 values", "smaller"),
    ("data: {train: a}\n", "run.yaml", "model.name is missing (or model.scratch", NAMED),
    ("model: {name: m}\n", "run.yaml", "data.train is missing", "data: {train: data/train.jsonl}"),
    ("model: {name: m}\ndata:\n  max_seq_len: 8\n", "run.yaml:2", "data.train is missing", "data: {train:"),
    ("model: {name: m}\ndata: {tarin: a}\n", "run.yaml:2", "Did you mean data.train?", "data: {train: a}"),
    ("modle: {name: m}\ndata: {train: a}\n", "run.yaml:1", "Did you mean model?", "model: {name: m}"),
    ("model:\ndata: {train: a}\n", "run.yaml:1", "model needs name", NAMED),
    (HALF + "  scratch:\n    hidden_size: 8\n", "run.yaml:4", "needs architecture", LLAMA),
    (HALF + "  scratch:\n    architecture: 3\n", "run.yaml:5", "needs architecture", LLAMA),
    (
        HALF.replace("tokenizer: t", "name: a.pth"),
        "run.yaml:3",
        "needs model.tokenizer: the file brings none",
        "a.pth",
    ),
    (HALF.replace("tokenizer", "name") + f"  scratch: {{{LLAMA}}}\n", "run.yaml:4", "not both", "keep one"),
    (HALF + f"  scratch: {{{LLAMA}, n: 010}}\n", "run.yaml:4", "model.scratch.n: 010 means 8", "write 8 or 10"),
    (f"data: {{train: a}}\nmodel: {{scratch: {{{LLAMA}}}}}\n", "run.yaml:2", "needs model.tokenizer", "quickstart}"),
    ("data:\n  train:\n  - a\n  - 3\nmodel: {name: m}\n", "run.yaml:4", "data.train[1] is 3", '{train: [a, "3"]}'),
    ("model:\n  name:\n   no\ndata: {train: a}\n", "run.yaml:3", "model.name must be text", 'model: {name: "no"}'),
]


@pytest.mark.parametrize(("added", "line", "key", "fix"), MEANT)
def test_a_key_that_is_none_gets_the_one_that_was_meant(added: str, line: int, key: str, fix: str) -> None:
    (problem,) = problems_of(f"{BASE}{added}\n")
    assert problem.where == f"run.yaml:{line}"
    assert problem.what.endswith(f" Did you mean {key}?")
    assert problem.fix == fix


def test_other_tools_names_lead_to_keys_that_exist() -> None:
    ours = {key.rpartition(".")[2] for key in leaf_fields()}
    assert not ours & set(FOREIGN)
    assert {meant.key for meant in FOREIGN.values()} <= set(leaf_fields())
    assert all(meant.value is None or is_legal(meant.key, meant.value) for meant in FOREIGN.values())


@pytest.mark.parametrize(("added", "line", "what", "fix"), PLANTED)
def test_a_planted_fault_is_named_with_its_line(added: str, line: int, what: str, fix: str) -> None:
    (problem,) = problems_of(f"{BASE}{added}\n")
    assert problem.where == f"run.yaml:{line}"
    assert what in problem.what
    assert fix in str(problem.fix)


@pytest.mark.parametrize(("text", "where", "what", "fix"), WHOLE)
def test_a_file_that_is_wrong_as_a_whole(text: str | bytes, where: str | None, what: str, fix: str) -> None:
    (problem,) = problems_of(text)
    assert problem.where == where
    assert what in problem.what
    assert fix in str(problem.fix)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nofile.yaml", "there is no file nofile.yaml."),
        ("rum.yaml", "there is no file rum.yaml. Did you mean run.yaml?"),
        (".", ". is a folder"),
        ("a\0b", "a\\x00b cannot be read"),
        ("x" * 300, "cannot be read: File name too long"),
        ("run.yaml/x", "cannot be read: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, what: str) -> None:
    Path("run.yaml").write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load_config(Path(name))
    (problem,) = caught.value.problems
    assert what in problem.what and problem.fix


def test_the_folder_of_a_run_offers_to_resume_it() -> None:
    Path("config.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"fix  to go on with this run: sftray resume \."):
        load_config(Path("."))


def test_all_problems_of_file_and_command_line_come_together_in_order() -> None:
    text = "name: no\nmodel: {nmae: m}\ntrain:\n  epochs: 0\n  epochs: 1\n  seed: 010\noptim: {lr: 1}\n"
    problems = problems_of(text, ["train.log_every=-1", "zzzzz=1"])
    assert [problem.where for problem in problems] == [
        "run.yaml",  # data is missing
        "run.yaml:1",
        "run.yaml:2",
        "run.yaml:4",
        "run.yaml:5",
        "run.yaml:6",
        "run.yaml:7",
        "command line: train.log_every=-1",
        "command line: zzzzz=1",
    ]


def test_a_fault_inside_hides_none_around_it() -> None:
    problems = problems_of(BASE + "? [a]\n: 1\noptm: {seed: 010}\ntrain: {<<: 3, epochs: 0}\n")
    assert [problem.where for problem in problems] == [
        "run.yaml:3",
        "run.yaml:5",
        "run.yaml:5",
        "run.yaml:6",
        "run.yaml:6",
    ]


def test_the_message_reads_as_promised() -> None:
    (problem,) = problems_of(BASE + "optim:\n  learnign_rate: 2e-5\n")
    assert str(problem) == (
        "error  run.yaml:4: optim.learnign_rate is not a setting. Did you mean optim.learning_rate?\n"
        "  why  optim knows: betas, learning_rate, max_grad_norm, min_lr_ratio, schedule, warmup_ratio, "
        "weight_decay\n"
        "  fix  optim: {learning_rate: 2.0e-5}"
    )


def test_a_message_obeys_no_terminal_codes() -> None:
    text = BASE + '"\\e[31mred": 1\nname: "\\e[2J"\n'
    assert "\x1b" not in "".join(str(problem) for problem in problems_of(text, ["\x1b[2J=1"]))
