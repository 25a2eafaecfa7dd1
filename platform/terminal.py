"""Text for a terminal: what a person, a data file or a model wrote is shown as it is, and never obeyed."""

import functools
import math
import os
import re
import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

# Control characters, escape sequences' first bytes among them, and marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PIPE_WIDTH = 160  # columns, where nobody's window sets them


def show_controls(text: str) -> str:
    """`text` with its control characters spelled out; line ends and tabs stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def plain(value: object, style: str = "") -> Text:
    """A rich text that no markup, link or emoji code in `value` changes."""
    return Text(show_controls(str(value)), style)


def build_console(stderr: bool = False) -> Console:
    """Standard output or error; a pipe or a file gets wide lines, unless COLUMNS says otherwise."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def build_teller(console: Console) -> Callable[[str], None]:
    """Tells a person a line, just as it is."""
    return functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """8.3s, 4m 05s, 3h 07m, 2d 03h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f}d {hours % 24:02.0f}h"
    if hours:
        return f"{hours:.0f}h {minutes % 60:02.0f}m"
    return f"{minutes:.0f}m {seconds % 60:02.0f}s" if minutes else f"{seconds:.1f}s"


def format_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_time(seconds: float) -> str:
    """Unix seconds as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_number(value: float) -> str:
    """Four or five digits that matter: 2.1034, 48,120, 2e-05."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.3g}"
