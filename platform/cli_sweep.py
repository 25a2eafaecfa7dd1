"""`sftray tune`, and what a sweep shows when it ends."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sftray.platform.cli_words import Config, Json, Overrides
from sftray.platform.exits import print_json


class Searcher(StrEnum):
    tpe = "tpe"
    random = "random"
    grid = "grid"


class Scheduler(StrEnum):
    asha = "asha"
    pbt = "pbt"
    none = "none"


def _option(name: str, metavar: str | None, text: str, min: float | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar=metavar, help=text, min=min, show_default=False)
    return option


Space = Annotated[str, _option("--space", "SPACE", "A YAML file, or one that ships. Default: lr_accumulation.")]
Trials = Annotated[int | None, _option("--trials", "N", "How many. Default: 8, or the whole grid.", min=1)]
Concurrent = Annotated[int | None, _option("--concurrent", "N", "At a time. Default: as many as fit.", min=1)]
Search = Annotated[Searcher | None, _option("--search", None, "Default: tpe, or grid where all is a grid.")]
Ends = Annotated[Scheduler, _option("--scheduler", None, "Which trials end early. Default: asha.")]
Repeats = Annotated[int, _option("--repeats", "K", "Run the finalists again with K other seeds.", min=0)]
Finalists = Annotated[int, _option("--finalists", "F", "So many settings are repeated. Default: 2.")]
MaxExamples = Annotated[int | None, _option("--max-examples", "N", "Of each trial. Default: the config's.", min=1)]
MaxMinutes = Annotated[float | None, _option("--max-minutes", "M", "Then it saves and stops (75).", min=0.01)]
Seed = Annotated[int, _option("--seed", "S", "Of the search; trials share train.seed. Default: 1.", min=0)]


def tune(
    config: Config,
    overrides: Overrides = None,
    space: Space = "lr_accumulation",
    trials: Trials = None,
    concurrent: Concurrent = None,
    searcher: Search = None,
    scheduler: Ends = Scheduler.asha,
    repeats: Repeats = 0,
    finalists: Finalists = 2,
    max_examples: MaxExamples = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Search settings with Ray Tune: each trial is a run, and all get the same examples."""
    from sftray.platform.shipped import load_named_config
    from sftray.platform.sweep import SweepOptions, tune_run
    from sftray.platform.terminal import build_console

    options = SweepOptions(
        space=space,
        searcher=searcher.value if searcher else None,
        scheduler=scheduler.value,
        trials=trials,
        concurrent=concurrent,
        repeats=repeats,
        finalists=finalists,
        max_examples=max_examples,
        max_minutes=max_minutes,
        seed=seed,
    )
    console = build_console(stderr=as_json)
    show_sweep(lambda: tune_run(*load_named_config(config, overrides or ()), options, console), as_json)


def show_sweep(run: Callable[[], Path], as_json: bool) -> None:
    """Run a sweep, then its leaderboard, its answer and where its report is."""
    from sftray.platform.report import write_report
    from sftray.platform.sweep_table import show_leaderboard, sweep_to_json
    from sftray.platform.terminal import build_console

    folder = run()
    report = write_report(folder)
    if as_json:
        print_json({**sweep_to_json(folder), "report": str(report)})
    else:
        console = build_console()
        show_leaderboard(folder, console)
        console.print(f"report: {report}", soft_wrap=True)
