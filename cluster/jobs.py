"""Jobs of a Ray cluster: sending one to its job server, following it, stopping it. Each is one sftray command."""

import asyncio
import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftray.cluster.authentication import ADDRESS_FIX, TOKEN_FIX, refuse_open_cluster, use_token
from sftray.cluster.ending import SAY_END
from sftray.train_fn.errors import ClusterError, Problem

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
PACKAGES = ("platform", "train_fn", "tune_spaces", "cluster")
# Of a job's metadata: the run or sweep, its directory, and what was asked for.
_RUN, _PLACE, _ASKED = "sftray_run", "sftray_directory", "sftray_asked"
_ENVIRONMENT = {
    # Asked to stop, a run saves first. Ray's own patience is 3 s.
    "RAY_JOB_STOP_WAIT_TIME_S": "900",
    "RAY_USAGE_STATS_ENABLED": "0",
    SAY_END: "1",
}
_LOOK_S = 0.5
_PATIENCE_S = 60.0  # a dashboard that is restarted answers again within this


@dataclass(frozen=True)
class Job:
    """`exit_code`: of the command, once it has ended; Ray has none where it never began, or was stopped. `started`:
    Unix seconds. `place`: the directory of the run. `asked`: a digest of the command and all that travelled with it.
    """

    id: str
    run: str
    state: State
    exit_code: int | None
    message: str
    started: float | None
    place: str = ""
    asked: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ("pending", "running")


class JobServer:
    """The job server of the cluster whose dashboard is at `address`.

    Raises:
        ClusterError: nothing answers there, it wants a token that is not given, or it is not of this machine and
            wants none; also by all that is asked of it.
    """

    def __init__(self, address: str) -> None:
        refuse_open_cluster(address)
        use_token()
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with self._explain(), _without_other_addresses():
            self._client = JobSubmissionClient(address)

    def submit(
        self, id: str, names: dict[str, str], arguments: Sequence[str], folder: Path, code: Path | None
    ) -> bool:
        """Start `sftray` with these arguments in a copy of `folder`. False: there is a job of this id already.

        Args:
            names: as `name_run` makes them.
            code: a folder that holds the package `sftray`; without it, that of the cluster's image is used.
        """
        environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": _ENVIRONMENT}
        if code is not None:
            environment["py_modules"] = [str(code / "sftray")]
        with self._explain():
            try:
                self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "sftray.platform.cli", *arguments]),
                    submission_id=id,
                    runtime_env=environment,
                    metadata=names,
                )
            except RuntimeError as error:
                if f"{id} already exists" not in str(error):
                    raise
                return False
        return True

    def list_jobs(self) -> list[Job]:
        """Those that were sent by `submit`, oldest first."""
        with self._explain():
            found = [_read(details) for details in self._client.list_jobs() if _RUN in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started or 0.0)

    def find(self, id: str) -> Job | None:
        return next((job for job in self.list_jobs() if job.id == id), None)

    def follow(self, id: str, write: Callable[[str], Any]) -> Job:
        """Hand on what the job prints, from its beginning until it has ended."""
        job = asyncio.run(self._follow(id, write))
        if job is None:
            raise ClusterError(Problem(f"job {id} is gone from {self.address}"))
        return job

    async def _follow(self, id: str, write: Callable[[str], Any]) -> Job | None:
        """A connection that breaks is made again; what was read before is passed over then."""
        import aiohttp

        written = 0
        while True:
            read = 0
            with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
                async for text in self._client.tail_job_logs(id):
                    read += len(text)
                    if read > written:
                        write(text[len(text) - (read - written) :])
                        written = read
            job = await self._find_patiently(id)
            if job is None or not job.is_active:
                return job
            await asyncio.sleep(_LOOK_S)

    async def _find_patiently(self, id: str) -> Job | None:
        """As `find`; a job goes on while the dashboard is away, so that is waited for."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.find(id)
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    def read_log(self, id: str) -> str:
        with self._explain():
            text: str = self._client.get_job_logs(id)
        return text

    def stop(self, id: str) -> None:
        """Ask the job to save and stop; it is ended where it does not within a quarter of an hour."""
        with self._explain():
            self._client.stop_job(id)

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            problem = Problem(f"{self.address} wants another token", why=_say(error), fix=TOKEN_FIX)
            raise ClusterError(problem) from error
        except (OSError, RuntimeError, ValueError) as error:
            problem = Problem(f"no job server at {self.address}", why=_say(error), fix=ADDRESS_FIX)
            raise ClusterError(problem) from error


@contextlib.contextmanager
def _without_other_addresses() -> Iterator[None]:
    """Ray's client would go where the environment says, whatever address it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def name_run(run: str, place: str, asked: str) -> dict[str, str]:
    """The metadata of a job: see Job."""
    return {_RUN: run, _PLACE: place, _ASKED: asked}


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def stage_code(folder: Path) -> None:
    """Copy the package `sftray` as it is installed here to `folder/sftray`."""
    import sftray.train_fn

    beside = Path(sftray.train_fn.__path__[0]).parent
    for name in PACKAGES:
        shutil.copytree(beside / name, folder / "sftray" / name, ignore=shutil.ignore_patterns("__pycache__"))


def _read(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        run=details.metadata[_RUN],
        state=details.status.value.lower(),
        exit_code=details.driver_exit_code,
        message=" ".join((details.message or "").split()),
        started=details.start_time / 1000 if details.start_time else None,
        place=details.metadata.get(_PLACE, ""),
        asked=details.metadata.get(_ASKED, ""),
    )
