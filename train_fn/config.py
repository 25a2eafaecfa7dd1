"""The settings of a run: closed models, one for each thing they configure.

Every key is public. A model here checks one value at a time and what follows from the config alone;
what needs the file system, the tokenizer or the cluster is checked where it is used.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sftray.train_fn.config_replay import find_unlike_seed
from sftray.train_fn.minimind_layout import is_weights_file

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
CountOrOff = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0.0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, strict=True)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
# A node's label, as Ray and Kubernetes have it. No operator: what is asked for is one value.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([A-Za-z0-9][A-Za-z0-9.-]{{0,252}}/)?{_LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^{_LABEL}$")]


class Contradiction(ValueError):
    """Settings that cannot stand together: `keys` (dotted) are at fault, `fix` some that would be right.

    It is the `ctx` of pydantic's error, so that whoever read the config from a file can name the lines.
    """

    def __init__(self, text: str, *keys: str, fix: dict[str, object] | None = None) -> None:
        super().__init__(text)
        self.keys, self.fix = keys, fix


class Section(BaseModel):
    """A closed group of settings: unknown keys are errors, values are never coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """Which model: a pretrained one by `name` (a hub id, a folder, or a `.pth` file of MiniMind's), or an untrained
    one by `scratch`.
    """

    name: Text | None = None
    scratch: dict[str, Any] | None = None
    tokenizer: Text | None = None
    chat_template: Text | None = None
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    gradient_checkpointing: Flag = False
    compile: Flag = False
    aux_loss_coef: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.name is not None and self.scratch is not None:
            raise Contradiction(
                "give model.name (a pretrained model) or model.scratch (an untrained one), not both",
                "model.name",
                "model.scratch",
            )
        if self.name is None and self.scratch is None:
            raise Contradiction(
                "model needs name (a pretrained model) or scratch (an untrained one)",
                fix={"model.name": "HuggingFaceTB/SmolLM2-135M"},
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_of_a_file(self) -> Self:
        if self.name is not None and is_weights_file(self.name) and self.tokenizer is None:
            raise Contradiction(
                "model.name is a file of weights, and needs model.tokenizer: the file brings none",
                "model.name",
                fix={"model.name": self.name, "model.tokenizer": "path/to/minimind/model"},
            )
        return self

    @model_validator(mode="after")
    def _whole_scratch(self) -> Self:
        if self.scratch is None:
            return self
        if not isinstance(self.scratch.get("architecture"), str):
            raise Contradiction(
                "model.scratch needs architecture, the kind of model, such as llama",
                "model.scratch",
                "model.scratch.architecture",
                fix={
                    "model.tokenizer": self.tokenizer or "quickstart",
                    "model.scratch.architecture": "llama",
                },
            )
        if self.tokenizer is None:
            raise Contradiction(
                "model.scratch needs model.tokenizer: an untrained model brings none",
                "model.scratch",
                fix={"model.tokenizer": "quickstart"},
            )
        return self


class DataConfig(Section):
    """Which conversations, and what is done with them before they are tokens."""

    train: Text | Annotated[list[Text], Field(min_length=1)]
    validation: Text | Annotated[list[Text], Field(min_length=1)] | Fraction | None = None
    max_seq_len: Annotated[int, Field(ge=2, strict=True)] = 1024
    overlong: Literal["turns", "truncate", "drop", "error"] = "turns"
    train_on: Literal["all", "last"] = "all"


class OptimConfig(Section):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = 2.0e-5
    schedule: Literal["cosine", "linear", "constant", "minimind"] = "cosine"
    warmup_ratio: Ratio = 0.03
    min_lr_ratio: Ratio = 0.1
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_grad_norm: PositiveFloat = 1.0


class TrainConfig(Section):
    """The loop. Exactly one of `gradient_accumulation_steps` and `global_batch_size` is set afterwards.

    The run ends after `epochs`, or before at `max_steps`, or when exactly `max_examples` have been trained on.
    `log_every`, `eval_every`, `save_every`: 0 turns off what they time. The validation before the first step and
    after the last, and the last checkpoint, are made all the same.
    """

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    max_examples: PositiveInt | None = None
    micro_batch_size: PositiveInt = 4
    gradient_accumulation_steps: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    packing: Flag = True
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 1
    replay_seed: Flag = False
    log_every: CountOrOff = 10
    eval_every: CountOrOff = 100
    save_every: CountOrOff = 100

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.gradient_accumulation_steps is not None and self.global_batch_size is not None:
            raise Contradiction(
                "give train.gradient_accumulation_steps or train.global_batch_size, not both",
                "train.gradient_accumulation_steps",
                "train.global_batch_size",
            )
        if self.gradient_accumulation_steps is None and self.global_batch_size is None:
            object.__setattr__(self, "gradient_accumulation_steps", 1)
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_steps is not None and self.max_examples is not None:
            raise Contradiction(
                "give train.max_steps or train.max_examples, not both", "train.max_steps", "train.max_examples"
            )
        return self


_OWN_KEYS = {"CPU": "scaling.cpus_per_worker", "GPU": "scaling.use_gpu"}


class ScalingConfig(Section):
    """How many workers, and on what. Layout only: it never changes what is learned.

    `placement`: pack has the workers on as few nodes as hold them, spread on as many as there are. A worker takes
    `resources_per_worker` beside CPUs and a GPU, and goes only to nodes that have all `node_labels`.
    `wait_minutes`: how long nodes are waited for where the workers do not fit; null: as the cluster has an autoscaler
    or not.
    """

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    use_gpu: Literal["auto"] | Flag = "auto"
    cpus_per_worker: PositiveInt = 1
    resources_per_worker: dict[Text, PositiveFloat] = {}
    node_labels: dict[LabelKey, LabelValue] = {}
    placement: Literal["pack", "spread"] = "pack"
    wait_minutes: NonNegativeFloat | None = None
    max_failures: CountOrOff = 3

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def is_elastic(self) -> bool:
        return self.min_workers < self.max_workers

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers > self.max_workers:
            raise Contradiction(
                "scaling.num_workers is [min, max], and this min is above the max",
                "scaling.num_workers",
                fix={"scaling.num_workers": [self.max_workers, self.min_workers]},
            )
        return self

    @model_validator(mode="after")
    def _countable(self) -> Self:
        for name, key in _OWN_KEYS.items():
            if name in self.resources_per_worker:
                raise Contradiction(
                    f"scaling.resources_per_worker holds {name}, which has a key of its own",
                    "scaling.resources_per_worker",
                    fix={key: True if name == "GPU" else max(1, int(self.resources_per_worker[name]))},
                )
        if self.node_labels and not isinstance(self.num_workers, int):
            raise Contradiction(
                "scaling.node_labels does not go with an elastic scaling.num_workers: Ray counts nodes for it "
                "without their labels, and would wait for workers that the labelled ones do not hold",
                "scaling.num_workers",
                "scaling.node_labels",
                fix={"scaling.num_workers": self.max_workers},
            )
        return self


class StoreConfig(Section):
    """Where runs and tokens are kept; every node must reach it."""

    path: Text = "./runs"
    keep_checkpoints: PositiveInt = 2


class LimitsConfig(Section):
    max_minutes: PositiveFloat | None = None


class TrackingConfig(Section):
    """Mirrors of the run directory. No secret ever stands here: wandb reads its own environment."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: Text = "sftray"
    entity: Text | None = None
    tags: list[Text] = []


class RunConfig(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    scaling: ScalingConfig = ScalingConfig()
    store: StoreConfig = StoreConfig()
    limits: LimitsConfig = LimitsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _replayable(self) -> Self:
        train = self.train
        if train.replay_seed and "packing" not in train.model_fields_set:
            object.__setattr__(train, "packing", False)
        if train.replay_seed and (wrong := find_unlike_seed(self)):
            what = f"train.replay_seed goes through MiniMind's loop, which has other values of {', '.join(wrong)}"
            raise Contradiction(what, *wrong, "train.replay_seed", fix=wrong)
        return self

    @property
    def global_batch_size(self) -> int:
        """G, the examples of one optimizer step over all workers."""
        train = self.train
        if train.global_batch_size is not None:
            return train.global_batch_size
        assert train.gradient_accumulation_steps is not None  # one of the two is always set
        return self.scaling.max_workers * train.micro_batch_size * train.gradient_accumulation_steps

    def with_fixed_batch(self) -> Self:
        """The same config with G written out, so that a later change of layout leaves it alone."""
        train = self.train.model_copy(
            update={"global_batch_size": self.global_batch_size, "gradient_accumulation_steps": None}
        )
        return self.model_copy(update={"train": train})
