"""Jobs of a Ray cluster: sending one to its job server, following it, stopping it. Each is one sftray command."""

import asyncio
import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftray.cluster.authentication import TOKEN_FIX, refuse_open_cluster, use_token
from sftray.train_fn.errors import ClusterError, Problem

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
PACKAGES = ("platform", "train_fn", "tune_spaces", "cluster")
_RUN = "sftray_run"  # the key of a job's metadata that names its run or sweep
_ENVIRONMENT = {
    # Asked to stop, a run saves first. Ray's own patience is 3 s.
    "RAY_JOB_STOP_WAIT_TIME_S": "900",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOOK_S = 0.5


@dataclass(frozen=True)
class Job:
    """`exit_code`: of the command, once it has ended; Ray has none where it never began. `started`: Unix seconds."""

    id: str
    run: str
    state: State
    exit_code: int | None
    message: str
    started: float | None

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
        with self._explain():
            self._client = JobSubmissionClient(address)

    def submit(self, id: str, run: str, arguments: Sequence[str], folder: Path, code: Path | None) -> None:
        """Start `sftray` with these arguments in a copy of `folder`.

        Args:
            code: a folder that holds the package `sftray`; without it, that of the cluster's image is used.
        """
        environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": _ENVIRONMENT}
        if code is not None:
            environment["py_modules"] = [str(code / "sftray")]
        with self._explain():
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "sftray.platform.cli", *arguments]),
                submission_id=id,
                runtime_env=environment,
                metadata={_RUN: run},
            )

    def list_jobs(self) -> list[Job]:
        """Those that were sent by `submit`, oldest first."""
        with self._explain():
            found = [_read(details) for details in self._client.list_jobs() if _RUN in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started or 0.0)

    def find(self, id: str) -> Job | None:
        return next((job for job in self.list_jobs() if job.id == id), None)

    def follow(self, id: str, write: Callable[[str], Any]) -> Job:
        """Hand on what the job prints, from its beginning until it has ended."""
        asyncio.run(self._follow(id, write))
        job = self.find(id)
        if job is None:
            raise ClusterError(Problem(f"job {id} is gone from {self.address}"))
        return job

    async def _follow(self, id: str, write: Callable[[str], Any]) -> None:
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
            job = self.find(id)
            if job is None or not job.is_active:
                return
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
            fix = "--address http://HEAD:8265, the address of the cluster's dashboard; or see that it runs"
            raise ClusterError(Problem(f"no job server at {self.address}", why=_say(error), fix=fix)) from error


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
    )
