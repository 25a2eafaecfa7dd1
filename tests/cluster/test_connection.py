"""Before anything is started: the token, what this machine cannot hold, and a cluster that is not there."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ray_node import find_free_ports
from tiny_runs import write_sums

from sftray.cluster.connection import check_this_machine, has_cluster, look_around, make_token
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "ray" / "auth_token"
    before = os.umask(0)
    try:
        make_token(path)
    finally:
        os.umask(before)
    text = path.read_text()
    assert len(text) == 64 and int(text, 16)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    make_token(path)
    assert path.read_text() == text
    make_token(tmp_path / "other")
    assert (tmp_path / "other").read_text() != text


def test_a_token_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "auth_token"
    path.write_text("mine")
    path.chmod(0o640)
    make_token(path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("mine", 0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "in the environment")
    make_token(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_several_starts_at_once_make_one_token(tmp_path: Path) -> None:
    path, together, failed = tmp_path / "auth_token", threading.Barrier(8), []

    def start() -> None:
        together.wait()
        try:
            make_token(path)
        except BaseException as error:  # it is the test's result
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(path.read_text()) == 64


def test_a_token_that_cannot_be_written_says_where_it_could(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH") as caught:
        make_token(tmp_path / "file" / "auth_token")
    assert caught.value.problems[0].where == str(tmp_path / "file" / "auth_token")


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
