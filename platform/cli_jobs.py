"""`sftray submit`, `status`, `logs`, `stop` and `doctor`: commands on a cluster, and what goes on here or there."""

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from sftray.platform.cli_words import Json, Store
from sftray.platform.exits import INTERRUPTED, print_json

if TYPE_CHECKING:
    from sftray.cluster.jobs import JobServer

Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="The cluster's dashboard: http://HEAD:8265", show_default=False),
]
Name = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's directory or name; with --address its job.", show_default=False)
]

_LEVELS = {"ok": "dim", "note": "yellow", "bad": "bold red"}


def submit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND …", help="train, tune or resume, as it would run here.", show_default=False
        ),
    ],
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")] = True,
    image: Annotated[bool, typer.Option("--image", help="Use the sftray of the cluster's image.")] = False,
    as_json: Json = False,
) -> None:
    """Run a command as a job on a cluster. Its config and the data that it names by relative paths travel."""
    from sftray.cluster.jobs import JobServer
    from sftray.platform import submit as submission
    from sftray.platform.terminal import build_console

    console = build_console(stderr=as_json)
    server = JobServer(submission.find_address(address))
    sent = submission.submit(arguments, server, console, send_code=not image)
    said = "runs already" if sent.again else "is sent"
    console.print(f"job {sent.job} {said}; sftray stop {sent.run} --address {server.address}", soft_wrap=True)
    # With --json, standard output is for one document.
    code = _follow(server, sent.job, sys.stderr if as_json else sys.stdout) if wait else 0
    if as_json:
        print_json({"job": sent.job, "run": sent.run, "address": server.address, "exit_code": code if wait else None})
    if code:
        raise typer.Exit(code)


def status(run: Name, store: Store = "./runs", address: Address = None, as_json: Json = False) -> None:
    """What a run or sweep does, here or on a cluster."""
    from sftray.platform.terminal import build_console, plain

    if address is not None:
        from sftray.platform.submit import describe_job, find_server_job

        _, job = find_server_job(run, address)
        facts, lines = vars(job), [describe_job(job)]
    else:
        from sftray.platform.watch import describe_status, find_watched, read_status

        found = read_status(find_watched(run, store))
        facts, lines = found.to_json(), describe_status(found)
    if as_json:
        print_json(facts)
    else:
        for line in lines:
            build_console().print(plain(line), soft_wrap=True)


def logs(
    run: Name,
    store: Store = "./runs",
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
) -> None:
    """What a run has said, here or on a cluster."""
    if address is not None:
        from sftray.platform.submit import find_server_job

        server, job = find_server_job(run, address)
        if follow:
            raise typer.Exit(_follow(server, job.id, sys.stdout))
        sys.stdout.write(server.read_log(job.id))
        return
    from sftray.platform.terminal import build_console
    from sftray.platform.watch import find_watched, follow_log

    follow_log(find_watched(run, store), build_console(), follow)


def stop(run: Name, store: Store = "./runs", address: Address = None) -> None:
    """Have a run or sweep save and stop, here or on a cluster."""
    from sftray.platform.terminal import build_console, plain

    console = build_console()
    if address is not None:
        from sftray.platform.submit import find_server_job

        server, job = find_server_job(run, address)
        server.stop(job.id)
        console.print(plain(f"job {job.id} is asked to save and stop; sftray logs {run} -f --address {address}"))
        return
    from sftray.platform.watch import describe_status, find_watched, stop_run

    ended = stop_run(find_watched(run, store), lambda text: console.print(plain(text)))
    for line in describe_status(ended):
        console.print(plain(line), soft_wrap=True)


def doctor(store: Store = "./runs", as_json: Json = False) -> None:
    """What is wrong here, with the store, and on the nodes of RAY_ADDRESS; and how to mend it."""
    from sftray.platform.doctor import choose_exit_code, examine, to_json
    from sftray.platform.terminal import build_console, plain

    found = examine(store)
    if as_json:
        print_json(to_json(found))
    else:
        console = build_console()
        for finding in found:
            console.print(
                plain(f"{finding.level:4}  {finding.area}: {finding.what}", _LEVELS[finding.level]), soft_wrap=True
            )
            if finding.fix and finding.level != "ok":
                console.print(plain(f"  fix  {finding.fix}", "green"), soft_wrap=True)
    if code := choose_exit_code(found):
        raise typer.Exit(code)


def _follow(server: "JobServer", job_id: str, out: TextIO) -> int:
    """Print what the job prints; its exit code. Ctrl-C leaves the job alone."""
    from sftray.platform.submit import read_exit_code

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        job = server.follow(job_id, write)
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on; sftray stop ends it", file=sys.stderr)
        return INTERRUPTED
    return read_exit_code(job, server.read_log(job_id))
