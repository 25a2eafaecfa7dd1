"""Before anything is started: what this machine cannot hold, and a cluster that is not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_node import find_free_ports
from tiny_runs import write_sums

from sftray.cluster.connection import check_this_machine, has_cluster, look_around
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError


@pytest.mark.slow
def test_too_many_workers_for_this_machine_are_refused_before_ray_is_imported() -> None:
    code = """
import sys
from sftray.cluster.connection import check_this_machine
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError
try:
    check_this_machine(ScalingConfig(num_workers=100_000))
except ClusterError as error:
    print(error)
sys.exit("ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("error  100000 workers of 1 CPU each need 100000 CPU;")


def test_where_a_cluster_is_named_this_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert has_cluster()
    check_this_machine(ScalingConfig(num_workers=100_000))


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    write_sums(tmp_path / "train.jsonl", 8)
    config.write_text(
        "model: {scratch: {architecture: llama, hidden_size: 16, num_hidden_layers: 1}, tokenizer: quickstart}\n"
        f"data: {{train: {tmp_path}/train.jsonl}}\nstore: {{path: {tmp_path}/runs}}\n"
    )
    (port,) = find_free_ports(1)
    address = f"127.0.0.1:{port}"
    code = "import sys; from sftray.platform.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(config)],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith(f"error  no Ray cluster answers at {address}\n  why  ")
    assert "Connection refused" in done.stderr and "RAY_ADDRESS" in done.stderr.rpartition("fix")[2]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []  # neither a run nor tokens


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ray://127.0.0.1:{port}", "Connection refused"),
        ("[::1]:{port}", ""),
        ("127.0.0.1:99999", ""),
        ("nonsense", "Invalid address format"),
        ("http://127.0.0.1:{port}", "Invalid Ray address"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = find_free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=port))
    with pytest.raises(ClusterError) as caught:
        look_around()
    (problem,) = caught.value.problems
    assert problem.what == f"no Ray cluster answers at {address.format(port=port)}"
    assert why in str(problem.why)
