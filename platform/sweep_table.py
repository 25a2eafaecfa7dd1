"""A sweep as a table: its trials, best first, and what they say together."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sftray.platform.certainty import describe_answer, write_number
from sftray.platform.leaderboard import Ranked, load_leaderboard
from sftray.platform.sweep_files import load_settings
from sftray.platform.tables import STATE_STYLES
from sftray.platform.terminal import format_seconds, plain

_WIDE = 100  # characters from which on all columns are shown


def list_keys(ranked: list[Ranked]) -> list[str]:
    """The settings that the trials have, in the order of the space."""
    return list(dict.fromkeys(key for each in ranked for key in each.record.point))


def show_leaderboard(sweep_dir: Path, console: Console) -> None:
    """Print the trials, then repeats if there are any, why trials failed, and the answer."""
    ranked = load_leaderboard(sweep_dir)
    if ranked:
        console.print(_build_table(ranked, console.width >= _WIDE))
    repeats = load_leaderboard(sweep_dir, "repeat")
    if repeats:
        console.print(plain("repeats of the finalists, with other seeds", "dim"))
        console.print(_build_table(repeats, console.width >= _WIDE))
    for each in (*ranked, *repeats):
        if each.state == "failed":
            console.print(plain(f"{each.record.name} failed: {each.why}"), soft_wrap=True)
    for line in describe_answer(sweep_dir):
        console.print(plain(line, "bold"), soft_wrap=True)


def _build_table(ranked: list[Ranked], wide: bool) -> Table:
    keys = list_keys(ranked)
    has_seeds = len({each.record.seed for each in ranked}) > 1
    table = Table(box=None, header_style="dim", pad_edge=False)
    headers = [*(key.rpartition(".")[2] for key in keys), *(["seed"] if has_seeds else []), "val/loss"]
    table.add_column("trial", no_wrap=True)
    for header in (*headers, *(["at step", "at"] if wide else [])):
        table.add_column(plain(header), justify="right")
    table.add_column("state")
    if wide:
        table.add_column("time", justify="right")
    for each in ranked:
        table.add_row(*_build_row(each, keys, has_seeds, wide))
    return table


def _build_row(each: Ranked, keys: list[str], has_seeds: bool, wide: bool) -> list[Any]:
    point = each.record.point
    values = [write_number(point[key]) if key in point else "–" for key in keys]
    loss = "–" if each.loss is None else f"{float(each.loss):.4f}"
    place = [str(each.step or "–"), "–" if each.progress is None else f"{each.progress:.0%}"] if wide else []
    seconds = ["–" if each.seconds is None else format_seconds(each.seconds)] if wide else []
    seed = [str(each.record.seed)] if has_seeds else []
    texts = [plain(text) for text in (*values, *seed, loss, *place)]
    state = plain(each.state, STATE_STYLES.get(each.state, ""))
    return [plain(each.record.name, "bold"), *texts, state, *map(plain, seconds)]


def sweep_to_json(sweep_dir: Path) -> dict[str, Any]:
    """Settings, trials and answer as JSON values."""
    return {
        "sweep": dataclasses.asdict(load_settings(sweep_dir)),
        "path": str(sweep_dir),
        "leaderboard": [_to_json(each) for each in load_leaderboard(sweep_dir)],
        "repeats": [_to_json(each) for each in load_leaderboard(sweep_dir, "repeat")],
        "answer": describe_answer(sweep_dir),
    }


def _to_json(each: Ranked) -> dict[str, Any]:
    facts = {field.name: getattr(each, field.name) for field in dataclasses.fields(each) if field.name != "record"}
    return {**each.record.to_json(), **facts}
