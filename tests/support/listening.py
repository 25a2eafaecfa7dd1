"""Where the processes of this machine listen, as Linux's /proc has it."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_LISTENS = "0A"


class Listener(NamedTuple):
    """`address`: an IP, in which `0.0.0.0` and `::` are all that the machine has. `command`: of its process."""

    pid: int
    address: str
    port: int
    command: str


def list_listeners(pids: Iterable[int]) -> list[Listener]:
    """The TCP ports at which these processes take connections."""
    return [found for pid in pids for found in _list_of(pid)]


def _list_of(pid: int) -> list[Listener]:
    process, found = Path("/proc", str(pid)), []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        own = {os.readlink(file) for file in (process / "fd").iterdir() if file.is_symlink()}
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for table in ("tcp", "tcp6"):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == _LISTENS and f"socket:[{inode}]" in own:
                    address, port = local.split(":")
                    found.append(Listener(pid, _read_address(address), int(port, 16), command))
    return found


def _read_address(digits: str) -> str:
    """The kernel prints an address as 32-bit words of the machine's own order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    address = socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
    return address.removeprefix("::ffff:")
