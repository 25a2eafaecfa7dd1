"""`sftray submit`: a command as a job on a cluster; and what became of it."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sftray.cluster.jobs import Job, JobServer, stage_code
from sftray.platform.bundle import Bundle, plan_bundle
from sftray.platform.terminal import format_bytes
from sftray.train_fn.errors import ClusterError, ConfigError, Problem, StoppedError


@dataclass(frozen=True)
class Submitted:
    """`again`: it had been sent before and runs, so nothing was sent now."""

    job: str
    run: str
    again: bool


def find_address(asked: str | None) -> str:
    """Where the cluster's dashboard is.

    Raises:
        ConfigError: nobody said.
    """
    near = os.environ.get("RAY_ADDRESS", "")
    found = asked or os.environ.get("RAY_API_SERVER_ADDRESS") or (near if near.startswith("http") else "")
    if not found:
        raise ConfigError(
            Problem(
                "no cluster is named",
                why="a job goes to the dashboard of a running Ray cluster",
                fix="--address http://HEAD:8265, or RAY_API_SERVER_ADDRESS",
            )
        )
    return found


def submit(arguments: Sequence[str], server: JobServer, console: Console, send_code: bool = True) -> Submitted:
    """Send `sftray` with these arguments. Whoever sends the same again while it runs gets the job that there is.

    Raises:
        ConfigError: the command is wrong, too much would travel, or such a job has ended already.
        ClusterError: the cluster does not answer.
    """
    bundle = plan_bundle(arguments)
    jobs = server.list_jobs()
    id = choose_id(bundle, jobs)
    known = next((job for job in jobs if job.id == id), None)
    if known is not None:
        if known.is_active:
            return Submitted(id, bundle.name, again=True)
        raise ConfigError(_describe_ended(bundle, known))
    with tempfile.TemporaryDirectory(prefix="sftray-job-") as scratch:
        folder, code = Path(scratch, "files"), Path(scratch, "code")
        folder.mkdir()
        bundle.write(folder)
        if send_code:
            stage_code(code)
        for line in describe_bundle(bundle, code if send_code else None):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        server.submit(id, bundle.name, bundle.arguments, folder, code if send_code else None)
    return Submitted(id, bundle.name, again=False)


def choose_id(bundle: Bundle, jobs: Sequence[Job]) -> str:
    """Of a run's name, and for `resume` of which one it is: the one that runs, or the next."""
    if bundle.arguments[0] != "resume":
        return f"sftray-{bundle.name}"
    former = [job for job in jobs if job.run == bundle.name]
    active = next((job for job in former if job.is_active), None)
    return active.id if active is not None else f"sftray-{bundle.name}-resume-{len(former)}"


def describe_bundle(bundle: Bundle, code: Path | None) -> list[str]:
    """What travels, with its size, and what does not."""
    lines = [f"sent: {place} ({format_bytes(path.stat().st_size)})" for place, path in sorted(bundle.files.items())]
    if code is None:
        lines.append("sftray: that of the cluster's image")
    else:
        size = sum(path.stat().st_size for path in code.rglob("*") if path.is_file())
        lines.append(f"sent: sftray, as it is installed here ({format_bytes(size)})")
    return [*lines, *(f"not sent, of the cluster: {path}" for path in bundle.elsewhere)]


def _describe_ended(bundle: Bundle, job: Job) -> Problem:
    return Problem(
        f"job {job.id} was sent before, and has {job.state}",
        why="a job of the same name, or of the same config, data and settings, is not sent twice",
        fix=f"sftray submit -- resume STORE/{bundle.name}, or another name=…",
    )


def read_exit_code(job: Job) -> int:
    """The command's own. Without one a job that was stopped counts as such, and one that failed never began."""
    if job.exit_code is not None and job.exit_code >= 0:
        return job.exit_code
    return {"succeeded": 0, "stopped": StoppedError.exit_code}.get(job.state, ClusterError.exit_code)


def find_job(name: str, server: JobServer) -> Job:
    """The newest job of this run, or the job of this id.

    Raises:
        ConfigError: there is none.
    """
    jobs = server.list_jobs()
    found = [job for job in jobs if name in (job.run, job.id)]
    if not found:
        names = ", ".join(dict.fromkeys(job.run for job in reversed(jobs))) or "none"
        raise ConfigError(Problem(f"no job of a run {name} at {server.address}", why=f"runs there: {names}"))
    return found[-1]


def find_server_job(name: str, address: str) -> tuple[JobServer, Job]:
    """The job server at `address`, and the newest job of this run there. Raises as JobServer and `find_job` do."""
    server = JobServer(find_address(address))
    return server, find_job(name, server)


def describe_job(job: Job) -> str:
    code = "" if job.exit_code is None else f"  exit code {job.exit_code}"
    return f"{job.run}: job {job.id} {job.state}{code}  {job.message}".rstrip()
