"""Which setting is better, and how sure that is.

A loss is one draw: another seed orders the examples otherwise and starts from other weights. So settings are
compared by runs with several seeds, as an interval of the difference of their means. The run that made a setting a
finalist does not count: it was chosen for being good, so it is likelier to have been lucky (the winner's curse).
Where more than two settings have repeats, the one with the lowest mean is compared to each of the others at a higher
confidence, 1 - 0.05 / (settings - 1), so that all those sentences together hold in 95 of 100 sweeps (Bonferroni).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, Literal

from sftray.platform.leaderboard import Ranked, load_leaderboard
from sftray.platform.space_edges import find_edges
from sftray.platform.sweep_files import Point, load_settings
from sftray.platform.trial_directory import is_final
from sftray.train_fn.places import spell

CONFIDENCE = 0.95

Losses = Mapping[int, float]  # seed -> validation loss


@dataclass(frozen=True)
class Comparison:
    """Of a setting a with a setting b: `difference` is the mean loss of b minus that of a, so positive where a is
    better, in nats per target token. `half_width` is None where the runs are too few for an interval."""

    difference: float
    half_width: float | None
    runs: int
    paired: bool
    confidence: float
    verdict: Literal["better", "worse", "cannot tell"]


def compare_settings(a: Losses, b: Losses, confidence: float = CONFIDENCE) -> Comparison:
    """Compare two settings by their losses.

    Seeds that both ran are compared in pairs (Student's t of the differences): what the seed does to both drops out.
    Without two such pairs it is Welch's t of unequal variances, which needs two runs of each.
    """
    if not a or not b:
        return Comparison(math.nan, None, 0, False, confidence, "cannot tell")
    if not all(map(math.isfinite, (*a.values(), *b.values()))):
        return _compare_broken(a, b, confidence)
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        differences = [b[seed] - a[seed] for seed in shared]
        error = stdev(differences) / math.sqrt(len(shared))
        return _judge(fmean(differences), error, len(shared) - 1, len(shared), True, confidence)
    difference = fmean(b.values()) - fmean(a.values())
    if len(a) < 2 or len(b) < 2:
        return Comparison(difference, None, min(len(a), len(b)), False, confidence, "cannot tell")
    parts = [variance(losses.values()) / len(losses) for losses in (a, b)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True)) if error else 1.0
    return _judge(difference, error, freedom, min(len(a), len(b)), False, confidence)


def _judge(difference: float, error: float, freedom: float, runs: int, paired: bool, confidence: float) -> Comparison:
    from scipy.stats import t

    half_width = float(t.ppf((1 + confidence) / 2, freedom)) * error
    if abs(difference) <= half_width or difference == 0.0:
        return Comparison(difference, half_width, runs, paired, confidence, "cannot tell")
    return Comparison(difference, half_width, runs, paired, confidence, "better" if difference > 0 else "worse")


def _compare_broken(a: Losses, b: Losses, confidence: float) -> Comparison:
    """A setting of which a run came to no number loses to one of which none did."""
    broken = [sum(not math.isfinite(loss) for loss in losses.values()) for losses in (a, b)]
    if bool(broken[0]) == bool(broken[1]):
        return Comparison(math.nan, None, 0, False, confidence, "cannot tell")
    return Comparison(math.nan, None, 0, False, confidence, "worse" if broken[0] else "better")


@dataclass(frozen=True)
class Group:
    """A setting and its losses by seed."""

    setting: Point
    losses: dict[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.losses.values())


def load_groups(sweep_dir: Path) -> list[Group]:
    """Settings that were run with several seeds, the lowest mean first: the repeats, else the search's own.

    A run that failed for its own sake counts as an infinite loss; one that was pruned, or that can still go on,
    does not count.
    """
    trials = load_leaderboard(sweep_dir, "repeat") or load_leaderboard(sweep_dir)
    groups: list[Group] = []
    for each in trials:
        if each.state == "pruned" or each.followed or not is_final(sweep_dir / each.record.name):
            continue
        loss = math.inf if each.loss is None or each.state == "failed" else each.loss
        known = next((group for group in groups if group.setting == each.setting), None)
        if known is None:
            groups.append(Group(each.setting, {each.record.seed: loss}))
        else:
            known.losses[each.record.seed] = loss
    return sorted((group for group in groups if len(group.losses) > 1), key=lambda group: group.mean)


def compare_groups(groups: Sequence[Group]) -> list[Comparison]:
    """The first group with each other one, at a confidence that holds for all together."""
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(groups) - 1)  # Bonferroni
    return [compare_settings(groups[0].losses, other.losses, confidence) for other in groups[1:]]


def describe_answer(sweep_dir: Path) -> list[str]:
    """What the sweep says, in sentences."""
    ranked = load_leaderboard(sweep_dir)
    finished = [each for each in ranked if each.state == "finished" and each.loss is not None]
    if not finished:
        return [_describe_nothing(ranked)]
    settings, groups = load_settings(sweep_dir), load_groups(sweep_dir)
    are_repeats = bool(load_leaderboard(sweep_dir, "repeat"))
    if len(groups) == 1 and len({repr(each.setting) for each in ranked}) == 1:
        return [_describe_same(groups[0])]
    lines = [_describe_best(finished[0])]
    if len(groups) >= 2:
        lines += _describe_comparisons(groups)
        lines += [] if are_repeats else _describe_left_out(ranked, groups)
    elif settings.repeats:
        lines.append(f"the repeats that would tell chance are not all there: sftray resume {spell(sweep_dir)}")
    else:
        lines.append(_describe_chance_unknown(finished))
    best = groups[0].setting if len(groups) >= 2 and are_repeats else finished[0].setting
    return [*lines, *_describe_edges(best, settings.space)]


def _describe_nothing(ranked: Sequence[Ranked]) -> str:
    if not ranked:
        return "no trial has started"
    causes = Counter(each.why for each in ranked if each.state == "failed" and each.why)
    if not causes:
        return f"none of {len(ranked)} trials has finished"
    cause, count = causes.most_common(1)[0]
    return f"none of {len(ranked)} trials has finished; {count} failed with: {cause}"


def _describe_best(best: Ranked) -> str:
    told = f"best: {best.record.name}, {write_setting(best.setting)}, validation loss {best.loss:.4f}"
    if not best.followed:
        return told
    return f"{told}; it came by these settings on its way, following {', '.join(dict.fromkeys(best.followed))}"


def _describe_comparisons(groups: Sequence[Group]) -> Iterator[str]:
    names = name_settings([group.setting for group in groups])
    for found, name in zip(compare_groups(groups), names[1:], strict=True):
        yield describe_comparison(found, names[0], name)


def _describe_left_out(ranked: Sequence[Ranked], groups: Sequence[Group]) -> list[str]:
    """Runs that the search ended early: those that were left are the luckier ones."""
    compared = [group.setting for group in groups]
    count = sum(each.state == "pruned" and each.setting in compared for each in ranked)
    told = f"{count} run(s) of these settings were pruned and do not count, which flatters the setting that lost more"
    return [f"{told}: --scheduler none counts all"] if count else []


def describe_comparison(found: Comparison, a: str, b: str) -> str:
    """`a` against `b` in one sentence."""
    if found.half_width is None:
        if found.verdict == "cannot tell":
            return f"cannot tell {a} and {b} apart: the runs are too few, or came to no numbers"
        winner, loser = (a, b) if found.verdict == "better" else (b, a)
        return f"{winner} beats {loser}, of which not every run came to a number"
    percent = f"{found.confidence * 100:.4g} %"
    kind = "paired seeds" if found.paired else "seeds of each"
    measured = f"{_write_measured(found.difference, found.half_width)} ({percent} interval, {found.runs} {kind})"
    if found.verdict == "cannot tell":
        return f"cannot tell {a} and {b} apart: {measured}"
    winner, loser = (a, b) if found.verdict == "better" else (b, a)
    return f"{winner} beats {loser} by {measured}"


def _write_measured(difference: float, half_width: float) -> str:
    """`0.0210 ± 0.0058`: the difference is as fine as two digits of the half width."""
    width = Decimal(f"{half_width:.2g}")
    digits = max(0, -int(width.as_tuple().exponent))
    return f"{abs(difference):.{digits}f} ± {width:f}" if width else f"{abs(difference):.3g} ± 0"


def _describe_same(group: Group) -> str:
    spread = max(group.losses.values()) - min(group.losses.values())
    return (
        f"cannot tell them apart: all {len(group.losses)} trials have the same settings; "
        f"seeds alone spread the loss over {spread:.3g} (mean {group.mean:.4f}, deviation "
        f"{stdev(group.losses.values()):.2g})"
    )


def _describe_chance_unknown(finished: Sequence[Ranked]) -> str:
    best = finished[0]
    second = next((each for each in finished if each.setting != best.setting), None)
    if second is None or best.loss is None or second.loss is None:
        return "no other settings finished: there is nothing to compare them with"
    return (
        f"chance is not measured: the second, {write_setting(second.setting)}, is {second.loss - best.loss:.3g} "
        "behind in one run each; --repeats 3 would tell whether that is real"
    )


def name_settings(settings: Sequence[Point]) -> list[str]:
    """Each by the keys in which they differ; by all where they do not."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    differing = [key for key in keys if len({str(setting.get(key)) for setting in settings}) > 1] or keys
    return [write_setting({k: v for k, v in setting.items() if k in differing}) for setting in settings]


def write_setting(setting: Point) -> str:
    """`learning_rate 0.0003, gradient_accumulation_steps 4`"""
    parts = (f"{key.rpartition('.')[2]} {write_number(value)}" for key, value in setting.items())
    return ", ".join(parts) or "the base config"


def write_number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _describe_edges(point: Point, space: Mapping[str, Any]) -> list[str]:
    return [
        f"the best {key}, {write_number(value)}, is at the edge of "
        f"[{write_number(bounds.low)}, {write_number(bounds.high)}]: widen the space"
        for key, value, bounds in find_edges(point, space)
    ]
