"""Whatever a valid config holds, its dump reads back as the same; any other text is refused in words."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved, dump_config, load_config
from sftray.train_fn.config_syntax import write_value
from sftray.train_fn.config_words import leaf_fields
from sftray.train_fn.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Resolved:
    path = Path("run.yaml")
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t'\"#:,[]{}&*!|>%@`"), min_size=1
)
awkward = texts | st.sampled_from(["no", "1e-4", "~", "12:30", "<<", "=", "-", "null", "0x1", "a  # b", "? x", " x "])
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, 2**60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | awkward,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(awkward.filter(lambda t: "." not in t), inner, max_size=3)
    ),
    max_leaves=8,
)
models = st.fixed_dictionaries(
    {"name": awkward}, optional={"tokenizer": awkward, "aux_loss_coef": positive}
) | st.builds(
    lambda inside, tokenizer: {"scratch": inside | {"architecture": "llama"}, "tokenizer": tokenizer},
    st.dictionaries(awkward.filter(lambda t: "." not in t), values, max_size=5),
    awkward,
)
fractions = st.floats(0, 0.99, exclude_min=True)
sections: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "optim": {"learning_rate": positive, "betas": st.tuples(fractions, fractions), "warmup_ratio": fractions},
    "train": {"epochs": counts, "packing": st.booleans(), "precision": st.sampled_from(["fp32", "bf16", "fp16"])},
    "scaling": {
        "num_workers": counts | st.tuples(st.just(1), counts),
        "use_gpu": st.just("auto") | st.booleans(),
        "resources_per_worker": st.dictionaries(awkward.filter(lambda t: "." not in t), positive, max_size=3),
        "wait_minutes": positive,
    },
    "tracking": {"tags": st.lists(awkward, max_size=3), "entity": awkward},
}
optional: dict[str, st.SearchStrategy[Any]] = {
    name: st.fixed_dictionaries({}, optional=keys) for name, keys in sections.items()
}
data = st.fixed_dictionaries(
    {"train": awkward | st.lists(awkward, min_size=1, max_size=3)}, optional={"validation": awkward | fractions}
)
configs = st.fixed_dictionaries({"model": models, "data": data}, optional=optional | {"name": names})


@settings(max_examples=80, deadline=None)
@given(configs, st.sampled_from(["run.yaml:14", "command line", "preset quickstart", "a: # b"]))
def test_a_dump_reads_back_as_the_same_config(settings_given: dict[str, Any], origin: str) -> None:
    config = RunConfig.model_validate(settings_given)
    dumped = dump_config(Resolved(config, dict.fromkeys(leaf_fields(), origin)))
    resolved = load(dumped)
    assert resolved.config == config
    assert {resolved.origin[key] for key in leaf_fields()} == {origin}
    assert dump_config(resolved) == dumped
    assert RunConfig.model_validate(yaml.safe_load(dumped)) == config  # and any YAML 1.1 reader agrees


def test_labels_of_nodes_read_back_with_their_origins() -> None:
    text = (
        "model: {name: m}\ndata: {train: a}\nscaling:\n  node_labels: {ray.io/accelerator-type: A100, rack: '07'}\n"
    )
    resolved = load(text, "scaling.resources_per_worker={fast: 1e-1}")
    assert resolved.config.scaling.node_labels == {"ray.io/accelerator-type": "A100", "rack": "07"}
    assert resolved.config.scaling.resources_per_worker == {"fast": 0.1}
    assert resolved.origin["scaling.node_labels.rack"] == "run.yaml:4"
    dumped = dump_config(resolved)
    assert '    rack: "07"  # run.yaml:4\n' in dumped and "    fast: 0.1  # command line\n" in dumped
    again = load(dumped)
    assert again.config == resolved.config and again.origin == resolved.origin


@settings(max_examples=300, deadline=None)
@given(values)
def test_a_written_value_is_one_line_and_reads_back(value: object) -> None:
    text = write_value(value)
    assert "\n" not in text
    assert yaml.safe_load(text) == value


@settings(max_examples=300, deadline=None)
@given(
    st.text() | st.lists(st.sampled_from([*"a:-[]{}#&*!|>'\"%@?~\t\n ", "model", ": ", "\n  ", "<<"])).map("".join)
)
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):  # none of these has a model and data
        load(text, text)


@pytest.mark.parametrize(
    ("number", "text"),
    [(2e-5, "2.0e-5"), (3e-4, "3.0e-4"), (1e16, "1.0e+16"), (0.95, "0.95"), (-0.0, "-0.0"), (math.inf, ".inf")],
)
def test_numbers_are_written_as_people_do(number: float, text: str) -> None:
    assert write_value(number) == text
