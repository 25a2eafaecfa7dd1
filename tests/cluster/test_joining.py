"""What is tried again of what goes wrong while workers get ready."""

import importlib
import os

import pytest
from listening import list_listeners
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray_node import find_free_ports

from sftray.cluster.joining import LOW_ON_MEMORY, JoiningConfig, describe_error, keep_on_loopback, may_pass


def in_task(cause: Exception) -> Exception:
    error: Exception = RayTaskError("execute", "Traceback …", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("error", "passes", "words"),
    [
        (in_task(RuntimeError("no address\nfor nothere0")), True, "no address for nothere0"),
        (in_task(ConnectionResetError("reset")), True, "reset"),
        (ActorDiedError(), True, "The actor died unexpectedly before finishing this task."),
        (OutOfMemoryError("killed"), True, f"a worker was lost: {LOW_ON_MEMORY}"),
        (in_task(ImportError("no module named sftray")), False, "no module named sftray"),
        (in_task(ValueError("bad")), False, "bad"),
        (ValueError(), False, "ValueError"),
    ],
)
def test_a_network_may_come_back_and_a_module_does_not(error: Exception, passes: bool, words: str) -> None:
    assert may_pass(error) == passes
    assert describe_error(error) == words


def test_the_settings_are_those_of_ray() -> None:
    config = JoiningConfig(backend="gloo", timeout_s=120)
    assert (config.backend, config.timeout_s, config.init_method) == ("gloo", 120, "env")


@pytest.mark.parametrize(("host", "listens"), [("127.0.0.1", "127.0.0.1"), ("localhost", "::")])
def test_workers_of_one_machine_meet_on_the_loopback(
    host: str, listens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(meeting, "TCPStore", meeting.TCPStore)  # put back afterwards
    keep_on_loopback()
    keep_on_loopback()
    (port,) = find_free_ports(1)
    store = meeting.TCPStore(host_name=host, port=port, world_size=1, is_master=True, multi_tenant=True)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert [each.address for each in list_listeners([os.getpid()]) if each.port == port] == [listens]
