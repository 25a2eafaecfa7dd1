"""How a command ends: what went wrong as text and as JSON, and the exit code.

Every command runs through `run_guarded`, so that trouble looks the same everywhere.
"""

import contextlib
import io
import json
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import FrameType
from typing import NoReturn

from sftray.train_fn.errors import Problem, UserError

USAGE, OUR_BUG, INTERRUPTED = 2, 70, 130
DRIVER = "run-driver"  # the thread that drives a run or a sweep
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell says it
_STYLES = {r"^error(?=  )": "bold red", r"^  why(?=  )": "dim", r"^  fix(?=  )": "green"}


def run_guarded(command: Callable[[], int], as_json: bool) -> int:
    """Run `command` and return its exit code, or the one of the error that ended it.

    Errors are told on standard error; with `as_json` on standard output too, as
    `{"error": [{what, where, why, fix}], "exit_code": n}`. SIGTERM is taken as Ctrl-C is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot say 中 gets \u4e2d
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with _interrupted_by_sigterm():
                code = command()
        except UserError as error:
            code = report_problems(error.problems, error.exit_code, as_json)
        except KeyboardInterrupt as interrupt:
            code = report_problems([Problem("interrupted", why=str(interrupt) or None)], INTERRUPTED, as_json)
        except BrokenPipeError:
            raise
        except Exception as error:  # the last guard: nothing is hidden, the whole traceback goes to a file
            code = report_problems([_write_crash(error)], OUR_BUG, as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read our output has read enough
        _silence_stdout()
        return BROKEN_PIPE
    except SystemExit as end:  # the same, met by rich, which leaves with 1
        if isinstance(end.__context__, BrokenPipeError):
            return BROKEN_PIPE
        raise


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """By default it would end the process where it stands, and leave what must be let go of."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def leave(code: int) -> NoReturn:
    """End this process with `code`.

    A run that was left at once has a thread deep in Ray, which crashes, now and then, while the interpreter takes
    itself apart: so that does not happen then.
    """
    if any(thread.name == DRIVER for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def report_problems(problems: Sequence[Problem], exit_code: int, as_json: bool) -> int:
    if as_json:
        print_json({"error": [asdict(problem) for problem in problems], "exit_code": exit_code})
    _print_problems(problems)
    return exit_code


def print_json(value: object) -> None:
    """One JSON document on standard output, in ASCII: it is legal whatever the terminal's encoding."""
    print(json.dumps(value, indent=1, allow_nan=False))


def _print_problems(problems: Sequence[Problem]) -> None:
    from rich.console import Console

    from sftray.platform.terminal import plain

    text = plain("\n".join(str(problem) for problem in problems))
    for pattern, style in _STYLES.items():
        text.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    # Soft wrapping only: a path or a command that is copied from here must be in one piece.
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _write_crash(error: Exception) -> Problem:
    """Put the traceback into a file of the temporary folder, and say so."""
    from importlib.metadata import version

    text = "".join(
        [
            f"sftray {version('sftray')}, Python {platform.python_version()}, {platform.platform()}\n",
            f"command: {sys.argv}\n\n",
            *traceback.format_exception(error),
        ]
    )
    name = f"sftray-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path = os.path.join(tempfile.gettempdir(), name)
    said = str(error).strip().partition("\n")[0].strip()
    what = f"our bug: {type(error).__name__}" + (f": {said[:300]}" if said else "")
    try:
        # Exclusive and private: others share the folder, and the text may quote data.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as refused:
        print(text, file=sys.stderr)
        return Problem(what, why=f"{path} cannot be written ({refused.strerror}), so the traceback is above")
    return Problem(
        what,
        where=path,
        why="this is a mistake in sftray, not in what you gave it; the file holds the whole traceback",
        fix="report it with this file, after a look for anything private in it",
    )


def _silence_stdout() -> None:
    """Give Python's own flush at exit a place to write to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
