"""The token: made once, for its owner alone, asked for by all that starts here; and clusters that ask for none."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray_node import Head, find_free_ports, lead_node

from sftray.cluster.authentication import (
    is_open,
    is_refused,
    load_token,
    make_token,
    refuse_disabled,
    refuse_open_cluster,
)
from sftray.train_fn.errors import ClusterError

TOKEN = os.environ["RAY_AUTH_TOKEN"]  # of the tests' heads


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
    path.chmod(0o640)  # a group shares it
    make_token(path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("mine", 0o640)
    path.chmod(0o644)  # as Ray makes it
    make_token(path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("mine", 0o600)
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


def test_the_token_of_the_environment_goes_before_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    assert load_token() is None
    (tmp_path / "auth_token").write_text("of the file\n")
    assert load_token() == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert load_token() == "of the environment"


@pytest.mark.parametrize("mode", ["disabled", "k8s", ""])
def test_nothing_starts_here_that_asks_for_no_token(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match=f"RAY_AUTH_MODE is {mode}: .*\n  why .*\n  fix  unset RAY_AUTH_MODE"):
        refuse_disabled()
    monkeypatch.setenv("RAY_AUTH_MODE", "TOKEN")
    refuse_disabled()
    monkeypatch.delenv("RAY_AUTH_MODE")
    refuse_disabled()


# Ray takes a head on the loopback for one that listens everywhere, unless it is told this.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(scope="module")
def open_head() -> Iterator[Head]:
    """A head that asks for no token."""
    with lead_node(1, RAY_AUTH_MODE="disabled", **LOOPBACK) as head:
        yield head


def spell_foreign(address: str) -> str:
    """The same address, as that of another machine is written: it is not seen that it is this one."""
    return address.replace("127.0.0.1", "127.1")


@pytest.mark.ray
def test_a_cluster_elsewhere_that_asks_for_no_token_gets_nothing(
    open_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    elsewhere = spell_foreign(open_head.dashboard)
    with pytest.raises(ClusterError, match="asks nobody for a token") as caught:
        refuse_open_cluster(elsewhere)
    assert "RAY_AUTH_MODE=disabled" in str(caught.value.problems[0].fix)
    refuse_open_cluster(open_head.dashboard)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    refuse_open_cluster(elsewhere)


class Old(BaseHTTPRequestHandler):
    """A dashboard from before there were tokens: it does not know the question."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


def test_a_cluster_that_does_not_know_of_tokens_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="asks nobody for a token"):
            refuse_open_cluster(f"http://127.1:{server.server_port}")
        server.shutdown()
    with pytest.raises(ClusterError, match="no job server at"):
        refuse_open_cluster(f"http://127.1:{server.server_port}")


@pytest.mark.ray
def test_a_command_says_so_before_it_sends_anything(open_head: Head, tmp_path: Path) -> None:
    command = ("-m", "sftray.platform.cli", "submit", "--address", spell_foreign(open_head.dashboard), "--", "train")
    kept = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, *command, "none.yaml"], env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 5 and "asks nobody for a token" in done.stderr, done.stderr


@pytest.mark.ray
def test_one_who_has_a_token_may_join_a_cluster_that_wants_none(open_head: Head) -> None:
    code = "from sftray.cluster.connection import look_around; print(len(look_around()[0]))"
    kept = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    settings = {"RAY_ADDRESS": open_head.address, "RAY_AUTH_TOKEN": "any", **LOOPBACK}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **settings}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.ray
def test_a_head_that_answers_who_has_no_token_is_open(open_head: Head, ray_head: Head) -> None:
    assert is_open(open_head.address) and not is_open(ray_head.address)
    (port,) = find_free_ports(1)
    assert not is_open(f"127.0.0.1:{port}")


@pytest.mark.ray
def test_a_token_that_a_cluster_does_not_take_is_told_at_once(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert not is_refused(ray_head.address)
    for token in ("", "wrong" * 8):
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
        assert is_refused(ray_head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    (port,) = find_free_ports(1)
    assert not is_refused(f"127.0.0.1:{port}")
