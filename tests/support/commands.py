"""The real command in a process of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def start_command(
    folder: Path, *arguments: str, address: str | None = None, enter: Sequence[str] = ()
) -> "subprocess.Popen[bytes]":
    """`sftray` with these arguments, in a session of its own, with its output in `folder/out`.

    Without `address` it knows no cluster, and starts one of two CPUs. `enter`: a command that goes before it.
    """
    if address is None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    else:
        environment = {**os.environ, "RAY_ADDRESS": address}
    two = set(sorted(os.sched_getaffinity(0))[:2])
    return subprocess.Popen(
        [*enter, sys.executable, "-m", "sftray.platform.cli", *arguments],
        cwd=folder,
        env=environment,
        stdout=(folder / "out").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, two),
    )


def wait_for(look: Callable[[], Any], process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Return once `look` sees something; fails with the command's output where it ends before."""
    never = threading.Event()
    for _ in range(6000):
        if look():
            return
        if process.poll() is not None:
            break
        never.wait(0.02)
    raise AssertionError(read_output(folder))


def read_output(folder: Path) -> str:
    return (folder / "out").read_text(errors="replace")[-3000:]
