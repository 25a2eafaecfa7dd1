"""What the scheduler of a sweep tells a trial, by a file in the trial's directory.

The driver decides in the moment in which it hears of a trial's validation, and the trial looks for the order as
soon as its report has been heard. So no process is killed to end a trial, and none is lost.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from sftray.train_fn.journal import STOP
from sftray.train_fn.places import write_whole

_ORDER = ".order.json"


@dataclass(frozen=True)
class Order:
    """`prune`: end here. `exploit`: go on from `donor`'s checkpoint `step` with the config in `config_text`.

    `facts` go into the trial's event as they are.
    """

    kind: Literal["prune", "exploit"]
    why: str
    facts: dict[str, Any] = field(default_factory=dict)
    donor: str | None = None  # a run directory
    step: int | None = None
    config_text: str | None = None
    config: dict[str, Any] | None = None
    config_hash: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


class Ordered(Exception):  # it is no error: it unwinds a run that was told to end here
    """Raised through the worker function of a trial that runs in this process."""


def give_order(run_dir: Path, order: Order) -> None:
    """Leave an order for the trial. A nested trial's workers save and stop when they see the stop file."""
    write_whole(run_dir / _ORDER, json.dumps(asdict(order), ensure_ascii=False))
    (run_dir / STOP).touch()


def take_order(run_dir: Path) -> Order | None:
    """The order that was given, once."""
    path = run_dir / _ORDER
    try:
        order = Order.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    clear_orders(run_dir)
    return order


def has_order(run_dir: Path) -> bool:
    return (run_dir / _ORDER).exists()


def clear_orders(run_dir: Path) -> None:
    """Forget orders, among them those that an attempt which was lost has not seen."""
    for name in (_ORDER, STOP):
        (run_dir / name).unlink(missing_ok=True)


def stop_file(run_dir: Path) -> Path:
    return run_dir / STOP
