"""Workers that stay for the next trial: the process that directs trials keeps them, and gives them job after job.

To start workers costs them a Python, Ray, torch and the model's code; a job costs them a file. The mailbox is a
folder that all nodes reach: `job-0001.json` from the director, `outcome-0001.json` from rank 0, and so on, and `end`.
Ray Train knows of one run, which lasts as long as the crew does.

A director that is killed takes its workers with it, but what they had reserved stays reserved for as long as the
driver lives (Ray's own remedy needs its dashboard). So rank 0 leaves the number of the placement group in the
mailbox, and the director a lock that falls with it: the next crew frees what it finds unlocked.
"""

import contextlib
import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from sftray.cluster.crew_mail import LOOK_EVERY_S, Judge, open_mailbox, pause_between_looks
from sftray.cluster.failure_callback import FailureCallback
from sftray.cluster.launch import run_function
from sftray.cluster.resources import Placement
from sftray.train_fn.distributed import share_first
from sftray.train_fn.errors import ClusterError, Problem
from sftray.train_fn.failure import read_events, read_failures
from sftray.train_fn.places import as_path, remove_tree, write_whole

CREWS = ".crews"  # a folder in the sweep's directory; the driver removes what is left of it

_END, _GROUP = "end", "placement-group"
# Workers who are given nothing for so long go home: others may wait for their CPUs. The others of rank 0 wait for it
# in a collective, so it is well below the time-out of one.
_IDLE_S = 30.0
_GOODBYE_S = 8.0  # Tune gives a director ten seconds to end


class CrewLost(ClusterError):
    """Workers were lost that had nothing to do."""


class Crew:
    """Workers of one placement, from the first job on; of use until a job of theirs failed."""

    def __init__(self, home: Path, placement: Placement, max_failures: int, idle_s: float = _IDLE_S) -> None:
        self.folder = home / f"workers-{uuid.uuid4().hex[:12]}"
        self._give_up = open_mailbox(self.folder)
        self._number = 0
        self._has_room, self._looked = False, -math.inf
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._direct, args=(placement, max_failures, idle_s), daemon=True)
        self._thread.start()

    def _direct(self, placement: Placement, max_failures: int, idle_s: float) -> None:
        box = {"folder": str(self.folder), "idle_s": idle_s}
        try:
            run_function(serve, box, self.folder, placement, CrewFailures(self.folder, max_failures))
        except BaseException as error:  # handed to the thread that waits
            self._error = error

    @property
    def is_there(self) -> bool:
        return self._thread.is_alive()

    def take(self, job: dict[str, Any], meanwhile: Callable[[], None]) -> dict[str, Any] | None:
        """What rank 0 returned of `train_worker(job)`; None where the workers were gone before they saw the job.

        `meanwhile` is called at short intervals, the last time when the job has ended. Raises what ended the crew.
        """
        self._number += 1
        outcome = _outcome_file(self.folder, self._number)
        _put(_job_file(self.folder, self._number), job)
        while self.is_there and not outcome.exists():
            self._thread.join(pause_between_looks(self.folder))
            meanwhile()
            self._make_room()
        meanwhile()
        if outcome.exists():
            return _read(outcome)
        if self._error is None or isinstance(self._error, CrewLost):
            return None
        raise self._error

    def _make_room(self) -> None:
        """As long as the workers have no room, it may be that a crew whose director was killed holds it."""
        if self._has_room or time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):  # a bucket that does not answer is asked again
            self._has_room = (self.folder / _GROUP).exists()
            free_lost(self.folder.parent, others_than=self.folder)

    def dismiss(self) -> None:
        """Let the workers go, which frees what they hold; those that are at a job end with this process."""
        (self.folder / _END).touch()
        self._thread.join(_GOODBYE_S)
        if not self.is_there:  # else it is for the next crew to free
            self._give_up()
            remove_tree(self.folder)


_crew: Crew | None = None  # of this process
_judge = Judge()


