"""A real Prometheus with the cluster's own config, and questions to it."""

import contextlib
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ray_node import Head, find_free_ports

CLUSTER = Path(__file__).parents[2] / "cluster"


@contextlib.contextmanager
def run_prometheus(folder: Path, nodes: Path) -> Iterator[str]:
    """The address of a Prometheus with the cluster's config, but for its pace and for where it finds the nodes.

    Args:
        nodes: the file that names them, as Ray writes it.
    """
    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = "1s"
    (job,) = config["scrape_configs"]
    job["file_sd_configs"][0]["files"] = [str(nodes)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    flags = [f"--web.listen-address={address}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.out").open("wb") as out:
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", *flags]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except ConnectionError:  # it is about to start
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError) or getattr(error, "code", None) == 503:
            return []
        raise
    return found


def find_nodes_file(head: Head) -> Path:
    """Where Ray names the nodes of a cluster for Prometheus."""
    command = [str(word) for word in head.leader.args] if isinstance(head.leader.args, list) else []
    return Path(command[command.index("--temp-dir") + 1], "prom_metrics_service_discovery.json")
