"""A Ray head whose environment holds secrets, as a cluster's does; and all that it keeps and says."""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from knocking import ask_grpc, ask_http
from listening import Listener, list_listeners
from processes import list_processes
from ray_node import Head, lead_node
from wandb_probe import Backend, serve_backend

_PAGES = (
    "/nodes?view=summary",
    "/nodes?view=details",
    "/logical/actors",
    "/events",
    "/api/version",
    "/api/jobs/",
    "/api/jobs/sftray-mine",
    "/api/jobs/sftray-mine/logs",
    "/api/train/v2/runs/v1",
    "/api/train/v2/runs",
    "/api/cluster_status",
    "/api/component_activities",
    "/api/v0/cluster_metadata",
    "/api/v0/cluster_events",
    "/api/v0/tasks/summarize",
    "/api/v0/tasks/timeline",
    "/api/v0/actors/summarize",
    "/api/v0/objects/summarize",
    *(
        f"/api/v0/{kind}?detail=1&limit=1000"
        for kind in ("actors", "tasks", "workers", "nodes", "jobs", "objects", "runtime_envs", "placement_groups")
    ),
)
_TABLES = (
    "JobInfoGcsService/GetAllJobInfo",
    "ActorInfoGcsService/GetAllActorInfo",
    "NodeInfoGcsService/GetAllNodeInfo",
    "WorkerInfoGcsService/GetAllWorkerInfo",
    "TaskInfoGcsService/GetTaskEvents",
    "PlacementGroupInfoGcsService/GetAllPlacementGroup",
)


class RememberingBackend(Backend):
    """W&B's server, which remembers what it was shown for a key."""

    shown: set[str] = set()  # noqa: RUF012  # a handler is made for each request

    def do_POST(self) -> None:
        self.shown.add(self.headers.get("Authorization", ""))
        super().do_POST()


@dataclass(frozen=True)
class Guarded:
    """`secrets`: values of the head's environment, by their names. `folder`: all of Ray's files."""

    head: Head
    folder: Path
    secrets: dict[str, str]
    token: str
    shown_to_wandb: set[str] = field(repr=False)

    def list_listeners(self) -> list[Listener]:
        return list_listeners(pid for pid in _list_group(self.head.leader.pid))

    def ask(self, path: str) -> bytes:
        return ask_http(self.head.dashboard + path, self.token)[1]

    def read_state(self) -> dict[str, bytes]:
        """All that Ray answers to one who has the token, and its metrics."""
        node = json.loads(self.ask("/nodes?view=summary"))["data"]["summary"][0]["raylet"]["nodeId"]
        found = {path: self.ask(path) for path in (*_PAGES, f"/nodes/{node}", f"/api/v0/logs?node_id={node}")}
        found |= {table: ask_grpc(self.head.address, f"/ray.rpc.{table}", self.token)[1] for table in _TABLES}
        commands = [process.command for process in list_processes()]
        return {**found, **self.read_metrics(), **self._read_store(), "commands": "\n".join(commands).encode()}

    def read_metrics(self) -> dict[str, bytes]:
        """Of all ports that have some for anybody."""
        ports = {each.port for each in self.list_listeners() if each.address == "0.0.0.0"}
        return {f"metrics at {port}": ask_http(f"http://127.0.0.1:{port}/metrics")[1] for port in ports}

    def _read_store(self) -> dict[str, bytes]:
        """The keys and values of the head's store."""
        from ray._private import ray_constants
        from ray._raylet import GcsClient

        client: Any = GcsClient(address=self.head.address)
        spaces = {value for name, value in vars(ray_constants).items() if name.startswith("KV_NAMESPACE_")}
        keys = [(space, key) for space in spaces for key in client.internal_kv_keys(b"", space)]
        return {f"store {space!r} {key!r}": key + (client.internal_kv_get(key, space) or b"") for space, key in keys}


def _list_group(leader: int) -> Iterator[int]:
    for process in list_processes():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader:
                yield process.pid


@contextlib.contextmanager
def lead_guarded() -> Iterator[Guarded]:
    """A head of its own, with the dashboard's pages as in a cluster, and a W&B that its environment names."""
    with pytest.MonkeyPatch.context() as patch, serve_backend(RememberingBackend) as wandb:
        for name in [name for name in os.environ if name.startswith("RAY_TRAIN_") or name == "RAY_ADDRESS"]:
            patch.delenv(name)
        hidden = {
            "WANDB_API_KEY": secrets.token_hex(20),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "HF_TOKEN": f"hf_{secrets.token_hex(16)}",
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with lead_node(2, PATH=path, WANDB_BASE_URL=wandb, **hidden) as head:
            arguments = list(map(str, head.leader.args))  # type: ignore[arg-type]  # a list: see ray_node
            folder = Path(arguments[arguments.index("--temp-dir") + 1])
            token = os.environ["RAY_AUTH_TOKEN"]
            yield Guarded(head, folder, hidden, token, RememberingBackend.shown)
