"""What a finished run came to, from its own files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sftray.platform.before_after import describe_exact_match, show_samples
from sftray.train_fn.checkpoint import find_best, list_checkpoints
from sftray.train_fn.journal import CHECKPOINTS, METRICS, SAMPLES, read_lines
from sftray.train_fn.places import spell

_SUM = re.compile(r"^\d+ \+ \d+[:：]")  # how the quickstart's data writes the working of a sum


@dataclass(frozen=True)
class RunSummary:
    """`before` and `after` are the first and last validation loss, None without validation data."""

    run_dir: Path
    step: int
    train_loss: float | None
    val_loss_before: float | None
    val_loss_after: float | None
    peak_memory_gb: float
    target_tokens_per_second: float
    checkpoint: Path
    best_checkpoint: Path | None
    samples: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        facts = {key: value for key, value in vars(self).items() if key != "samples"}
        return {key: value if isinstance(value, int | float | None) else str(value) for key, value in facts.items()}


def summarize(run_dir: Path) -> RunSummary:
    rows = list(read_lines(run_dir / METRICS))
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    speeds = sorted(row["perf/target_tokens_per_second"] for row in rows if "train/loss" in row)
    checkpoints = run_dir / CHECKPOINTS
    best = find_best(checkpoints)
    return RunSummary(
        run_dir=run_dir,
        step=rows[-1]["step"],
        train_loss=rows[-1].get("train/loss"),
        val_loss_before=losses[0] if losses else None,
        val_loss_after=losses[-1] if losses else None,
        peak_memory_gb=max(row["perf/peak_memory_gb"] for row in rows),
        target_tokens_per_second=speeds[len(speeds) // 2] if speeds else 0.0,
        checkpoint=checkpoints / list_checkpoints(checkpoints)[-1].name,
        best_checkpoint=checkpoints / best.name if best else None,
        samples=list(read_lines(run_dir / SAMPLES)),
    )


def show_summary(summary: RunSummary, console: Console) -> None:
    """Before and after, side by side, and where to go from here."""
    show_samples(console, summary.samples)
    lines = [f"{summary.run_dir.name}: finished at step {summary.step}"]
    if summary.val_loss_before is not None and summary.val_loss_after is not None:
        before, after = float(summary.val_loss_before), float(summary.val_loss_after)  # "nan" is text in JSON
        lines.append(f"  validation loss {before:.4f} before, {after:.4f} after")
    held_out = summary.val_loss_before is not None
    lines.append(f"  {describe_exact_match(summary.samples, held_out)}")
    sums = [row for row in summary.samples if _SUM.search(row["reference"])]
    if 0 < len(sums) < len(summary.samples):
        lines.append(f"  sums among them: {describe_exact_match(sums, held_out)}")
    lines += [
        f"  {summary.target_tokens_per_second:,.0f} target tokens/s (median), "
        f"peak memory of a worker {summary.peak_memory_gb:.2f} GB",
        f"  checkpoint {summary.checkpoint}",
        f"  next: sftray chat {spell(summary.run_dir)}   or   sftray runs show {spell(summary.run_dir)}",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
