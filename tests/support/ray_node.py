"""A Ray node of the tests' own: own ports, own folder, a token, and gone with its process group."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import list_offspring

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Host:
    """Where a node runs: its address, and the command that enters it before another; this machine by itself."""

    ip: str = "127.0.0.1"
    enter: tuple[str, ...] = ()


HERE = Host()


def find_free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Head:
    """`address` is that of the cluster, `dashboard` the URL of its job server, `metrics` the host and port of its
    metrics, `leader` leads its process group."""

    address: str
    dashboard: str
    metrics: str
    leader: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def start_node(num_cpus: int, host: Host = HERE, **settings: str) -> Iterator[str]:
    """A head node; gives its address. `settings` are more of its environment."""
    with lead_node(num_cpus, host, **settings) as head:
        yield head.address


@contextlib.contextmanager
def lead_node(
    num_cpus: int, host: Host = HERE, more: Sequence[str] = ("--block",), port: int | None = None, **settings: str
) -> Iterator[Head]:
    """As start_node, with `more` options and a `port` of one's own. Without `--block` the leader has left, and no
    process of the node ends because another has."""
    free, dashboard, client, agent, metrics = find_free_ports(5)
    gcs = port or free
    ports = [
        *("--port", str(gcs), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)),
        *("--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)),
    ]
    with _run_node(["--head", *ports, *more], num_cpus, host, settings) as node:
        yield Head(f"{host.ip}:{gcs}", f"http://{host.ip}:{dashboard}", f"{host.ip}:{metrics}", node)


@contextlib.contextmanager
def join_node(
    address: str, num_cpus: int, host: Host = HERE, more: Sequence[str] = (), **settings: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """One more node of the cluster at `address`, with `more` options; gives the leader of its process group."""
    agent, metrics = find_free_ports(2)
    ports = ["--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)]
    with _run_node(["--address", address, *ports, *more, "--block"], num_cpus, host, settings) as node:
        yield node


@contextlib.contextmanager
def _run_node(
    arguments: list[str], num_cpus: int, host: Host, settings: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    with tempfile.TemporaryDirectory(prefix="sr", ignore_cleanup_errors=True) as folder:
        command = [
            *(*host.enter, sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"),
            *("--node-ip-address", host.ip, "--temp-dir", folder, "--num-cpus", str(num_cpus), *arguments),
        ]
        with Path(folder, "out").open("wb") as out:
            environment = {**os.environ, **settings}
            node = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)
        try:
            _wait_until_it_answers(node, Path(folder, "out"))
            yield node
        finally:
            kill_node(node, signal.SIGTERM)


def kill_node(node: "subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
    """End all processes of a node; those that do not heed the signal within 5 s are killed.

    A machine that is lost takes Ray's workers with it. They are not of the node's process group, and would live, and
    train, for seconds after it.
    """
    workers = list_offspring(node.pid) - {node.pid} if number == signal.SIGKILL else set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, number)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


def _wait_until_it_answers(node: "subprocess.Popen[bytes]", out: Path) -> None:
    """The node says in its output when it runs; waiting on an event that never comes is a bounded look."""
    never = threading.Event()
    for _ in range(int(_START_SECONDS / 0.2)):
        if b"Ray runtime started" in out.read_bytes():
            return
        if node.poll() is not None:
            break
        never.wait(0.2)
    raise RuntimeError(f"no Ray node: {out.read_text(errors='replace')[-2000:]}")
