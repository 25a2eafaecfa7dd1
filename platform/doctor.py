"""`sftray doctor`: what is wrong here and on the nodes of the cluster, and how to mend it."""

import os
import stat
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from sftray.cluster.authentication import find_token_file, is_open
from sftray.cluster.inspection import NodeFacts, look_at_node, look_at_nodes
from sftray.platform.store_probe import Level, probe_store
from sftray.train_fn.errors import ClusterError, StoreError

# Known holes below them: CVE-2025-62593 and CVE-2026-27482; CVE-2026-24747; CVE-2026-4372 and CVE-2026-5241.
FLOORS = {"ray": "2.54", "torch": "2.10", "transformers": "5.3"}
_SAME = ("ray", "torch", "transformers", "sftray")  # on all nodes: numbers depend on them, or Ray refuses
_LEAST_FREE = 5 * 10**9  # bytes: Ray's logs and objects, and a checkpoint on its way
_MOST_SKEW_S = 2.0
_PORTS = {6379: "the cluster", 8265: "the dashboard", 10001: "Ray's client"}


@dataclass(frozen=True)
class Finding:
    """`fix`: what to do about it; "" where nothing is to be done."""

    area: Literal["versions", "store", "nodes", "disk", "clock", "auth", "ports", "gpu"]
    level: Level
    what: str
    fix: str = ""


def examine(store: str) -> list[Finding]:
    """Look at this machine, at the store, and at the cluster that RAY_ADDRESS names, if it does."""
    here = look_at_node()
    found = [*judge_versions(here), *judge_disk(here), *judge_gpus(here), *check_token_file()]
    found += [Finding("store", *told) for told in probe_store(store)]
    if address := os.environ.get("RAY_ADDRESS"):
        return [*found, *check_cluster_asks(address), *_examine_cluster(here, store)]
    return [*found, *check_ports()]


def _examine_cluster(here: NodeFacts, store: str) -> list[Finding]:
    from sftray.cluster.connection import connected

    marker = None if "://" in store else Path(store).expanduser().absolute() / f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        if marker is not None:
            marker.write_bytes(b"")
        with connected():
            nodes = look_at_nodes(None if marker is None else str(marker))
    except ClusterError as error:
        problem = error.problems[0]
        told = ": ".join(text for text in (problem.what, problem.why) if text)
        return [Finding("nodes", "bad", told, problem.fix or "see that the cluster runs, and RAY_ADDRESS")]
    except OSError as error:  # of the store, which its own finding tells
        return [Finding("nodes", "bad", f"not looked at: {error}", "mend the store first")]
    finally:
        if marker is not None:
            for path in marker.parent.glob(f"{marker.name}*"):
                path.unlink(missing_ok=True)
    found = [Finding("nodes", "ok", f"{len(nodes)} node(s): {', '.join(sorted(node.host for node in nodes))}")]
    for node in nodes:
        found += [
            *judge_versions(node),
            *judge_disk(node),
            *judge_gpus(node),
            *judge_clock(node),
            *judge_view(node, store),
            *judge_reach(node),
        ]
    return found + compare_versions([here, *nodes])


def judge_versions(node: NodeFacts) -> list[Finding]:
    """What is missing or too old on a node."""
    found = []
    for name, version in node.versions.items():
        floor = FLOORS.get(name)
        if version is None:
            fix = "pip install -r cluster/requirements.txt there, or build the image from it"
            found.append(Finding("versions", "bad", f"{node.host}: {name} is not installed", fix))
        elif floor is not None and Version(version) < Version(floor):
            what = f"{node.host}: {name} {version} has known security holes"
            found.append(Finding("versions", "bad", what, f"{name} {floor} or later"))
    if not found:
        told = ", ".join(f"{name} {node.versions[name]}" for name in ("sftray", "ray", "torch", "transformers"))
        found.append(Finding("versions", "ok", f"{node.host}: python {node.python}, {told}"))
    return found