def run_on_crew(
    job: dict[str, Any], placement: Placement, max_failures: int, meanwhile: Callable[[], None]
) -> dict[str, Any]:
    """`train_worker(job)` on the workers that are there, or on new ones; they stay, unless some failed in this job.

    Placement and number of failures are the same for all jobs of a process. Raises: as `run_workers` does.
    """
    global _crew
    run_dir = as_path(job["run_dir"])
    failures = len(read_failures(read_events(run_dir)))
    try:
        for _ in range(2):  # they may go home in this very moment
            if _crew is None or not _crew.is_there:
                dismiss()
                free_lost(run_dir.parent / CREWS)
                _crew = Crew(run_dir.parent / CREWS, placement, max_failures)
            if (outcome := _crew.take(job, meanwhile)) is not None:
                break
        else:
            raise RuntimeError("new workers went home without a look at their job")
    except BaseException:
        dismiss()
        raise
    if len(read_failures(read_events(run_dir))) > failures:
        dismiss()  # Ray Train counts failures, and the next trial has its own
    return outcome


def dismiss() -> None:
    """Let the workers that this process keeps go, if there are any."""
    global _crew
    if _crew is not None:
        _crew.dismiss()
    _crew = None


def free_lost(home: Path, others_than: Path | None = None) -> None:
    """Free what crews hold whose directors were killed; in a bucket it takes several looks to know that."""
    for folder in home.glob("workers-*"):
        if folder == others_than:
            continue
        with contextlib.suppress(OSError, RayError), _judge.take_if_lost(folder) as is_lost:
            if is_lost:
                _free(folder)


def free_all(home: Path) -> None:
    """Free what is left of crews, for who knows that no director lives."""
    for folder in home.glob("workers-*"):
        with contextlib.suppress(OSError, RayError):
            _free(folder)
    remove_tree(home)


def _free(folder: Path) -> None:
    if (held := folder / _GROUP).exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(held.read_text()))))
    remove_tree(folder)


class CrewFailures(FailureCallback):
    """A failure belongs to the run whose job the workers were at; where they had none, the crew ends."""

    def __init__(self, folder: Path, max_failures: int) -> None:
        super().__init__(folder, max_failures)
        self._folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        path = _job_file(self._folder, _count_outcomes(self._folder) + 1)
        if not path.exists():
            raise CrewLost(Problem("workers were lost while they waited for a trial"))
        self._run_dir = as_path(_read(path)["run_dir"])
        super().after_exception(run_context, worker_exceptions)


def serve(box: dict[str, Any]) -> dict[str, Any]:
    """What each worker of a crew runs: one job after another, from the first one that has no outcome.

    Args:
        box: `folder`, the mailbox, and `idle_s`, the seconds that it waits for a job.
    """
    from sftray.train_fn.memory import free_memory
    from sftray.train_fn.worker import train_worker

    folder, is_first = as_path(box["folder"]), ray.train.get_context().get_world_rank() == 0
    if is_first and (group := get_current_placement_group()) is not None:
        write_whole(folder / _GROUP, group.id.hex())
    while True:
        number = _count_outcomes(folder) + 1 if is_first else 0
        job = share_first(_wait_for_job(folder, number, box["idle_s"]) if is_first else None)
        if job is None:
            return {}
        outcome = train_worker({**job, "register": False})
        free_memory()
        if is_first:
            _put(_outcome_file(folder, number), outcome)


def _wait_for_job(folder: Path, number: int, idle_s: float) -> dict[str, Any] | None:
    """The job with this number; None where there is to be none."""
    path, end = _job_file(folder, number), time.monotonic() + idle_s
    while time.monotonic() < end and not (folder / _END).exists():
        if path.exists():
            return _read(path)
        time.sleep(pause_between_looks(folder))
    return None


def _count_outcomes(folder: Path) -> int:
    return len(list(folder.glob("outcome-*.json")))


def _job_file(folder: Path, number: int) -> Path:
    return folder / f"job-{number:04d}.json"


def _outcome_file(folder: Path, number: int) -> Path:
    return folder / f"outcome-{number:04d}.json"


def _put(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
