"""What grows with workers and examples, and what failures cost, up to sizes that no test has.

    python tests/bench/scale.py [--workers 1 4 16 …] [--examples 1000000 …] [--json FILE]

Runs the parts whose cost could grow, by the project's own code, each cell in a process of its own: one rank's part of
a step (order, plan, ledger), its part of a validation, a lease's beat, a restart, rows of metrics, the check of a
ledger, the opening of a token store. The global batch is 8 examples a worker. Nothing trains and nothing travels, so
devices and collectives are not in it. Then failures are simulated: the share of time that is trained, with a save as
often as `sftray plan` recommends and as often as is best. Seconds of cells (`_s`) are the processor's.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from failure_model import find_best_seconds, simulate_loss
from rich.console import Console
from rich.table import Table
from scale_cells import CELLS, EXAMPLES_PER_WORKER

from sftray.platform.cadence import RESTART_S, recommend_cadence

Cell = dict[str, Any]
_PARAMETERS = 1_000_000_000
_DAYS = (7, 264)  # between failures of a worker: what `plan` supposes, and what Llama 3's nodes did
_FAILURES = 200_000


def run_cell(name: str, **sizes: int) -> Cell:
    """Sizes and answers of one cell, from a fresh process."""
    command = [sys.executable, __file__, "--cell", name, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"cell": name, **sizes, **json.loads(done.stdout)}


def compute_exponents(sizes: Sequence[float], values: Sequence[float]) -> list[float | None]:
    """k of value ~ size**k from each size to the next; None before the first and where it cannot be."""
    found: list[float | None] = [None]
    for (small, low), (large, high) in zip(
        zip(sizes, values, strict=True), zip(sizes[1:], values[1:], strict=True), strict=False
    ):
        usable = low > 0 and high > 0 and small != large
        found.append(math.log(high / low) / math.log(large / small) if usable else None)
    return found


def build_table(title: str, cells: Sequence[Cell], size: str, watched: str) -> Table:
    """The cells in order of `size`, with how `watched` grows from one to the next."""
    table = Table(title=title, title_justify="left")
    names = [name for name in cells[0] if name != "cell"]
    for name in [*names, f"{watched} ~ {size}^"]:
        table.add_column(name, justify="right")
    growth = compute_exponents([cell[size] for cell in cells], [cell[watched] for cell in cells])
    for cell, exponent in zip(cells, growth, strict=True):
        table.add_row(*(write(cell[name]) for name in names), "" if exponent is None else f"{exponent:.2f}")
    return table


def write(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def simulate_failures(workers: int, days: float, seed: int) -> Cell:
    """A model of a billion parameters. `trained`: the share of time that goes into steps that are kept."""
    between = days * 86400 / workers
    advised = recommend_cadence(_PARAMETERS, workers, days * 86400)
    best = find_best_seconds(advised.seconds, advised.cost, RESTART_S, between, _FAILURES // 4, seed)

    def simulate(seconds: float) -> float:
        return simulate_loss(seconds, advised.cost, RESTART_S, between, _FAILURES, seed + 1)

    return {
        **{"cell": "failures", "days": days, "workers": workers, "failure_every_s": between},
        **{"save_every_s": advised.seconds, "lost": advised.lost, "lost_simulated": simulate(advised.seconds)},
        **{"best_s": best, "lost_best": simulate(best), "trained": 1 - simulate(advised.seconds)},
    }


def run_cells(options: argparse.Namespace, console: Console) -> list[Cell]:
    """All tables, printed as they are ready."""
    found: list[Cell] = []
    workers, examples = options.workers, options.examples
    most, largest = max(workers), max(examples)
    sweeps: list[tuple[str, str, str, str, list[dict[str, int]]]] = [
        ("a step", "plan_steps", "workers", "step_s", [{"workers": w, "examples": largest} for w in workers]),
        ("a step", "plan_steps", "examples", "step_s", [{"workers": most, "examples": n} for n in examples]),
        (
            *("a validation", "plan_validation", "workers", "seconds"),
            [{"workers": w, "examples": options.validation} for w in workers],
        ),
        ("a beat of the lease", "beat", "attempts", "seconds", [{"attempts": n} for n in options.attempts]),
        (
            *("a restart after others", "restart", "workers", "count_s"),
            [{"workers": w, "attempts": options.restarts} for w in workers],
        ),
        ("rows of metrics", "log_metrics", "rows", "next_row_s", [{"rows": n} for n in options.rows]),
        (
            *("the check of an epoch's ledger", "check_ledger", "examples", "seconds"),
            [{"examples": n, "batch": EXAMPLES_PER_WORKER * most} for n in options.checked],
        ),
        ("opening tokens", "open_tokens", "examples", "seconds", [{"examples": n} for n in options.opened]),
    ]
    for title, name, size, watched, sizes in sweeps:
        cells = [run_cell(name, **each) for each in sizes]
        console.print(build_table(title, cells, size, watched))
        found += cells
    for days in _DAYS:
        cells = [simulate_failures(w, days, options.seed) for w in workers]
        title = f"failures: a worker fails once in {days} days, a restart takes {RESTART_S} s, seed {options.seed}"
        console.print(build_table(title, cells, "workers", "lost_simulated"))
        found += cells
    return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[4**k for k in range(7)])
    parser.add_argument("--examples", type=int, nargs="+", default=[10**k for k in range(6, 10)])
    parser.add_argument("--validation", type=int, default=65_536, help="validation examples")
    parser.add_argument("--attempts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--restarts", type=int, default=100, help="before the one that is measured")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--checked", type=int, nargs="+", default=[10**6, 10**7, 10**8], help="of one ledger")
    parser.add_argument("--opened", type=int, nargs="+", default=[10**5, 10**6], help="of one token store")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(CELLS[sys.argv[2]](**json.loads(sys.argv[3]))))
        return
    options = build_parser().parse_args()
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    found = run_cells(options, Console(width=width))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
