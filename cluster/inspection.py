"""What a node is and has: found out on the node itself, which may lack all that sftray needs.

So this module imports the standard library alone, and is sent to the nodes as it is.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

PACKAGES = ("sftray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pydantic", "safetensors")
_LIMIT_S = 60.0  # for all nodes together
_KNOCK_S = 2.0
_NEIGHBOURS = 16  # of the other nodes, so many are tried from each: of a large cluster all would take long
# What torch makes of the driver: in a process of its own, for it takes memory of each GPU.
_ASK_TORCH = """
import torch
if torch.version.cuda is None:
    print("torch", torch.__version__, "is built without CUDA")
elif not torch.cuda.is_available():
    print("torch", torch.__version__, "cannot use them with this driver: it wants one for CUDA", torch.version.cuda)
else:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    print("ok", torch.cuda.device_count(), "of them for torch, CUDA", torch.version.cuda + ", NCCL", nccl)
"""


@dataclass(frozen=True)
class NodeFacts:
    """`versions`: None for what is not installed. `clock`: Unix seconds. `skew`: seconds by which its clock is ahead
    of the one that asks, as far as can be told. `sees_store`: whether a file that the asker wrote can be read there,
    and one written; None where it was not asked. `torch_sees`: what torch makes of the GPUs, "ok …" or what is wrong;
    "" without any. `unreached`: other nodes that took no connection from it at a port of the system's choice.
    """

    host: str
    python: str
    versions: dict[str, str | None]
    clock: float
    free_bytes: int
    gpus: list[str] = field(default_factory=list)
    torch_sees: str = ""
    sees_store: bool | None = None
    skew: float = 0.0
    unreached: list[str] = field(default_factory=list)


def look_at_node(marker: str | None = None) -> NodeFacts:
    """Facts of the machine this runs on.

    Args:
        marker: a file in the store that the asker wrote; one of this host's name is put beside it.
    """
    gpus = _list_gpus()
    return NodeFacts(
        host=socket.gethostname(),
        python=platform.python_version(),
        versions={name: _find_version(name) for name in PACKAGES},
        clock=time.time(),
        free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        gpus=gpus,
        torch_sees=ask_torch() if gpus else "",
        sees_store=None if marker is None else _sees(Path(marker)),
    )


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _list_gpus() -> list[str]:
    """As NVIDIA's driver names them: name, driver's version, memory."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def ask_torch() -> str:
    """What torch makes of the GPUs of this machine: "ok …", or what is wrong."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=50, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"torch cannot be asked: {said[-1][:200] if said else type(error).__name__}"
    return done.stdout.strip()


def _sees(marker: Path) -> bool:
    try:
        marker.read_bytes()
        marker.with_name(f"{marker.name}-{socket.gethostname()}-{os.getpid()}").write_bytes(b"")
    except OSError:
        return False
    return True


class Visitor:
    """Looks around on one node, takes connections there, and tries those of others."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def look(self, marker: str | None) -> NodeFacts:
        return look_at_node(marker)

    def listen(self, address: str) -> int:
        """The port at which this node takes connections from now on; the system chooses it, as it does for torch."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=2 * _NEIGHBOURS)
        return int(self._listener.getsockname()[1])

    def find_unreached(self, places: Sequence[tuple[str, str, int]]) -> list[str]:
        """Of hosts, their addresses and ports, those that take no connection from here."""
        unreached = []
        for host, address, port in places:
            try:
                socket.create_connection((address, port), timeout=_KNOCK_S).close()
            except OSError:
                unreached.append(f"{host} ({address})")
        return unreached


def look_at_nodes(marker: str | None) -> list[NodeFacts]:
    """`look_at_node` on each living node of the connected cluster, and whether the nodes reach each other.

    Raises ClusterError where one does not answer.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from sftray.train_fn.errors import ClusterError, Problem

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    try:
        send, asked = ray.remote(num_cpus=0)(Visitor), time.time()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        visitors = [send.options(scheduling_strategy=at).remote() for at in places]
        facts = ray.get([visitor.look.remote(marker) for visitor in visitors], timeout=_LIMIT_S)
        answered = time.time()
        unreached = _try_connections(visitors, [node["NodeManagerAddress"] for node in nodes], facts)
    except RayError as error:
        raise ClusterError(Problem("a node does not answer", why=" ".join(str(error).split())[:300])) from error
    finally:
        with contextlib.suppress(ValueError):
            ray.cloudpickle.unregister_pickle_by_value(module)
    return [
        replace(each, skew=_judge_skew(each.clock, asked, answered), unreached=missed)
        for each, missed in zip(facts, unreached, strict=True)
    ]


def _try_connections(visitors: list[Any], addresses: list[str], facts: list[NodeFacts]) -> list[list[str]]:
    """Of each node, the next ones that it does not reach."""
    import ray

    pairs = zip(visitors, addresses, strict=True)
    ports = ray.get([visitor.listen.remote(address) for visitor, address in pairs], timeout=_LIMIT_S)
    doors = [(fact.host, address, port) for fact, address, port in zip(facts, addresses, ports, strict=True)]
    tried = [[*doors[i + 1 :], *doors[:i]][:_NEIGHBOURS] for i in range(len(doors))]
    asked = [visitor.find_unreached.remote(places) for visitor, places in zip(visitors, tried, strict=True)]
    found: list[list[str]] = ray.get(asked, timeout=_LIMIT_S)
    return found


def _judge_skew(clock: float, asked: float, answered: float) -> float:
    """Seconds outside of the time between question and answer."""
    return max(clock - answered, 0.0) + min(clock - asked, 0.0)
