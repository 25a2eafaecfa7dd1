"""Proving, on a person's own config, that layout does not change what is learned and that nothing is lost."""

import json
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sftray.cluster.resources import look_at_this_machine
from sftray.platform.driver import fix_batch, prepare_run, settle_paths
from sftray.platform.rehearsal import (
    Rehearsal,
    copy_until,
    finish,
    finish_through_kills,
    has_whole_ledger,
    hash_state,
    read_losses,
    read_values,
    shorten,
)
from sftray.platform.run_directory import open_store, take_run_directory
from sftray.platform.terminal import plain
from sftray.train_fn.config import RunConfig
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.places import find_bucket, write_whole

LOSS_TOLERANCE = 1e-6  # relative, fp32: the promise between two layouts
CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class VerifyOptions:
    """`kills`: runs that are killed at random, up to three times each."""

    steps: int = 6
    kills: int = 3
    seed: int = 1


@dataclass(frozen=True)
class Check:
    """One promise. `holds` is None where it is not made for this model; `found` says what was seen."""

    name: str
    holds: bool | None
    found: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    path: Path
    checks: list[Check]
    facts: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(check.holds is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        checks = [asdict(check) for check in self.checks]
        return {"holds": self.holds, "path": str(self.path), **self.facts, "checks": checks}


def verify_run(resolved: Resolved, label: str, options: VerifyOptions, console: Console) -> Certificate:
    """Rehearse the config, compare, and write the certificate into the store.

    Raises:
        UserError: the config cannot be trained at all.
    """
    if resolved.config.train.replay_seed:
        raise ConfigError(
            Problem(
                "train.replay_seed: MiniMind's loop keeps none of the promises that are verified",
                why="what it learns depends on the micro-batch, and it goes on one worker alone",
                fix="train.replay_seed=false",
            )
        )
    resolved = settle_paths(resolved)
    store = open_store(resolved.config.store)
    prepared = prepare_run(resolved.config, store, console)
    workers = count_workers(resolved.config)
    kept = take_run_directory(store, None, f"verify-{resolved.config.name or label}")
    folder = Path(tempfile.mkdtemp(prefix="sftray-verify-")) if find_bucket(kept) else kept
    config = shorten(fix_batch(resolved, "rehearsal").config, options.steps)
    proof = _Proof(Rehearsal(folder, config, prepared, workers), options, find_exemption(config))
    started = time.time()
    checks = []
    for check in proof.run():
        checks.append(check)
        console.print(_mark(check), plain(f"{check.name}: {check.found}"), soft_wrap=True)
    facts = {**_describe_here(), "seconds": round(time.time() - started, 1), "config": config.model_dump(mode="json")}
    certificate = Certificate(kept / CERTIFICATE, checks, {**facts, **asdict(options), "num_workers": workers})
    write_whole(certificate.path, json.dumps(certificate.to_json(), indent=1, ensure_ascii=False))
    if certificate.holds:  # what failed is left for whoever looks for the reason
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    return certificate


def count_workers(config: RunConfig) -> int:
    """Workers of a rehearsal: those of the config, at most as many as this machine has CPUs or GPUs for."""
    (here,) = look_at_this_machine()
    return max(1, min(config.scaling.max_workers, int(here.gpus or here.cpus)))


def find_exemption(config: RunConfig) -> str | None:
    """Why another layout may learn otherwise with this model, which is then said and not promised."""
    from sftray.train_fn.balance import choose_balance
    from sftray.train_fn.model import load_model_config
    from sftray.train_fn.tokenizer import load_tokenizer

    model = load_model_config(config.model, load_tokenizer(config.model))
    dropout = [
        key for key, value in model.to_dict().items() if _is_dropout(key) and isinstance(value, float) and value
    ]
    if dropout:
        return f"{dropout[0]} draws other random numbers on another layout"
    form, weight = choose_balance(model, config.model.aux_loss_coef)
    if weight and form == "batch":
        return "the auxiliary loss of this model is one of each batch"
    return None


def _is_dropout(key: str) -> bool:
    return "dropout" in key or key.endswith("_pdrop")


class _Proof:
    """The checks in their order; the first makes the run that the others are compared with."""

    def __init__(self, rehearsal: Rehearsal, options: VerifyOptions, exemption: str | None) -> None:
        self._rehearsal, self._options, self._exemption = rehearsal, options, exemption
        self._folder, self._workers = rehearsal.folder, rehearsal.num_workers
        self._straight = self._folder / "straight"
        self._seconds = 0.0

    def run(self) -> Iterable[Check]:
        steps: list[Callable[[], Check]] = [
            self._check_repeat,
            self._check_ledger,
            self._check_isolation,
            self._check_layouts,
            self._check_kills,
            self._check_other_count,
        ]
        for check in steps:
            yield check()

    def _check_repeat(self) -> Check:
        self._seconds = finish(self._rehearsal.start("straight"), self._workers).seconds
        finish(self._rehearsal.start("again"), self._workers)
        same = self._is_equal("again")
        said = f"two runs of {self._options.steps} steps on {self._workers} worker(s) "
        return Check("the same bits twice", same, said + ("are bit-equal" if same else "DIFFER"))

    def _is_equal(self, name: str) -> bool:
        other = self._folder / name
        same = hash_state(other) == hash_state(self._straight)
        return same and read_values(other) == read_values(self._straight)

    def _check_ledger(self) -> Check:
        whole = has_whole_ledger(self._straight, self._options.steps)
        said = "every step trained on its own examples, each once" if whole else "the chain of examples is BROKEN"
        return Check("each example in its turn", whole, said)

    def _check_isolation(self) -> Check:
        from sftray.train_fn.model import LEAK_TOLERANCE, measure_leak_of

        leak = measure_leak_of(self._rehearsal.config.model)
        name = "packed examples do not see each other"
        if leak <= LEAK_TOLERANCE:
            return Check(name, True, f"logits move by {leak:.1g} when a neighbour changes", {"leak": leak})
        holds = None if not self._rehearsal.config.train.packing else False
        return Check(name, holds, f"logits move by {leak:.1g}: train.packing must be false", {"leak": leak})

    def _check_layouts(self) -> Check:
        """Other numbers of workers, sizes of micro-batches and packing, in fp32, against one worker as configured."""
        train = self._rehearsal.config.train
        sizes = sorted({train.micro_batch_size, max(1, train.micro_batch_size // 2)})
        packings = [True, False] if train.packing else [False]
        worlds = sorted({1, 2, self._workers} & set(range(1, max(2, self._workers) + 1)))
        layouts = [(w, size, packing) for w in worlds for size in sizes for packing in packings]
        traces = {}
        for workers, size, packing in layouts:
            name = f"layout-{workers}x{size}{'-packed' if packing else ''}"
            changes = {"precision": "fp32", "micro_batch_size": size, "packing": packing, "save_every": 0}
            finish(self._rehearsal.start(name, {"train": changes}), workers)
            traces[name] = read_losses(self._folder / name)
        worst_loss, worst_norm = _compare(list(traces.values()))
        holds = worst_loss <= LOSS_TOLERANCE and worst_norm <= LOSS_TOLERANCE
        said = (
            f"{len(traces)} layouts agree to {worst_loss:.1g} in loss, {worst_norm:.1g} in the first gradient's norm"
        )
        facts = {"layouts": list(traces), "loss": worst_loss, "gradient": worst_norm}
        return self._excuse(Check("layout does not change meaning (fp32)", holds, said, facts))

    def _excuse(self, check: Check) -> Check:
        if check.holds or self._exemption is None:
            return check
        return Check(check.name, None, f"{check.found}; not promised: {self._exemption}", check.facts)

    def _check_kills(self) -> Check:
        draw = random.Random(self._options.seed)
        kills, different, broken = 0, 0, 0
        for number in range(self._options.kills):
            name = f"killed-{number}"
            job = self._rehearsal.start(name)
            kills += finish_through_kills(job, self._workers, self._seconds, draw)
            different += not self._is_equal(name)
            broken += not has_whole_ledger(self._folder / name, self._options.steps)
        runs = self._options.kills
        said = f"{runs} run(s) hit by {kills} kill(s): {runs - different} bit-equal to the straight one"
        facts = {"runs": runs, "kills": kills, "different": different, "broken_ledgers": broken}
        return Check("kills lose nothing", not different and not broken, said, facts)

    def _check_other_count(self) -> Check:
        """Half of the run on the config's workers, the rest on another number, in fp32."""
        half = max(2, self._options.steps // 4 * 2)
        others = 1 if self._workers > 1 else 2
        finish(self._rehearsal.start("fp32", {"train": {"precision": "fp32"}}), self._workers)
        copy_until(self._folder / "fp32", self._folder / "moved", half)
        finish(self._rehearsal.start("moved", {"train": {"precision": "fp32"}}), others)
        worst, _ = _compare([read_losses(self._folder / "fp32"), read_losses(self._folder / "moved")])
        whole = has_whole_ledger(self._folder / "moved", self._options.steps)
        said = f"{self._workers} worker(s), from step {half} on {others}: losses agree to {worst:.1g}"
        check = Check(
            "resuming on another number of workers", worst <= LOSS_TOLERANCE and whole, said, {"loss": worst}
        )
        return self._excuse(check)


def _compare(traces: list[list[tuple[int, float, float]]]) -> tuple[float, float]:
    """The largest relative difference of any loss, and of the first gradient's norm, from the first trace's.

    Infinite where the steps are not the same.
    """
    first = traces[0]
    if not first or any([row[0] for row in trace] != [row[0] for row in first] for trace in traces):
        return float("inf"), float("inf")
    losses = [_differ(row[1], other[1]) for trace in traces[1:] for row, other in zip(first, trace, strict=True)]
    return max(losses, default=0.0), max((_differ(first[0][2], trace[0][2]) for trace in traces[1:]), default=0.0)


def _differ(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), 1e-12)


def _describe_here() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("sftray", "torch", "transformers", "ray")
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "time": when,
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _mark(check: Check) -> Text:
    return {True: plain("holds ", "green"), False: plain("FAILS ", "bold red"), None: plain("–     ", "dim")}[
        check.holds
    ]


def show_certificate(certificate: Certificate, console: Console) -> None:
    """What the certificate says together; the checks were shown as they came."""
    verdict = "all promises hold on this config" if certificate.holds else "a promise does NOT hold on this config"
    console.print(plain(verdict, "bold green" if certificate.holds else "bold red"), soft_wrap=True)
    console.print(plain(f"certificate: {certificate.path}"), soft_wrap=True)
