"""The settings of a run: closed models, one for each thing they configure.

Every key is public. A model here checks one value at a time and what follows from the config alone;
what needs the file system, the tokenizer or the cluster is checked where it is used.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
CountOrOff = Annotated[int, Field(ge=0, strict=True)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A closed group of settings: unknown keys are errors, values are never coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """Which model: a pretrained one by `name`, or an untrained one by `scratch`."""

    name: Text | None = None
    scratch: dict[str, Any] | None = None
    tokenizer: Text | None = None
    chat_template: Text | None = None
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    gradient_checkpointing: Annotated[bool, Field(strict=True)] = False
    compile: Annotated[bool, Field(strict=True)] = False
    aux_loss_coef: Annotated[float, Field(ge=0.0)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give exactly one of model.name and model.scratch")
        if self.scratch is not None and self.tokenizer is None:
            raise ValueError("model.scratch needs model.tokenizer")
        if self.scratch is not None and not isinstance(self.scratch.get("architecture"), str):
            raise ValueError("model.scratch needs architecture, such as llama")
        return self


class DataConfig(Section):
    """Which conversations, and what is done with them before they are tokens."""

    train: Text | Annotated[list[Text], Field(min_length=1)]
    validation: Text | Annotated[list[Text], Field(min_length=1)] | Annotated[
        float, Field(gt=0.0, lt=1.0)
    ] | None = None
    max_seq_len: Annotated[int, Field(ge=2, strict=True)] = 1024
    overlong: Literal["turns", "truncate", "drop", "error"] = "turns"
    train_on: Literal["all", "last"] = "all"


class OptimConfig(Section):
    """AdamW and its learning rate."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 2.0e-5
    schedule: Literal["cosine", "linear", "constant", "minimind"] = "cosine"
    warmup_ratio: Ratio = 0.03
    min_lr_ratio: Ratio = 0.1
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0


class TrainConfig(Section):
    """The loop. Exactly one of `gradient_accumulation_steps` and `global_batch_size` is set afterwards."""

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    micro_batch_size: PositiveInt = 4
    gradient_accumulation_steps: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    packing: Annotated[bool, Field(strict=True)] = True
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 1
    log_every: CountOrOff = 10
    eval_every: CountOrOff = 100
    save_every: CountOrOff = 100

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.gradient_accumulation_steps is not None and self.global_batch_size is not None:
            raise ValueError("give one of train.gradient_accumulation_steps and train.global_batch_size, not both")
        if self.gradient_accumulation_steps is None and self.global_batch_size is None:
            object.__setattr__(self, "gradient_accumulation_steps", 1)
        return self


class ScalingConfig(Section):
    """How many workers, and on what. Layout only: it never changes what is learned."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    use_gpu: Literal["auto"] | Annotated[bool, Field(strict=True)] = "auto"
    cpus_per_worker: PositiveInt = 1
    max_failures: CountOrOff = 3

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError("scaling.num_workers is [min, max]: min must not be above max")
        return self


class StoreConfig(Section):
    """Where runs and tokens are kept; every node must reach it."""

    path: Text = "./runs"
    keep_checkpoints: PositiveInt = 2


class LimitsConfig(Section):
    max_minutes: Annotated[float, Field(gt=0.0)] | None = None


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
