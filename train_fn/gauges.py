"""Live numbers in Ray's own metrics: one gauge for each metric name, tagged with the run."""

from collections.abc import Mapping

from ray.util.metrics import Gauge


class Gauges:
    """`train/loss` of a run is `ray_sftray_train_loss{run="…"}` in Prometheus."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name not in self._gauges:
                metric = "sftray_" + name.replace("/", "_")
                self._gauges[name] = Gauge(metric, description=name, tag_keys=("run",))
            self._gauges[name].set(value, tags={"run": self._run})
