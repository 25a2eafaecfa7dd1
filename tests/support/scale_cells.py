"""What grows with workers and with examples, run by the project's own code as one process of many would run it.

Each function is one cell of `tests/bench/scale.py`: it takes sizes and gives processor seconds,
counts and bytes.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sftray.platform.run_files import load_metrics
from sftray.train_fn.attempts import open_attempt
from sftray.train_fn.checkpoint import Checkpoint, Manifest
from sftray.train_fn.evaluation import plan_evaluation
from sftray.train_fn.failure import Failure, add_failure, find_last_failure, read_events
from sftray.train_fn.journal import EVENTS, METRICS, Journal
from sftray.train_fn.lease import BEAT_S, Lease, keep_lease, look_here, take_lease
from sftray.train_fn.ledger import START, compute_chain, extend_chain, tally_examples
from sftray.train_fn.loader import RunPlan, count_total_steps
from sftray.train_fn.memory import measure_peak, reset_peak
from sftray.train_fn.order import order_step
from sftray.train_fn.planner import Budget
from sftray.train_fn.rng import collect_rng
from sftray.train_fn.store_posix import FolderStore
from sftray.train_fn.token_store import SCHEMA, SplitWriter, TokenStore
from sftray.train_fn.trainer_state import load_rng, save_trainer_state

EXAMPLES_PER_WORKER = 8  # the global batch is so many times the workers
_BUDGET = Budget(tokens=4 * 1024, examples=4, packing=True)
_REPEATS = 3
_CPU = torch.device("cpu")
_ROWS = 256  # as preparation writes them
_ROW = {
    **{
        "epoch": 0,
        "progress": 0.125,
        "examples": 1_000_000,
        "train/loss": 1.2345678901,
        "train/grad_norm": 0.87654321,
    },
    **{"train/target_tokens": 123456, "optim/learning_rate": 1.9e-5, "perf/step_seconds": 1.23456789},
    **{"perf/tokens_per_second": 987654.321, "perf/padding_fraction": 0.0312345, "ledger": START, "time": 1.7e9},
}


class TiledNumbers:
    """A number of each of any many examples, as an array would give them, in the memory of a million."""

    def __init__(self, numbers: NDArray[np.int32], num_examples: int) -> None:
        self.numbers, self.num_examples = numbers, num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, examples: NDArray[np.int64]) -> NDArray[np.int32]:
        return self.numbers[examples % len(self.numbers)]


def draw_lengths(count: int) -> NDArray[np.int32]:
    """Tokens of conversations: 245 in the median, 8 to 1024."""
    return np.clip(np.exp(np.random.default_rng(0).normal(5.5, 0.8, count)), 8, 1024).astype(np.int32)


def build_plan(lengths: Any, workers: int) -> RunPlan:
    batch = EXAMPLES_PER_WORKER * workers
    total_steps = count_total_steps(len(lengths), batch, 3)
    return RunPlan(lengths, lengths, 1, batch, total_steps, workers, _BUDGET)


def time_least(act: Callable[[int], object], count: int = _REPEATS) -> float:
    """The least processor seconds of `act(0)`, `act(1)`, …: what else the machine does is hardly in them."""
    seconds = []
    for turn in range(count):
        started = time.process_time()
        act(turn)
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure_growth(cell: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """The cell's answer with `peak_mb`: by how much it made this process grow at its peak."""

    @wraps(cell)
    def measured(**sizes: int) -> dict[str, float]:
        reset_peak(_CPU)
        before = measure_peak(_CPU)
        found = cell(**sizes)
        return {**found, "peak_mb": (measure_peak(_CPU) - before) / 2**20}

    return measured


