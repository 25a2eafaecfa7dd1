"""How long something that fails by itself is tried again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """`tries` in all; the wait doubles from `first_s` seconds to at most `longest_s`."""

    tries: int = 8
    first_s: float = 0.2
    longest_s: float = 10.0


def plan_waits(patience: Patience) -> list[float]:
    """Seconds before each further try."""
    return [min(patience.first_s * 2**k, patience.longest_s) for k in range(patience.tries - 1)]


def try_patiently(
    act: Callable[[], T],
    is_transient: Callable[[Exception], bool],
    patience: Patience,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `act` returns. An error that may pass by itself is waited for; the last one, and any other, is raised."""
    for wait in plan_waits(patience):
        try:
            return act()
        except Exception as error:
            if not is_transient(error):
                raise
        sleep(wait)
    return act()