def compare_versions(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Where nodes differ in what must be the same on all."""
    found = []
    for name in ("python", *_SAME):
        held: dict[str, list[str]] = {}
        for node in nodes:
            version = node.python.rpartition(".")[0] if name == "python" else node.versions.get(name) or "none"
            held.setdefault(version, []).append(node.host)
        if len(held) > 1:
            told = "; ".join(f"{version} on {', '.join(dict.fromkeys(hosts))}" for version, hosts in held.items())
            found.append(
                Finding("versions", "bad", f"{name} differs: {told}", "one image, or one lock file, for all nodes")
            )
    return found


def judge_disk(node: NodeFacts) -> list[Finding]:
    told = f"{node.host}: {node.free_bytes / 1e9:.1f} GB free for temporary files"
    if node.free_bytes < _LEAST_FREE:
        return [Finding("disk", "bad", told, "make room: Ray spills objects and writes its logs there")]
    return [Finding("disk", "ok", told)]


def judge_clock(node: NodeFacts) -> list[Finding]:
    if abs(node.skew) <= _MOST_SKEW_S:
        return []
    what = f"{node.host}: its clock is {abs(node.skew):.0f} s {'ahead' if node.skew > 0 else 'behind'}"
    return [Finding("clock", "bad", what, "synchronise the clocks (NTP): who owns a run is judged by signs of life")]


def judge_view(node: NodeFacts, store: str) -> list[Finding]:
    if node.sees_store is None or node.sees_store:
        return []
    fix = "store.path: a mount that every node has at the same place and may write, or s3://…"
    return [Finding("store", "bad", f"{node.host} does not see {store}, or may not write there", fix)]


def judge_gpus(node: NodeFacts) -> list[Finding]:
    """The GPUs of a node as its driver names them, and what torch makes of them."""
    found = [Finding("gpu", "ok", f"{node.host}: {gpu}") for gpu in node.gpus]
    if not node.gpus:
        return found
    if node.torch_sees.startswith("ok "):
        return [*found, Finding("gpu", "ok", f"{node.host}: {node.torch_sees.removeprefix('ok ')}")]
    fix = "a driver that is new enough, or torch built for the one there (nvidia-smi says for which CUDA)"
    return [*found, Finding("gpu", "bad", f"{node.host}: {node.torch_sees}", fix)]


def judge_reach(node: NodeFacts) -> list[Finding]:
    """Workers meet at ports that the system chooses."""
    if not node.unreached:
        return []
    fix = "open all ports between the nodes; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use"
    return [Finding("ports", "bad", f"{node.host} does not reach {', '.join(node.unreached)}", fix)]


def check_token_file() -> list[Finding]:
    path = find_token_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return []
    if mode & 0o077:
        return [Finding("auth", "bad", f"{path} can be read by others ({mode:04o})", f"chmod 600 {path}")]
    return [Finding("auth", "ok", f"{path} is its owner's alone")]


def check_cluster_asks(address: str) -> list[Finding]:
    """Whoever reaches the ports of a cluster without tokens runs what he likes on it."""
    if ":" not in address or "/" in address:
        return []
    if is_open(address):
        what = f"the cluster at {address} answers who has no token: whoever reaches its ports runs code on it"
        return [Finding("auth", "bad", what, "RAY_AUTH_MODE=token and one token on all of its nodes")]
    return [Finding("auth", "ok", f"the cluster at {address} asks for its token")]


def check_ports() -> list[Finding]:
    """Ports that `ray start --head` would take here, and others hold. A run on this machine alone needs none."""
    import socket

    found = []
    for port, use in _PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                fix = f"if that is no Ray of yours: ray start --head with another port for {use}"
                found.append(Finding("ports", "note", f"port {port}, that of {use}, is taken", fix))
    return found


def choose_exit_code(found: Sequence[Finding]) -> int:
    bad = {finding.area for finding in found if finding.level == "bad"}
    if not bad:
        return 0
    return StoreError.exit_code if "store" in bad else ClusterError.exit_code


def to_json(found: Sequence[Finding]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in found], "exit_code": choose_exit_code(found)}
