"""A head node whose autoscaler adds nodes on this machine and takes them away again: Ray's fake provider of nodes."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_node import find_free_ports, lead_node

_HEAD_ID = "f" * 51 + "00000"  # the provider's own name for it
_IDLE_SECONDS = 15.0


@contextlib.contextmanager
def start_growing_cluster(max_nodes: int, num_cpus: int) -> Iterator[str]:
    """A head without CPUs; gives its address. Up to `max_nodes` more are started by and by, of `num_cpus` each, and
    ended when they have been idle for some seconds.
    """
    (port,) = find_free_ports(1)
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "autoscaling.yaml")
        path.write_text(json.dumps(_describe(port, max_nodes, num_cpus)), encoding="utf-8")  # JSON is YAML
        more = ["--autoscaling-config", str(path), "--object-store-memory", str(200 << 20), "--block"]
        with lead_node(0, more=more, port=port, **settings) as head:
            yield head.address


def _describe(port: int, max_nodes: int, num_cpus: int) -> dict[str, Any]:
    worker = {"CPU": num_cpus, "object_store_memory": 100 << 20}
    empty: list[str] = []
    return {
        "cluster_name": "growing",
        "max_workers": max_nodes,
        "idle_timeout_minutes": _IDLE_SECONDS / 60,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,  # else nodes of one address are taken for ones that never came up
            "disable_node_updaters": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
        },
        "head_node_type": "ray.head.default",
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **dict.fromkeys(("cluster_synced_files", "initialization_commands", "setup_commands"), empty),
        **dict.fromkeys(("head_setup_commands", "worker_setup_commands"), empty),
        **dict.fromkeys(("head_start_ray_commands", "worker_start_ray_commands"), empty),
    }
