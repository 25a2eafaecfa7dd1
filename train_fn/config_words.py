"""What each key of a config may hold, in words, and a right value for a wrong one.

Everything is read off the models of `config.py`, so that a new key there needs no change here.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_yaml import KeyPath

SCRATCH = ("model", "scratch")  # the one key inside of which each value is a setting of its own
# The keys whose values are mappings.
MAPPINGS = (SCRATCH, ("scaling", "resources_per_worker"), ("scaling", "node_labels"))

_STEPS = "a whole number of steps, or 0 for never"
# Said better by hand than from the models.
_LEGAL = {
    "model.name": "text: a hub id, a folder, or a .pth file of MiniMind's",
    "model.scratch": "the keys of a transformers config",
    "model.tokenizer": "text: a hub id, a folder, or quickstart",
    "model.chat_template": "text: a file, or the name of a shipped template",
    "data.train": "a file, a glob, or a list of them",
    "data.validation": "a file, a glob, a list of them, or a fraction of train between 0 and 1",
    "train.seed": "a whole number from 0 to 2**63 - 1",
    "train.log_every": _STEPS,
    "train.eval_every": _STEPS,
    "train.save_every": _STEPS,
    "optim.betas": "a list of two numbers, each at least 0 and below 1",
    "scaling.num_workers": "a whole number, 1 or more, or [min, max] to be elastic",
    "scaling.use_gpu": "auto, true or false",
    "scaling.resources_per_worker": "names of Ray's resources, each with the amount of a worker, above 0",
    "scaling.node_labels": "names of labels, each with the value that a node must have",
    "tracking.tags": "a list of texts",
}
# A right value for the keys whose default is none, or would not show what is meant.
_EXAMPLES: dict[str, Any] = {
    "name": "my-run",
    "model.name": "HuggingFaceTB/SmolLM2-135M",
    "model.scratch": {"architecture": "llama", "hidden_size": 256, "num_hidden_layers": 6},
    "model.tokenizer": "quickstart",
    "model.chat_template": "chat.jinja",
    "model.aux_loss_coef": 0.01,
    "data.train": "data/train.jsonl",
    "data.validation": 0.05,
    "train.max_steps": 1000,
    "train.max_examples": 50_000,
    "train.gradient_accumulation_steps": 8,
    "train.global_batch_size": 64,
    "scaling.resources_per_worker": {"my_resource": 1},
    "scaling.node_labels": {"ray.io/accelerator-type": "A100"},
    "scaling.wait_minutes": 15,
    "limits.max_minutes": 120,
    "tracking.entity": "my-team",
    "tracking.tags": ["first-try"],
}
# Other tools' words for the same choice.
_SYNONYMS = {
    "model.attn_implementation": {"false": "auto", "flash": "flash_attention_2", "math": "eager"},
    "train.precision": {
        "float32": "fp32",
        "float16": "fp16",
        "half": "fp16",
        "bfloat16": "bf16",
        "no": "fp32",
        "false": "fp32",
    },
    "tracking.wandb": {"false": "disabled", "none": "disabled", "true": "online"},
}


@cache
def leaf_fields() -> dict[str, tuple[type[BaseModel], FieldInfo]]:
    """Every dotted key that holds a value -> the model it is in and its field, in the order of the models."""
    leaves: dict[str, tuple[type[BaseModel], FieldInfo]] = {}
    for name, field in RunConfig.model_fields.items():
        if (section := _section_model(field)) is None:
            leaves[name] = RunConfig, field
        else:
            leaves |= {f"{name}.{key}": (section, inner) for key, inner in section.model_fields.items()}
    return leaves


@cache
def section_keys() -> dict[str, tuple[str, ...]]:
    """Section -> its keys; the config itself is the section ''."""
    sections = {name: _section_model(field) for name, field in RunConfig.model_fields.items()}
    inner = {name: tuple(model.model_fields) for name, model in sections.items() if model is not None}
    return {"": tuple(RunConfig.model_fields)} | inner


def _section_model(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


@cache
def _schema(key: str) -> dict[str, Any]:
    """The JSON schema of one key's value."""
    model = leaf_fields()[key][0]
    schema: dict[str, Any] = model.model_json_schema()["properties"][key.rpartition(".")[2]]
    return schema


