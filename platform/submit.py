"""`sftray submit`: a command as a job on a cluster; and what became of it."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sftray.cluster.ending import find_end
from sftray.cluster.jobs import Job, JobServer, name_run, stage_code
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
        ConfigError: nobody said, or it is no URL of a dashboard.
    """
    near = os.environ.get("RAY_ADDRESS", "")
    found = asked or os.environ.get("RAY_API_SERVER_ADDRESS") or (near if near.startswith("http") else "")
    if found.startswith(("http://", "https://")):
        return found
    what = f"{found} is no address of a dashboard" if found else "no cluster is named"
    raise ConfigError(
        Problem(
            what,
            why="a job goes to the dashboard of a running Ray cluster, over HTTP",
            fix="--address http://HEAD:8265, or RAY_API_SERVER_ADDRESS",
        )
    )


def submit(arguments: Sequence[str], server: JobServer, console: Console, send_code: bool = True) -> Submitted:
    """Send `sftray` with these arguments. Whoever sends the same again while it runs gets the job that there is.

    Raises:
        ConfigError: the command is wrong, too much would travel, or a job of this name does something else, or has
            ended already. ClusterError: the cluster does not answer.
    """
    bundle = plan_bundle(arguments)
    jobs = server.list_jobs()
    id = choose_id(bundle, jobs)
    known = next((job for job in jobs if job.id == id), None)
    if known is None:
        if _send(bundle, id, server, console, send_code):
            return Submitted(id, bundle.name, again=False)
        known = server.find(id)  # another was faster
    if known is None or not known.is_active or known.asked != bundle.digest():
        raise ConfigError(_describe_known(bundle, id, known))
    return Submitted(id, bundle.name, again=True)


def _send(bundle: Bundle, id: str, server: JobServer, console: Console, send_code: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="sftray-job-") as scratch:
        folder, code = Path(scratch, "files"), Path(scratch, "code")
        folder.mkdir()
        bundle.write(folder)
        if send_code:
            stage_code(code)
        for line in describe_bundle(bundle, code if send_code else None):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        names = name_run(bundle.name, bundle.place, bundle.digest())
        return server.submit(id, names, bundle.arguments, folder, code if send_code else None)


def choose_id(bundle: Bundle, jobs: Sequence[Job]) -> str:
    """Of a run's name, and for `resume` of which one it is: the one that runs, or the next."""
    if bundle.arguments[0] != "resume":
        return f"sftray-{bundle.name}"
    former = [job for job in jobs if job.run == bundle.name]
    active = next((job for job in former if job.is_active and job.place == bundle.place), None)
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


def _describe_known(bundle: Bundle, id: str, job: Job | None) -> Problem:
    if job is not None and job.is_active:
        does = f"does something else, in {job.place}" if job.place else "does something else"
        return Problem(
            f"job {id} runs, and {does}",
            why="only the very same command follows the job that runs",
            fix=f"another name=…, or first sftray stop {bundle.name}",
        )
    return Problem(
        f"job {id} was sent before, and has {job.state if job else 'gone'}",
        why="a job of the same name, or of the same config, data and settings, is not sent twice",
        fix=f"sftray submit -- resume {shlex.quote(bundle.place)}, or another name=…",
    )


def read_exit_code(job: Job, log: str) -> int:
    """The command's own, which Ray does not know of a job that was stopped: there it stands in the log. Without any,
    a job that was stopped may be resumed, and one that failed never began.
    """
    if job.exit_code is not None and job.exit_code >= 0:
        return job.exit_code
    said = find_end(log)
    if said is not None:
        return said
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
