"""Live numbers in Ray's own metrics, for Prometheus.

Every number of metrics.jsonl is a gauge: `train/loss` is `ray_sftray_train_loss{run="…"}`. Beside them stand
`ray_sftray_eta_seconds`, `ray_sftray_restarts`, `ray_sftray_skipped_steps`, and of checkpoints
`ray_sftray_checkpoint_time_seconds` (when the last was committed, Unix seconds: its age is `time()` minus it),
`ray_sftray_checkpoint_seconds` (of writing it) and `ray_sftray_checkpoint_stall_seconds` (for which training waited).
A trial's `run` is `sweep/trial-000`.
"""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ray.util.metrics import Gauge

_AGAIN_S = 2.0


class Gauges:
    """One gauge for each name, tagged with the run; told as long as this is open.

    Ray forgets a value that is not told again within two of its intervals (20 s), and some are told once an hour.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, tuple[Gauge, float]] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def set(self, values: Mapping[str, float]) -> None:
        with self._lock:
            for name, value in values.items():
                gauge = self._gauges[name][0] if name in self._gauges else self._build(name)
                self._gauges[name] = gauge, value
                gauge.set(value, tags={"run": self._run})
        if self._thread is None:
            self._thread = threading.Thread(target=self._repeat, name="gauges", daemon=True)
            self._thread.start()

    def _build(self, name: str) -> Gauge:
        return Gauge("sftray_" + name.replace("/", "_"), description=name, tag_keys=("run",))

    def _repeat(self) -> None:
        while not self._done.wait(_AGAIN_S):
            with self._lock:
                for gauge, value in self._gauges.values():
                    gauge.set(value, tags={"run": self._run})
