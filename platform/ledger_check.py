"""Whether a run trained on its examples as it should: each once an epoch, in the order that its seed gives."""

from dataclasses import dataclass
from pathlib import Path

from sftray.platform.run_files import load_receipt, read_events, read_rows
from sftray.train_fn.config_file import load_config
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.journal import CONFIG, METRICS
from sftray.train_fn.ledger import find_break


@dataclass(frozen=True)
class LedgerCheck:
    """What the rows of metrics.jsonl prove. `rows` that hold a chain, the last of `step`; `broken_at`: the first step
    whose chain is not what it must be; `unknown`: why it cannot be known."""

    rows: int = 0
    step: int = 0
    broken_at: int | None = None
    unknown: str | None = None

    @property
    def holds(self) -> bool:
        return self.unknown is None and self.broken_at is None

    def describe(self) -> str:
        if self.unknown is not None:
            return f"not checked: {self.unknown}"
        if self.broken_at is not None:
            return f"BROKEN at step {self.broken_at}: it did not train on the examples that its order gives"
        return f"whole: up to step {self.step} every example in its turn and once ({self.rows} rows)"


def check_ledger(run_dir: Path) -> LedgerCheck:
    """Compute the chain from the config and the number of examples, and compare. Raises nothing."""
    found = [(row["step"], row["ledger"]) for row in read_rows(run_dir / METRICS).rows if _holds_chain(row)]
    if not found:
        return LedgerCheck(unknown="no step has left a chain")
    if any(event["state"] == "exploited" for event in read_events(run_dir).rows):
        return LedgerCheck(unknown="the trial took over the weights of others, and their examples")
    try:
        config = load_config(run_dir / CONFIG, label=CONFIG).config
        num_examples = int(load_receipt(run_dir)["splits"]["train"]["kept"])
        batch = config.global_batch_size
    except (ConfigError, KeyError, TypeError, ValueError):
        return LedgerCheck(unknown="config.yaml or data.json cannot be read")
    if config.train.replay_seed:
        return LedgerCheck(unknown="the seed's loop was replayed, which leaves examples out at the end")
    broken_at = find_break(found, config.train.seed, batch, num_examples, config.train.max_examples)
    return LedgerCheck(len(found), max(step for step, _ in found), broken_at)


def _holds_chain(row: dict[str, object]) -> bool:
    return isinstance(row.get("step"), int) and isinstance(row.get("ledger"), str)
