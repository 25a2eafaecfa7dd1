"""The progress of a run in the terminal: a live bar, or plain lines where the output is no terminal."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from sftray.platform.mirror import Mirror
from sftray.platform.terminal import show_controls

Row = Mapping[str, Any]

_PACE_ROWS = 20  # the pace, and so the remaining time, is taken over so many logged rows
_MOST_NODES = 8  # of a line


def build_progress(console: Console, total_steps: int, title: str) -> Mirror:
    """A live bar named `title` on a terminal; elsewhere one line for each logged row and event."""
    if console.is_terminal:
        return _Bar(console, total_steps, title)
    return build_lines(console, total_steps)


def build_lines(console: Console, total_steps: int) -> Mirror:
    """One line for each logged row and event."""
    return _Lines(console, total_steps)


class _Pace:
    """The remaining time, from the steps and times of the last rows of this attempt."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._marks: deque[tuple[int, float]] = deque(maxlen=_PACE_ROWS)  # step, Unix seconds

    def restart(self) -> None:
        self._marks.clear()

    def mark(self, row: Row) -> str | None:
        """Note a row; the time that its remaining steps will take, if there are any and it can be told."""
        step, left = row["step"], self._total_steps - row["step"]
        self._marks.append((step, row.get("time", 0.0)))
        (first_step, first_time), (_, time) = self._marks[0], self._marks[-1]
        # Until two rows are there: the row's own duration of a step.
        pace = (time - first_time) / (step - first_step) if step > first_step else row.get("perf/step_seconds")
        return format_clock(left * pace) if left > 0 and pace is not None else None


class _Lines:
    """One line for each row and event. Each is flushed at once, so that a job's log is never behind."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._total_steps = total_steps
        self._pace = _Pace(total_steps)

    def on_metrics(self, row: Row) -> None:
        parts = [f"step {row['step']}/{self._total_steps}", *describe_numbers(row)]
        if (eta := self._pace.mark(row)) is not None:
            parts.append(f"eta {eta}")
        self._console.out("  ".join(parts), highlight=False)  # out: neither wrapped nor read as markup

    def on_event(self, row: Row) -> None:
        if row["state"] == "running":
            self._pace.restart()
        if (line := describe_event(row)) is not None:
            self._console.out(line, highlight=False)

    def close(self, state: str) -> None:
        pass


class _Bar:
    """A bar that stays at the bottom, with events as lines above it. It starts with the first row or event."""

    def __init__(self, console: Console, total_steps: int, title: str) -> None:
        self._pace = _Pace(total_steps)
        self._latest: dict[str, Any] = {}  # the last value of each number: few rows have them all
        fixed = Column(no_wrap=True)  # in a narrow terminal it is the bar that shrinks
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=fixed),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[numbers]}", markup=False, table_column=fixed),
            TimeElapsedColumn(table_column=fixed),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID = self._progress.add_task(title, total=total_steps, numbers="")

    def on_metrics(self, row: Row) -> None:
        self._progress.start()
        self._latest |= row
        numbers = describe_numbers(
            {key: value for key, value in self._latest.items() if key != "optim/learning_rate"}
        )
        if (eta := self._pace.mark(row)) is not None:
            numbers.append(f"eta {eta}")
        self._progress.update(self._task, completed=row["step"], numbers="  ".join(numbers))

    def on_event(self, row: Row) -> None:
        self._progress.start()
        if row["state"] == "running":
            self._pace.restart()
            self._progress.update(self._task, completed=row.get("step", 0))
        if (line := describe_event(row)) is not None:
            self._progress.console.print(Text(line), highlight=False)

    def close(self, state: str) -> None:
        self._progress.stop()


def describe_numbers(row: Row) -> list[str]:
    """`loss 1.234`, `val 1.301`, `lr 2.0e-05`, `812 target tok/s`: those that the row has."""
    parts = []
    if (loss := row.get("train/loss")) is not None:
        parts.append(f"loss {format_loss(loss)}")
    if (loss := row.get("val/loss")) is not None:
        parts.append(f"val {format_loss(loss)}")
    if (rate := row.get("optim/learning_rate")) is not None:
        parts.append(f"lr {float(rate):.1e}")
    if (speed := row.get("perf/target_tokens_per_second")) is not None:
        parts.append(f"{float(speed):,.0f} target tok/s")
    return parts


def describe_event(row: Row) -> str | None:
    """An event as one short line; None for what the log tells already."""
    state, step, why = row["state"], row.get("step"), _make_line(row.get("why") or "")
    match state:
        case "running":
            where = describe_places(row.get("nodes") or [])
            if why:
                began = f"goes on from step {step}" if step else "begins again"
                return f"attempt {row['attempt']} {began}{where}: {why}"
            return f"attempt {row['attempt']} {f'resumed at step {step}' if step else 'started'}{where}"
        case "checkpoint":
            return f"checkpoint saved at step {step}"
        case "checkpoint_broken":
            return f"{row.get('checkpoint')} is broken and set aside: {why}"
        case "skipped_step":
            return f"step {step} skipped: {why}"
        case "loss_spike":
            return f"step {step}: the loss jumped ({why}); its examples stand in events.jsonl"
        case "mirror_off" | "worker_failed" | "frozen":  # the next attempt says it, or the error that ends the run
            return None
        case _:
            return f"{_make_line(state)}: {why}" if why else _make_line(state)


def describe_places(nodes: Sequence[str]) -> str:
    """' on a (ranks 0-1), b (rank 2)', of the node of each rank; '' where they are not known."""
    ranks: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(rank)
    told = [f"{node} ({_describe_ranks(held)})" for node, held in islice(ranks.items(), _MOST_NODES)]
    more = f" and {len(ranks) - _MOST_NODES} more nodes" if len(ranks) > _MOST_NODES else ""
    return f" on {', '.join(told)}{more}" if told else ""


def _describe_ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    is_row = ranks[-1] - ranks[0] == len(ranks) - 1
    return f"ranks {ranks[0]}-{ranks[-1]}" if is_row else f"ranks {', '.join(map(str, ranks))}"


def format_loss(value: float | str) -> str:
    """Four digits that count. Not-a-number and infinities are text in JSON: `nan`, `inf`."""
    return f"{float(value):#.4g}".rstrip(".")


def format_clock(seconds: float) -> str:
    """1:23, 2:01:23, 3d 02:01:23."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _make_line(text: str) -> str:
    return show_controls(" ".join(text.split()))
