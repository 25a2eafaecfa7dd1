"""What Ray Train's controller asks when workers fail. It runs in the controller's process, and must be quick."""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import UserCallback
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S

from sftray.cluster.elastic import renew_plan, settle_nodes
from sftray.cluster.failures import build_error, decide, read_failure
from sftray.cluster.resources import Placement, look_at_cluster
from sftray.cluster.shortage import describe_shortage
from sftray.train_fn.failure import Failure, WorkerFailed, add_failure, as_failure, read_events, read_failures
from sftray.train_fn.journal import METRICS, Journal

# Ray asks all workers to leave their process group, which one that is frozen or gone cannot do, and waits so long
# for it (30 s by itself). It reads this when it shuts workers down, and takes it from no one else's environment.
_GOODBYE_S = "2"
_TAIL_BYTES = 1 << 16


class FailureCallback(UserCallback):  # type: ignore[misc]  # Ray has no annotations here
    """Lets Ray start the workers again, or ends the run by raising.

    The cause of a failure gets a line in the run's events: written here for a worker that could not do it itself.
    `placement`: of the workers that are started again; without it no look is taken at the nodes that are left.
    """

    def __init__(self, run_dir: Path, max_failures: int, placement: Placement | None = None) -> None:
        self._run_dir, self.max_failures, self._placement = run_dir, max_failures, placement
        self._seen = ""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, _GOODBYE_S)
        events = read_events(self._run_dir)
        attempt = find_attempt(events, worker_exceptions)
        failures = collect_failures(events, worker_exceptions, attempt, find_last_step(self._run_dir))
        history = [failure for failure in read_failures(events) if failure.attempt < attempt]
        decision = decide(failures, history, self.max_failures)
        # While Ray waits for a node to be taken back, it calls again and again.
        seen, self._seen = self._seen, str(worker_exceptions)
        if decision.cause.kind not in ("user", "diverged") and seen != self._seen:
            self._write(decision.cause, events)
        if decision.action == "stop":
            raise build_error(decision, worker_exceptions, history, self.max_failures, self._run_dir)
        if self._placement and seen != self._seen:
            self._look_around(self._placement, attempt)

    def _look_around(self, placement: Placement, attempt: int) -> None:
        """See which nodes are left: an elastic run is planned with these, and one of a fixed number may not fit."""
        if placement.is_elastic:
            settle_nodes()
            renew_plan()
        else:  # beside the start of workers, which with a spare node need not wait until it is known
            arguments = (self._run_dir, placement, attempt)
            threading.Thread(target=tell_shortage, args=arguments, name="shortage", daemon=True).start()

    def _write(self, cause: Failure, events: list[dict[str, Any]]) -> None:
        if not any(e["state"] == "worker_failed" and e["attempt"] == cause.attempt for e in events):
            with contextlib.suppress(OSError):  # what follows from the failure does not depend on its line
                add_failure(Journal(self._run_dir), cause)


def tell_shortage(run_dir: Path, placement: Placement, attempt: int) -> None:
    """Say in the run's events where the workers do not fit any more and so a node is waited for."""
    settle_nodes()
    if (shortage := describe_shortage(placement, look_at_cluster())) is not None:
        with contextlib.suppress(OSError):
            Journal(run_dir).add_event("waiting", attempt, shortage)


def find_attempt(events: list[dict[str, Any]], exceptions: Mapping[int, BaseException]) -> int:
    """The attempt that has just failed: a worker says it, or the last `running`; one further where none ran."""
    said = [error.failure.attempt for error in exceptions.values() if isinstance(error, WorkerFailed)]
    if said:
        return said[0]
    newest = max((event["attempt"] for event in events), default=0)
    states = {event["state"] for event in events if event["attempt"] == newest}
    return newest if "running" in states and "worker_failed" not in states else newest + 1


def collect_failures(
    events: list[dict[str, Any]], exceptions: Mapping[int, BaseException], attempt: int, last_step: int | None
) -> list[Failure]:
    """What is known of each rank that failed. Of a process that ended itself its last word is known."""
    running = next((e for e in events if e["state"] == "running" and e["attempt"] == attempt), None) or {}
    nodes = running.get("nodes", [])
    step = max(running.get("step", 0), last_step or 0)
    frozen = {e["rank"]: e for e in events if e["state"] == "frozen" and e["attempt"] == attempt}
    failures = []
    for rank, error in exceptions.items():
        node = nodes[rank] if rank < len(nodes) else "unknown"
        failure = read_failure(rank, error, attempt, step if running else 0, node)
        if failure.kind == "lost" and rank in frozen:
            failure = as_failure({**frozen[rank], "kind": "frozen", "error": failure.error})
        failures.append(failure)
    return failures


def find_last_step(run_dir: Path) -> int | None:
    """The last step in the run's metrics."""
    with contextlib.suppress(OSError, ValueError, KeyError), (run_dir / METRICS).open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = [line for line in file.read().split(b"\n")[:-1] if line]
        return int(json.loads(lines[-1])["step"]) if lines else None
    return None
