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
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("sftray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pydantic", "safetensors")
_LIMIT_S = 60.0  # for all nodes together


@dataclass(frozen=True)
class NodeFacts:
    """`versions`: None for what is not installed. `clock`: Unix seconds. `skew`: seconds by which its clock is ahead
    of the one that asks, as far as can be told. `sees_store`: whether a file that the asker wrote can be read there,
    and one written; None where it was not asked.
    """

    host: str
    python: str
    versions: dict[str, str | None]
    clock: float
    free_bytes: int
    gpus: list[str] = field(default_factory=list)
    sees_store: bool | None = None
    skew: float = 0.0


def look_at_node(marker: str | None = None) -> NodeFacts:
    """Facts of the machine this runs on.

    Args:
        marker: a file in the store that the asker wrote; one of this host's name is put beside it.
    """
    return NodeFacts(
        host=socket.gethostname(),
        python=platform.python_version(),
        versions={name: _find_version(name) for name in PACKAGES},
        clock=time.time(),
        free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        gpus=_list_gpus(),
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


def _sees(marker: Path) -> bool:
    try:
        marker.read_bytes()
        marker.with_name(f"{marker.name}-{socket.gethostname()}-{os.getpid()}").write_bytes(b"")
    except OSError:
        return False
    return True


def look_at_nodes(marker: str | None) -> list[NodeFacts]:
    """`look_at_node` on each living node of the connected cluster. Raises ray's error where one does not answer."""
    import dataclasses
    import sys

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    try:
        look, asked = ray.remote(num_cpus=0)(look_at_node), time.time()
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
        facts = ray.get([look.options(scheduling_strategy=at).remote(marker) for at in places], timeout=_LIMIT_S)
        answered = time.time()
    finally:
        with contextlib.suppress(ValueError):
            ray.cloudpickle.unregister_pickle_by_value(module)
    return [dataclasses.replace(each, skew=_judge_skew(each.clock, asked, answered)) for each in facts]


def _judge_skew(clock: float, asked: float, answered: float) -> float:
    """Seconds outside of the time between question and answer."""
    return max(clock - answered, 0.0) + min(clock - asked, 0.0)
