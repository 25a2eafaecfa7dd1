"""The worker function in plain processes of this machine, without Ray: to run it often, and to kill it anywhere.

The processes are forked from one that has imported everything and done nothing, so each starts in a moment.
"""

import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sftray.train_fn.errors import UserError

# The last stands for all architectures: they import the same things.
_PRELOADED = [
    "sftray.train_fn.worker",
    "torch.distributed",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.integrations.hub_kernels",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
]
_JOIN_TIMEOUT = timedelta(seconds=60)
_LOOK_S = 0.001  # between two looks for the moment of a kill
_DEADLINE_S = 600.0  # of one run: proofs are of few steps


@dataclass(frozen=True)
class Kill:
    """SIGKILL of these ranks, so many seconds after the start, and then as soon as `when` says so."""

    after: float
    ranks: tuple[int, ...]
    when: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Ended:
    """How processes ended: `killed`, or all `finished` (else `why` says what the first failure was), and how long
    it took."""

    finished: bool
    killed: bool
    seconds: float
    why: str = ""


def run_processes(job: dict[str, Any], world_size: int, kill: Kill | None = None) -> Ended:
    """Run `train_worker(job)` in `world_size` processes; all are gone when it returns.

    The kill happens only if they still run by then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory(prefix="sftray-") as folder:
        processes = [
            context.Process(target=_work, args=(job, rank, world_size, folder), daemon=True)
            for rank in range(world_size)
        ]
        started = time.monotonic()
        with _end_all(processes):
            for process in processes:
                process.start()
            killed = kill is not None and _kill(processes, kill, started)
            if not killed:
                _wait(processes, started + _DEADLINE_S)
            seconds = time.monotonic() - started
            finished = all(process.exitcode == 0 for process in processes)
        return Ended(finished and not killed, killed, seconds, "" if finished else _read_failure(Path(folder)))


def _wait(processes: Sequence[BaseProcess], deadline: float) -> bool:
    """Wait until all have ended, or one has failed, or the time has come; False where it was the time."""
    while running := [process for process in processes if process.exitcode is None]:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        multiprocessing.connection.wait([process.sentinel for process in running], left)
        if any(process.exitcode not in (None, 0) for process in processes):
            break
    return True


def _kill(processes: Sequence[BaseProcess], kill: Kill, started: float) -> bool:
    """Wait for the moment, and kill; False where they had ended before."""
    if _wait(processes, started + kill.after):
        return False
    while not kill.when():
        if _wait(processes, time.monotonic() + _LOOK_S):
            return False
    for rank in kill.ranks:
        processes[rank].kill()
    return True


@contextmanager
def _end_all(processes: Sequence[BaseProcess]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _work(job: dict[str, Any], rank: int, world_size: int, folder: str) -> None:
    """One process. Its own output goes to a file: that of a proof is a table."""
    out = os.open(Path(folder, f"out-{rank}"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch
    import torch.distributed as dist

    from sftray.train_fn.door import open_alone, open_member
    from sftray.train_fn.worker import train_worker

    torch.set_num_threads(1)
    try:
        if world_size == 1:
            train_worker(job, open_alone(_ignore))
            return
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, f"file://{folder}/join", _JOIN_TIMEOUT, rank=rank, world_size=world_size)
        train_worker(job, open_member(rank, world_size, _ignore))
        dist.destroy_process_group()
    except UserError as error:
        Path(folder, f"failed-{rank}").write_text(str(error), encoding="utf-8")
        raise


def _ignore(metrics: dict[str, float], folder: Path | None) -> None:
    """The run's directory has it all."""


def _read_failure(folder: Path) -> str:
    """What the processes said of their failure: words for a person if there are any, else the last line of output."""
    for pattern in ("failed-*", "out-*"):
        texts = [path.read_text(errors="replace").strip() for path in sorted(folder.glob(pattern))]
        if said := [text for text in texts if text]:
            return said[0] if pattern == "failed-*" else said[0].splitlines()[-1]
    return "no word was left"
