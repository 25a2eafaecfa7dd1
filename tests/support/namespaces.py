"""Hosts of a network of their own on this machine: network namespaces, joined by a bridge. Needs root and iproute2.

The bridge, too, is in a namespace, so nothing of the machine's own network is touched, and each network may have the
same addresses. The file system is shared by all of them: it is the store that every node reaches.
"""

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator

from ray_node import Host

# Enters the namespace of a host and gives it a name of its own; `exec`: what is started keeps its process id.
_ENTER = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
_INTERFACE = "eth0"


class Network:
    """Up to 200 hosts. `hosts` by their names, in the order in which they were added."""

    def __init__(self) -> None:
        self._prefix = f"sr{secrets.token_hex(4)}"  # other tests may run beside this one
        self.hosts: dict[str, Host] = {}

    def open(self) -> None:
        self._add_namespace("hub")
        self._run_at("hub", "link", "add", "bridge", "type", "bridge")
        self._run_at("hub", "link", "set", "bridge", "up")

    def add_host(self, name: str) -> Host:
        ip = f"10.0.0.{len(self.hosts) + 1}"
        self._add_namespace(name)
        end = ("netns", self._name(name))
        self._run_at("hub", "link", "add", name, "type", "veth", "peer", "name", _INTERFACE, *end)
        self._run_at("hub", "link", "set", name, "master", "bridge", "up")
        self._run_at(name, "address", "add", f"{ip}/24", "dev", _INTERFACE)
        self._run_at(name, "link", "set", _INTERFACE, "up")
        enter = ("nsenter", f"--net=/run/netns/{self._name(name)}", *_ENTER, name)
        self.hosts[name] = Host(ip, enter)
        return self.hosts[name]

    def cut(self, name: str) -> None:
        """From now on nothing comes from a host and nothing goes there; nobody is told."""
        self._run_at("hub", "link", "set", name, "down")

    def mend(self, name: str) -> None:
        self._run_at("hub", "link", "set", name, "up")

    def kill_all(self) -> None:
        """End every process that is in the network, whoever started it."""
        for name in self.hosts:
            found = subprocess.run(
                ["ip", "netns", "pids", self._name(name)], capture_output=True, text=True, check=True
            )
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        """Interfaces go with the namespaces they are in."""
        for name in ("hub", *self.hosts):
            subprocess.run(["ip", "netns", "delete", self._name(name)], check=False, capture_output=True)

    def _name(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _add_namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._name(name)], check=True)
        self._run_at(name, "link", "set", "lo", "up")

    def _run_at(self, name: str, *arguments: str) -> None:
        subprocess.run(["ip", "-netns", self._name(name), *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def build_network(*names: str) -> Iterator[Network]:
    """A network with a host of each name."""
    network = Network()
    try:
        network.open()
        for name in names:
            network.add_host(name)
        yield network
    finally:
        network.close()
