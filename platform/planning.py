"""Checking everything and training nothing: what a run would be, cost, and learn from."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from sftray.platform.cadence import Cadence, describe_cadence, recommend_cadence
from sftray.platform.driver import fix_batch, prepare_run, settle_paths
from sftray.platform.plan_cluster import ClusterPlan, describe_cluster, list_problems, plan_cluster
from sftray.platform.run_directory import check_name_is_free, make_name, open_store
from sftray.platform.terminal import show_controls
from sftray.train_fn.batch import Example
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ClusterError
from sftray.train_fn.loader import RunPlan
from sftray.train_fn.model import count_parameters_of, load_model_config
from sftray.train_fn.prepare import Prepared
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import LoadedTokenizer, load_tokenizer
from sftray.train_fn.trainer import build_run_plan, refuse_processor

_PROCESS_BYTES = 600 << 20  # Python, torch and transformers themselves, as seen on Linux


@dataclass(frozen=True)
class Plan:
    """A run as it would be."""

    resolved: Resolved
    prepared: Prepared
    run: RunPlan
    num_parameters: int
    memory_bytes: int
    cluster: ClusterPlan
    tokens: list[tuple[str, bool]]  # of the first example in training order: its text, and whether it is a target

    @property
    def cadence(self) -> Cadence:
        return recommend_cadence(self.num_parameters, self.resolved.config.scaling.max_workers)

    @property
    def shortage(self) -> ClusterError | None:
        """Why the run would be refused by the cluster."""
        return self.cluster.shortage

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.resolved.config.model_dump(mode="json"),
            "origin": self.resolved.origin,
            "data": self.prepared.receipt,
            "total_steps": self.run.total_steps,
            "global_batch_size": self.run.global_batch_size,
            "num_parameters": self.num_parameters,
            "memory_bytes_per_worker": self.memory_bytes,
            "recommended_save_seconds": self.cadence.seconds,
            "fits": self.cluster.fits,
            "shortage": list_problems(self.cluster),
            "cluster": self.cluster.to_json(),
            "example": [{"text": text, "target": target} for text, target in self.tokens],
        }


def plan_run(resolved: Resolved, label: str, console: Console) -> Plan:
    """Look at everything a run would use. Tokens are prepared and kept, so that the run finds them.

    Raises:
        UserError: what `train` would raise before its first step; a shortage of workers stands in the plan.
    """
    resolved = settle_paths(resolved)
    config = resolved.config
    store = open_store(config.store)
    check_name_is_free(store, config.name)
    prepared = prepare_run(config, store, console)
    loaded = load_tokenizer(config.model)
    model_config = load_model_config(config.model, loaded)
    num_parameters = count_parameters_of(model_config)
    train = TokenStore(prepared.folder, "train")
    run = build_run_plan(config, train, config.scaling.max_workers)
    cluster = plan_cluster(config.scaling)
    if cluster.placement is not None:
        refuse_processor(config, cluster.placement.use_gpu)
    return Plan(
        resolved=fix_batch(resolved, config.name or make_name(label)),
        prepared=prepared,
        run=run,
        num_parameters=num_parameters,
        memory_bytes=estimate_memory(config, model_config, num_parameters, prepared.receipt),
        cluster=cluster,
        tokens=_spell(train[run.find_first()], loaded),
    )


def estimate_memory(config: RunConfig, model_config: Any, num_parameters: int, receipt: dict[str, Any]) -> int:
    """Bytes of one worker at its peak, to within some ten percent for usual shapes.

    Weights, gradients and AdamW's two moments in fp32 are 16 bytes a parameter, autocast's copies of the
    weights 2 more. Activations by Korthikanti et al., 2022 (arXiv 2205.05198, without the attention matrix):
    34 bytes for each token, layer and hidden unit at 16 bits, and the logits of the target positions alone,
    as values, their fp32 copy and their gradient.
    """
    half = config.train.precision != "fp32"
    text = model_config.get_text_config()
    tokens = config.train.micro_batch_size * config.data.max_seq_len
    layers, hidden, vocab_size = text.num_hidden_layers, text.hidden_size, text.vocab_size
    per_unit = (2 if half else 4) if config.model.gradient_checkpointing else (34 if half else 68)
    counts = receipt["splits"]["train"]
    targets = tokens * counts["target_tokens"] / counts["tokens"]
    weights = num_parameters * (18 if half else 16)
    return int(_PROCESS_BYTES + weights + tokens * layers * hidden * per_unit + targets * vocab_size * 12)


def _spell(example: Example, loaded: LoadedTokenizer) -> list[tuple[str, bool]]:
    texts = [loaded.tokenizer.decode([token]) for token in example.input_ids.tolist()]
    return list(zip(texts, example.loss_mask.tolist(), strict=True))


def show_plan(plan: Plan, console: Console) -> None:
    config, run = plan.resolved.config, plan.run
    rates = [run.compute_rate(s, config.optim) for s in (0, run.total_steps // 2, run.total_steps - 1)]
    lines = [
        f"model: {plan.num_parameters / 1e6:,.2f}M parameters, {config.train.precision}",
        f"steps: {run.total_steps:,} of {run.global_batch_size} examples, {config.train.epochs} epoch(s) "
        f"of {len(run.lengths):,} examples; {run.count_examples(run.total_steps):,} examples in all",
        f"learning rate: {rates[0]:.3g} at the first step, {rates[1]:.3g} in the middle, {rates[2]:.3g} at the last",
        *_describe_first_step(plan),
        f"memory: about {plan.memory_bytes / 2**30:.2f} GB for each worker at its peak (an estimate)",
        describe_cadence(plan.cadence, config.train.save_every),
        *describe_cluster(plan.cluster),
        "one example; what is learned is " + ("in green" if console.is_terminal else "in ⟦ ⟧") + ":",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    console.print(_paint(plan.tokens, console.is_terminal), soft_wrap=True)


def _describe_first_step(plan: Plan) -> list[str]:
    """How it is laid out; nothing where the workers do not fit, who may be far too many to lay out for."""
    if plan.shortage is not None:
        return []
    first = plan.run.plan(0)
    counts = [len(forwards) for forwards in first.micro_batches]
    forwards = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return [
        f"first step: {forwards} forwards on each worker, {first.num_tokens:,} tokens, "
        f"{first.num_target_tokens:,} targets, {1 - first.num_tokens / first.padded_tokens:.1%} padding"
    ]


def _paint(tokens: list[tuple[str, bool]], colour: bool) -> Text:
    """Token by token: on a terminal targets in green, tokens told apart by shades; else targets in brackets."""
    text = Text("  ")
    for index, (written, target) in enumerate(tokens):
        token = show_controls(written)
        if colour:
            shade = ("black on green", "black on bright_green") if target else ("dim", "dim underline")
            text.append(token, style=shade[index % 2])
            continue
        starts = target and (index == 0 or not tokens[index - 1][1])
        ends = target and (index + 1 == len(tokens) or not tokens[index + 1][1])
        text.append(("⟦" if starts else "") + token + ("⟧" if ends else ""))
    return text