def choices(key: str) -> list[str]:
    """The texts that `key` may hold, if it is a choice among some."""
    branches = _schema(key).get("anyOf", [_schema(key)])
    return [text for branch in branches for text in branch.get("enum", [branch.get("const")]) if text is not None]


def legal_values(key: str) -> str:
    """What `key` may hold: 'a whole number, 1 or more'."""
    if key in section_keys():
        return "a section with keys of its own"
    return _LEGAL.get(key) or _describe(_schema(key))


def _describe(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:  # X or null: that the key may be left out goes without saying
        return " or ".join(_describe(branch) for branch in schema["anyOf"] if branch.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema["type"]:
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "boolean":
            return "true or false"
    return "text"


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return f" above {schema['exclusiveMinimum']:g}"
    return f", {low:g} or more" if high is None else f" from {low:g} to {high:g}"


def wants_number(path: KeyPath) -> bool:
    """May the value at `path` be a number? Yes, where nothing is known of it."""
    key = ".".join(str(part) for part in path[:2] if isinstance(part, str))
    if path[:2] == SCRATCH or key not in leaf_fields():
        return True
    branches = _schema(key).get("anyOf", [_schema(key)])
    if path[:2] in MAPPINGS and len(path) > 2:
        branches = [*_schema(key).get("patternProperties", {}).values(), _schema(key).get("additionalProperties", {})]
    if isinstance(path[-1], int):  # an item of a list
        branches = [item for b in branches for item in (*b.get("prefixItems", ()), b.get("items")) if item]
    return any(branch.get("type") in ("integer", "number") for branch in branches)


def wants_text(key: str) -> bool:
    """May the value of `key` be a text of one's own, or a list of them?"""
    branches = _schema(key).get("anyOf", [_schema(key)])
    branches = [*branches, *(branch["items"] for branch in branches if "items" in branch)]
    return any(branch.get("type") == "string" and not {"enum", "const"} & set(branch) for branch in branches)


def is_legal(key: str, value: object) -> bool:
    """Would `key: value` pass?"""
    field = leaf_fields()[key][1]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        return False
    return value is not None


def right_value(key: str, given: object, written: str | list[str] | None = None, otherwise: object = None) -> object:
    """A value that `key` may hold, as near to the `given` one as can be told; else an example or the default.

    `written` is what was given as it stands in the text, `otherwise` the value to take if `given` is of no use.
    """
    guesses = (*_near(key, given, written), otherwise, *_known(key))
    return next(value for value in guesses if is_legal(key, value))


def nearest_choice(key: str, given: object) -> str | None:
    """The one of the choices of `key` that `given` resembles."""
    text = str(given).lower().strip()
    if (synonym := _SYNONYMS.get(key, {}).get(text)) is not None:
        return synonym
    return next(iter(difflib.get_close_matches(text, choices(key), n=1)), None)


def _near(key: str, given: object, written: str | list[str] | None) -> Iterator[object]:
    """What `given` may have been meant to be, likeliest first."""
    if given is None:
        return
    yield given
    yield nearest_choice(key, given)
    if key == "name":
        yield slug(str(written or given or ""))
    if isinstance(given, list) and len(given) == 1:
        yield given[0]
    if isinstance(given, list) or not wants_number(tuple(key.split("."))):
        yield written
    if isinstance(given, str):
        yield read_scalar(given)
    elif isinstance(given, float) and given.is_integer():
        yield int(given)
    elif isinstance(given, int) and given in (0, 1):
        yield bool(given)
    yield [given]  # where a list is wanted


def _known(key: str) -> Iterator[object]:
    """An example, or the default."""
    yield _EXAMPLES.get(key)
    yield leaf_fields()[key][1].get_default(call_default_factory=True)


def read_scalar(text: str) -> object:
    """'3' -> 3, '2e-5' -> 2e-5, '5%' -> 0.05, 'yes' -> True; None if it is none of these."""
    if percent := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", text):
        return float(percent[1]) / 100
    try:
        return float(text) if re.search(r"[.eE]", text) else int(text)
    except ValueError:
        return {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}.get(text.lower())


def slug(text: str) -> str:
    """`text` made into a legal name, or 'my-run' where nothing of it is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:63] or _EXAMPLES["name"]
