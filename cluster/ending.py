"""The exit code of a job's command, in its log: of a job that was stopped Ray does not keep it."""

import os
import re

SAY_END = "SFTRAY_SAY_END"  # the environment variable with which a command says its exit code last
_WORDS = "sftray has ended with exit code "


def say_end(code: int) -> None:
    """The last line of a job's log, for `find_end`."""
    if os.environ.get(SAY_END):
        print(f"{_WORDS}{code}", flush=True)


def find_end(log: str) -> int | None:
    """The exit code that the command in this log has said last; None where it did not come so far."""
    found = re.findall(rf"^{_WORDS}(\d+)$", log, re.MULTILINE)
    return int(found[-1]) if found else None
