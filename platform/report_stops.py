"""Whether a trial that was ended early could have won, as far as the trials that went on can say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftray.platform.report_figures import format_percent

Losses = Mapping[float, float]  # progress -> validation loss

CRITERION = (
    "A stopped trial could have won if, where it was stopped, it was no worse than the eventual winner at the same "
    "progress, or its gap to the winner there is no larger than the largest gap that a finished trial made up from "
    "there to the end. The trials that finished were chosen for looking well, so this is a yardstick and no proof."
)


@dataclass(frozen=True)
class Stop:
    """A trial that was ended at `progress` with `loss`, and what the trials that finished had there.

    `gap` is to the winner's loss, `made_up` the largest part of its gap to the winner that another finished trial
    made up from there to the end (0 if none did). `could_have_won` is None where the winner has no loss there.
    """

    name: str
    progress: float
    loss: float
    winner_loss: float | None
    worst_loss: float | None
    behind: int
    finished: int
    made_up: float
    could_have_won: bool | None

    @property
    def gap(self) -> float | None:
        return None if self.winner_loss is None else self.loss - self.winner_loss


def judge_stop(name: str, progress: float, loss: float, finished: Sequence[Losses]) -> Stop:
    """Compare a stopped trial with the finished ones, of which the winner is first. The end is each one's best."""
    there = [losses[progress] for losses in finished if math.isfinite(losses.get(progress, math.inf))]
    winner_loss = finished[0].get(progress) if finished else None
    made_up, could_have_won = 0.0, None
    if winner_loss is not None:
        made_up = max([0.0, *(_count_made_up(losses, finished[0], progress) for losses in finished[1:])])
        could_have_won = loss <= winner_loss or (made_up > 0 and loss - winner_loss <= made_up)
    return Stop(
        name=name,
        progress=progress,
        loss=loss,
        winner_loss=winner_loss,
        worst_loss=max(there, default=None),
        behind=sum(other > loss for other in there),
        finished=len(there),
        made_up=made_up,
        could_have_won=could_have_won,
    )


def _count_made_up(losses: Losses, winner: Losses, progress: float) -> float:
    """By how much the gap to the winner has shrunk from `progress` to the best loss of either."""
    before = losses.get(progress, math.nan) - winner[progress]
    after = min(losses.values()) - min(winner.values())
    return before - after if math.isfinite(before - after) else 0.0


def describe_stops(stops: Sequence[Stop], winner: str) -> list[str]:
    """In sentences: how many could have won, and those that came nearest to it."""
    judged = [stop for stop in stops if stop.could_have_won is not None]
    if not judged:
        return ["No trial has finished that the stopped ones could be compared with."] if stops else []
    could = [stop for stop in judged if stop.could_have_won]
    if not could:
        head = f"None of {len(judged)} stopped trials could have won, as measured here. The one that came nearest:"
        return [head, describe_stop(min(judged, key=lambda stop: (stop.gap or 0.0) - stop.made_up), winner)]
    names = ", ".join(stop.name for stop in could)
    head = f"{len(could)} of {len(judged)} stopped trials could have won, as measured here: {names}."
    return [head, *(describe_stop(stop, winner) for stop in could[:3])]


def describe_stop(stop: Stop, winner: str) -> str:
    head = f"{stop.name} was stopped at {format_percent(stop.progress)} with {_write(stop.loss)}"
    if stop.winner_loss is None or stop.worst_loss is None:
        return f"{head}; no trial that finished was validated there."
    others = (
        f"{winner}, which won, had {_write(stop.winner_loss)} there, the worst of the trials that finished "
        f"{_write(stop.worst_loss)}; {stop.behind} of {stop.finished} finished trials were behind it"
    )
    caught = f"the largest gap made up from there on was {_write(stop.made_up)}"
    if stop.made_up <= 0:
        caught = "no other finished trial made up anything from there on"
    return f"{head}: {others}; {caught}."


def _write(loss: float) -> str:
    return f"{loss:.4g}" if math.isfinite(loss) else "no number"
