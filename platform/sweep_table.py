"""A sweep as a table: its trials, best first, and what they say together."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftray.platform.certainty import compare_groups, describe_answer, load_groups, write_number
from sftray.platform.leaderboard import Ranked, load_leaderboard
from sftray.platform.sweep_files import load_settings
from sftray.platform.tables import STATE_STYLES
from sftray.platform.terminal import format_seconds, plain


@dataclass(frozen=True)
class _Column:
    """`width`: characters that the terminal must have for it to be shown; `show` gets a trial and its rank."""

    header: str
    width: int
    show: Callable[[Ranked, int | None], Text]
    justify: Literal["left", "right"] = "right"


_BEFORE = (
    _Column("rank", 70, lambda each, rank: plain("–" if rank is None else rank)),
    _Column("trial", 0, lambda each, rank: plain(each.record.name, "bold"), "left"),
)
_AFTER = (
    _Column("val/loss", 0, lambda each, rank: plain("–" if each.loss is None else f"{each.loss:.4f}")),
    _Column("at step", 110, lambda each, rank: plain("–" if each.step is None else each.step)),
    _Column("at", 90, lambda each, rank: plain("–" if each.progress is None else f"{each.progress:.0%}")),
    _Column("state", 0, lambda each, rank: plain(each.state, STATE_STYLES.get(each.state, "")), "left"),
    _Column("time", 100, lambda each, rank: plain("–" if each.seconds is None else format_seconds(each.seconds))),
)


def show_leaderboard(sweep_dir: Path, console: Console) -> None:
    """Print the trials, then repeats if there are any, why trials failed, and the answer."""
    ranked = load_leaderboard(sweep_dir)
    if ranked:
        console.print(_build_table(ranked, console.width))
    repeats = load_leaderboard(sweep_dir, "repeat")
    if repeats:
        console.print(plain("repeats of the finalists, with other seeds", "dim"))
        console.print(_build_table(repeats, console.width))
    for each in (*ranked, *repeats):
        if each.state == "failed":
            console.print(plain(f"{each.record.name} failed: {each.why}"), soft_wrap=True)
    for line in describe_answer(sweep_dir):
        console.print(plain(line, "bold"), soft_wrap=True)


def _build_table(ranked: Sequence[Ranked], width: int) -> Table:
    keys = list(dict.fromkeys(key for each in ranked for key in each.setting))
    settings = [_build_setting(key, name) for key, name in shorten_keys(keys).items()]
    if len({each.record.seed for each in ranked}) > 1:
        settings.append(_Column("seed", 0, lambda each, rank: plain(each.record.seed)))
    columns = [column for column in (*_BEFORE, *settings, *_AFTER) if column.width <= width]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:  # headers of settings are folded; names and numbers stay whole
        is_setting = column in settings
        table.add_column(
            plain(column.header),
            justify=column.justify,
            no_wrap=not is_setting,
            overflow="fold" if is_setting else "ellipsis",
            min_width=len(ranked[0].record.name) if column.header == "trial" else None,
        )
    rank = 0
    for each in ranked:
        has_rank = each.loss is not None and each.state != "failed"
        rank += has_rank
        table.add_row(*(column.show(each, rank if has_rank else None) for column in columns))
    return table


def _build_setting(key: str, name: str) -> _Column:
    return _Column(name, 0, lambda each, rank: plain(write_number(each.setting[key]) if key in each.setting else "–"))


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last part, where that is its alone."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def sweep_to_json(sweep_dir: Path) -> dict[str, Any]:
    """Settings, trials, comparisons and answer as JSON values."""
    return {
        "sweep": dataclasses.asdict(load_settings(sweep_dir)),
        "path": str(sweep_dir),
        "leaderboard": [_to_json(each) for each in load_leaderboard(sweep_dir)],
        "repeats": [_to_json(each) for each in load_leaderboard(sweep_dir, "repeat")],
        "comparisons": _list_comparisons(sweep_dir),
        "answer": describe_answer(sweep_dir),
    }


def _to_json(each: Ranked) -> dict[str, Any]:
    own = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
    record = own.pop("record")
    own["point"] = own["point"] or record.point
    return {**record.to_json(), **own, "followed": list(each.followed)}


def _list_comparisons(sweep_dir: Path) -> list[dict[str, Any]]:
    """The setting with the lowest mean and each other one; numbers that there are none of are null."""
    groups = load_groups(sweep_dir)
    found = []
    for other, comparison in zip(groups[1:], compare_groups(groups) if groups else [], strict=True):
        facts = {key: _to_number(value) for key, value in dataclasses.asdict(comparison).items()}
        found.append(
            {
                "a": _describe(groups[0].setting, groups[0].losses),
                "b": _describe(other.setting, other.losses),
                **facts,
            }
        )
    return found


def _describe(setting: dict[str, Any], losses: dict[int, float]) -> dict[str, Any]:
    return {"setting": setting, "losses": {str(seed): _to_number(loss) for seed, loss in losses.items()}}


def _to_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