def plan_steps(workers: int, examples: int) -> dict[str, float]:
    """What each rank does for a step besides training, of steps all over a run of three epochs."""
    lengths = TiledNumbers(draw_lengths(min(examples, 1 << 20)), examples)
    reset_peak(_CPU)
    before = measure_peak(_CPU)
    run = build_plan(lengths, workers)
    steps = [run.total_steps * turn // _REPEATS for turn in range(_REPEATS)]
    first = time_least(lambda turn: order_step(run.seed, turn, run.global_batch_size, examples))
    last = time_least(lambda turn: order_step(run.seed, run.total_steps - 1 - turn, run.global_batch_size, examples))
    share = time_least(lambda turn: run.plan(steps[turn]))
    plan = run.plan(steps[0])
    ranks = [workers * turn // _REPEATS for turn in range(_REPEATS)]
    own = time_least(lambda turn: plan.lay_out(ranks[turn]))
    mine = [i for rows in plan.lay_out(0) for row in rows for i in row]
    ledger = time_least(lambda turn: extend_chain(START, turn, tally_examples(mine)), 101)
    peak = (measure_peak(_CPU) - before) / 2**20
    return {
        **{"seek_first_s": first, "seek_last_s": last, "plan_s": share, "rank_s": own, "ledger_s": ledger},
        **{"step_s": share + own + ledger, "all_ranks_s": time_least(lambda _: plan.micro_batches, 1)},
        **{"peak_mb": peak, "padding": 1 - plan.num_tokens / plan.padded_tokens},
    }


@measure_growth
def plan_validation(workers: int, examples: int) -> dict[str, float]:
    """The forwards of rank 0 over the validation examples."""
    lengths, found = draw_lengths(examples), []
    seconds = time_least(lambda _: found.append(plan_evaluation(lengths, 0, workers, _BUDGET)), 1)
    return {"seconds": seconds, "forwards": len(found[0])}


@measure_growth
def check_ledger(examples: int, batch: int) -> dict[str, float]:
    """The chain of one epoch anew, as `runs show` does."""
    steps = -(-examples // batch)
    chain = compute_chain(1, batch, examples)
    return {"seconds": time_least(lambda _: [next(chain) for _ in range(steps)][-1], 1), "steps": steps}


class CountingStore(FolderStore):
    """Counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("list_files", "list_folders", "read", "write", "create", "delete"):
            self.asked[name] += 1
        return super().__getattribute__(name)


def beat(attempts: int) -> dict[str, float]:
    """The lease of a run that has been started so often. Its owner alone beats, for any number of workers."""
    with TemporaryDirectory() as folder:
        store = CountingStore(Path(folder))
        number, record = take_lease(store, "run", look_here())
        for _ in range(attempts):
            open_attempt(store, "run", number)
        store.asked.clear()
        seconds = time_least(lambda turn: keep_lease(store, Lease(number), record, float(turn)), 11)
        asked = store.asked.total() / 11
        taking = time_least(lambda _: open_attempt(store, "run", number))
    return {"seconds": seconds, "requests_per_minute": asked * 60 / BEAT_S, "new_attempt_s": taking}


@measure_growth
def restart(workers: int, attempts: int) -> dict[str, float]:
    """The events of a run whose workers were started so often, and the random states of all ranks."""
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        pids, nodes = list(range(10_000, 10_000 + workers)), [f"node-{rank // 8:04d}" for rank in range(workers)]
        for attempt in range(1, attempts + 1):
            journal.add_event("running", attempt, step=attempt, pids=pids, nodes=nodes, num_parameters=10**9)
            add_failure(journal, Failure("lost", 0, attempt, attempt, "node-0000", "", "its process died"))
        found = {
            "event_s": time_least(lambda turn: journal.add_event("checkpoint", attempts, step=turn)),
            "count_s": time_least(lambda _: journal.count_attempts()),  # by every rank
            "why_s": time_least(lambda _: find_last_failure(read_events(journal.folder))),
            "events_mb": (journal.folder / EVENTS).stat().st_size / 2**20,
        }
        own = collect_rng(_CPU)
        rng = {f"rank-{rank}.{source}": state.clone() for rank in range(workers) for source, state in own.items()}
        at = Checkpoint(Path(folder), Manifest(1, 1, "", "", None))
        found["rng_mb"] = sum(state.nbytes for state in rng.values()) / 2**20
        found["rng_save_s"] = time_least(lambda _: save_trainer_state(at.folder, {}, rng, {}), 1)
        found["rng_load_s"] = time_least(lambda turn: load_rng(at, turn % workers))
    return found


@measure_growth
def log_metrics(rows: int) -> dict[str, float]:
    """A row more where so many stand already, and reading them all."""
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        started = time.process_time()
        for step in range(rows):
            journal.add_metrics({"step": step, **_ROW})
        seconds = (time.process_time() - started) / rows
        size = (journal.folder / METRICS).stat().st_size / rows
        reading = time_least(lambda _: load_metrics(journal.folder), 1)
        more = time_least(lambda turn: journal.add_metrics({"step": rows + turn, **_ROW}), 101)
    return {"row_s": seconds, "next_row_s": more, "row_bytes": size, "read_row_s": reading / rows}


def open_tokens(examples: int) -> dict[str, float]:
    """Opening a token store of so many examples, of two tokens each: what each process of a run does once."""
    with TemporaryDirectory() as folder:
        writer = SplitWriter(Path(folder, "train-00000.arrow"))
        some = dict(zip(SCHEMA.names, ([1, 2], [False, True], 1, 0, 1, 1), strict=True))
        for start in range(0, examples, _ROWS):
            count = min(_ROWS, examples - start)
            writer.write({name: [value] * count for name, value in some.items()})
        writer.close()
        before, started = read_own_bytes(), time.process_time()
        store = TokenStore(Path(folder), "train")
        seconds, grown = time.process_time() - started, read_own_bytes() - before
    return {"seconds": seconds, "bytes_per_example": grown / len(store)}


def read_own_bytes() -> int:
    """Memory of this process alone, without the files that it has mapped."""
    resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


CELLS: dict[str, Callable[..., dict[str, float]]] = {
    cell.__name__: cell
    for cell in (plan_steps, plan_validation, check_ledger, beat, restart, log_metrics, open_tokens)
}
