"""Which setting is better, and how sure that is.

A loss is one draw: another seed orders the examples otherwise and starts from other weights. So settings are
compared by runs with several seeds, as an interval of the difference of their means. The run that made a setting a
finalist does not count: it was chosen for being good, so it is likelier to have been lucky (the winner's curse).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, Literal

from sftray.platform.leaderboard import Ranked, load_leaderboard
from sftray.platform.sweep_files import Point, load_settings

CONFIDENCE = 0.95
_EDGE = 0.05  # of a range: so near to its end, the best may well lie beyond

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
    """Settings that were run with several seeds, the lowest mean first: the repeats, else the search's own."""
    trials = load_leaderboard(sweep_dir, "repeat") or load_leaderboard(sweep_dir)
    groups: list[Group] = []
    for each in trials:
        if each.state not in ("finished", "failed") or (each.loss is None and each.state == "finished"):
            continue
        loss = math.inf if each.loss is None or each.state == "failed" else each.loss
        known = next((group for group in groups if group.setting == each.setting), None)
        if known is None:
            groups.append(Group(each.setting, {each.record.seed: loss}))
        else:
            known.losses[each.record.seed] = loss
    return sorted((group for group in groups if len(group.losses) > 1), key=lambda group: group.mean)


def describe_answer(sweep_dir: Path) -> list[str]:
    """What the sweep says, in sentences."""
    ranked = load_leaderboard(sweep_dir)
    finished = [each for each in ranked if each.state == "finished" and each.loss is not None]
    if not finished:
        return [_describe_nothing(ranked)]
    groups = load_groups(sweep_dir)
    lines = [_describe_best(finished[0])]
    if len(groups) >= 2:
        lines += _describe_comparisons(groups)
    elif len(groups) == 1 and len({str(each.setting) for each in ranked}) == 1:
        lines = [_describe_same(groups[0])]
    elif len(finished) > 1:
        lines.append(_describe_chance_unknown(finished))
    space = load_settings(sweep_dir).space
    return [*lines, *_describe_edges(finished[0].record.point, space)]


def _describe_nothing(ranked: Sequence[Ranked]) -> str:
    if not ranked:
        return "no trial has started"
    causes = Counter(each.why for each in ranked if each.state == "failed" and each.why)
    if not causes:
        return f"none of {len(ranked)} trials has finished"
    cause, count = causes.most_common(1)[0]
    return f"none of {len(ranked)} trials has finished; {count} failed with: {cause}"


def _describe_best(best: Ranked) -> str:
    return f"best: {best.record.name}, {write_setting(best.setting)}, validation loss {best.loss:.4f}"


def _describe_comparisons(groups: Sequence[Group]) -> list[str]:
    """The leader against each other one; with several of those, at a confidence that holds for all together."""
    leader, *others = groups
    confidence = 1 - (1 - CONFIDENCE) / len(others)  # Bonferroni
    names = name_settings([group.setting for group in groups])
    lines = []
    for other, name in zip(others, names[1:], strict=True):
        found = compare_settings(leader.losses, other.losses, confidence)
        lines.append(describe_comparison(found, names[0], name))
    return lines


def describe_comparison(found: Comparison, a: str, b: str) -> str:
    """`a` against `b` in one sentence."""
    if found.half_width is None:
        if found.verdict == "cannot tell":
            return f"cannot tell {a} and {b} apart: the runs are too few, or came to no numbers"
        winner, loser = (a, b) if found.verdict == "better" else (b, a)
        return f"{winner} beats {loser}, of which not every run came to a number"
    percent = f"{found.confidence * 100:.4g} %"
    kind = "paired seeds" if found.paired else "seeds of each"
    measured = f"{abs(found.difference):.2g} ± {found.half_width:.2g} ({percent} interval, {found.runs} {kind})"
    if found.verdict == "cannot tell":
        return f"cannot tell {a} and {b} apart: {measured}"
    winner, loser = (a, b) if found.verdict == "better" else (b, a)
    return f"{winner} beats {loser} by {measured}"


def _describe_same(group: Group) -> str:
    spread = max(group.losses.values()) - min(group.losses.values())
    return (
        f"cannot tell them apart: all {len(group.losses)} trials have the same settings; "
        f"seeds alone spread the loss over {spread:.3g} (mean {group.mean:.4f}, deviation "
        f"{stdev(group.losses.values()):.2g})"
    )


def _describe_chance_unknown(finished: Sequence[Ranked]) -> str:
    assert finished[0].loss is not None and finished[1].loss is not None  # the caller has seen to it
    gap = finished[1].loss - finished[0].loss
    second = write_setting(finished[1].setting)
    return (
        f"chance is not measured: the second, {second}, is {gap:.3g} behind in one run each; "
        "--repeats 3 would tell whether that is real"
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
    lines = []
    for key, value in point.items():
        bounds = _find_bounds(space.get(key))
        if bounds is not None and isinstance(value, int | float) and _is_at_edge(float(value), *bounds):
            low, high = (write_number(float(bound)) for bound in bounds[:2])
            lines.append(f"the best {key}, {write_number(value)}, is at the edge of [{low}, {high}]: widen the space")
    return lines


def _find_bounds(entry: Any) -> tuple[float, float, bool] | None:
    """The range of a parameter, and whether it is logarithmic; None where it has none to be at the edge of."""
    if not isinstance(entry, Mapping):
        return None
    for kind, log in (("log_uniform", True), ("uniform", False)):
        if isinstance(entry.get(kind), list):
            return float(entry[kind][0]), float(entry[kind][1]), log
    values = entry.get("choice") or entry.get("grid")
    if isinstance(values, list) and len(values) > 2 and all(isinstance(v, float) for v in values):
        return min(values), max(values), True
    return None


def _is_at_edge(value: float, low: float, high: float, log: bool) -> bool:
    if log and min(value, low, high) > 0:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return high > low and not _EDGE < (value - low) / (high - low) < 1 - _EDGE
