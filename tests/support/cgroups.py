"""Control groups that limit memory, as a container has one. Needs root and a memory controller of either version."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from ray_node import Host
from waiting import wait_until

_ROOT = Path("/sys/fs/cgroup")
# Joins the group, and shows it to what starts there in the place of the root, as a container sees its own.
_ENTER = 'echo $$ > "$0/cgroup.procs" && mount --bind "$0" "$1" && shift && exec "$@"'


class Group:
    """One of the first version, with a hierarchy for each controller, or of the second, with one for all."""

    def __init__(self, name: str) -> None:
        is_first = (_ROOT / "memory").is_dir()
        self._top = _ROOT / "memory" if is_first else _ROOT
        self.path = self._top / name
        self._limit = self.path / ("memory.limit_in_bytes" if is_first else "memory.max")
        self._kills = self.path / ("memory.oom_control" if is_first else "memory.events")
        self._usage = self.path / ("memory.usage_in_bytes" if is_first else "memory.current")

    def add(self, pid: int) -> None:
        """What it has already counts where it was; what it asks for from now on counts here."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, size: int) -> None:
        """Bytes. What asks for more is killed by the kernel."""
        self._limit.write_text(str(size))

    def count_kills(self) -> int:
        """Processes in it that the kernel has killed for want of memory."""
        return int(_read_facts(self._kills)["oom_kill"])

    def measure(self) -> int:
        """Bytes that its processes hold. Files in the cache count, but not those that nobody has used twice."""
        facts = _read_facts(self.path / "memory.stat")
        idle = facts.get("total_inactive_file", facts["inactive_file"])
        return int(self._usage.read_text()) - int(idle)

    def as_host(self) -> Host:
        """This machine, with as much memory as the group has."""
        return Host(enter=("unshare", "--mount", "sh", "-c", _ENTER, str(self.path), str(self._top)))


def _read_facts(path: Path) -> dict[str, str]:
    return dict(line.split() for line in path.read_text().splitlines())


@contextlib.contextmanager
def make_group(size: int) -> Iterator[Group]:
    """A group of `size` bytes of memory. All that was in it must have ended at the end."""
    group = Group(f"sr{secrets.token_hex(4)}")  # other tests may run beside this one
    group.path.mkdir()
    try:
        group.limit(size)
        yield group
    finally:
        wait_until(lambda: not (group.path / "cgroup.procs").read_text().strip())
        group.path.rmdir()
