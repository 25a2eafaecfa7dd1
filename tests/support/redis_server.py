"""A redis of the tests' own, for what Ray's head must remember: Debian's server, on a free port."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ray_node import find_free_ports
from waiting import wait_until


@contextlib.contextmanager
def run_redis(folder: Path) -> Iterator[tuple[str, str]]:
    """Its address and its password. The server ends with the block."""
    port, password = find_free_ports(1)[0], secrets.token_hex(16)
    folder.mkdir()
    settings = folder / "redis.conf"
    settings.write_text(f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nappendonly yes\n")
    settings.chmod(0o600)
    out = folder / "out"
    with out.open("wb") as file:
        server = subprocess.Popen(["redis-server", str(settings)], stdout=file, stderr=file)
    try:
        wait_until(lambda: b"Ready to accept connections" in out.read_bytes(), 30)
        yield f"127.0.0.1:{port}", password
    finally:
        server.terminate()
        server.wait(10)
