"""Noticing that the loss has jumped, while it is still finite."""

import statistics
from collections import deque
from dataclasses import dataclass, field

WINDOW = 64  # steps that say what is usual
FEWEST = 16  # steps before which nothing is called unusual
_SIGMAS = 6.0
_LEAST = 0.5  # nats: a loss near nothing, of rows known by heart, moves by many times itself
_TO_SIGMA = 1.4826  # of a normal distribution's median absolute deviation


@dataclass
class SpikeWatch:
    """Compares each step's loss with those of the steps before.

    Usual is the median; a spike is further above it than six robust standard deviations (by the median absolute
    deviation: Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993), and than half a nat. A level that
    stays becomes usual, and is told once. It starts anew with each attempt.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    is_high: bool = False

    def notice(self, loss: float) -> float | None:
        """The usual loss if this finite one begins a spike, or None."""
        usual = self._find_exceeded(loss)
        begins, self.is_high = usual is not None and not self.is_high, usual is not None
        self.recent.append(loss)
        return usual if begins else None

    def _find_exceeded(self, loss: float) -> float | None:
        if len(self.recent) < FEWEST:
            return None
        usual = statistics.median(self.recent)
        sigma = _TO_SIGMA * statistics.median(abs(value - usual) for value in self.recent)
        return usual if loss > usual + max(_SIGMAS * sigma, _LEAST) else None
