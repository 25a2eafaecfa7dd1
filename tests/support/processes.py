"""The processes of this machine, as Linux's /proc has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    parent: int
    command: str


def list_processes() -> Iterator[Process]:
    """Those that run; not the dead that nobody has fetched yet."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if state != "Z":
            yield Process(int(folder.name), int(parent), command)


def has_ended(pid: int) -> bool:
    return all(process.pid != pid for process in list_processes())


def list_offspring(ancestor: int) -> set[int]:
    """The process, its children, theirs, and so on."""
    processes, found = list(list_processes()), {ancestor}
    while more := {process.pid for process in processes if process.parent in found} - found:
        found |= more
    return found
