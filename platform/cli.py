"""The command line: each command is a few lines over a function, imported when it is asked for."""

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from sftray.platform.exits import USAGE, print_json, report_problems, run_guarded
from sftray.train_fn.errors import Problem

app = typer.Typer(
    name="sftray",
    help="Supervised fine-tuning of language models, as experiments on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs = typer.Typer(help="Read the store: works with no cluster and no server.")
app.add_typer(runs, name="runs")

Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or a preset such as quickstart.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings put over it: optim.learning_rate=3e-4", show_default=False),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory, or its name.", show_default=False)]
Store = Annotated[str, typer.Option("--store", metavar="PATH", help="Where runs are kept.")]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON, for a program.")]


class Searcher(StrEnum):
    tpe = "tpe"
    random = "random"
    grid = "grid"


class Scheduler(StrEnum):
    asha = "asha"
    pbt = "pbt"
    none = "none"


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as read_version

        print(f"sftray {read_version('sftray')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


@app.command()
def train(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train one run, to its end."""
    from sftray.platform.driver import train_run
    from sftray.platform.shipped import load_named_config
    from sftray.platform.summary import show_summary
    from sftray.platform.terminal import build_console

    console = build_console(stderr=as_json)
    summary = train_run(*load_named_config(config, overrides or ()), console)
    if as_json:
        print_json(summary.to_json())
    else:
        show_summary(summary, console)


@app.command()
def tune(
    config: Config,
    overrides: Overrides = None,
    space: Annotated[
        str, typer.Option("--space", metavar="SPACE", help="A YAML file, or a space that ships: lr, full, …")
    ] = "lr_accumulation",
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", metavar="N", min=1, help="How many. Default: 8, or the whole grid.", show_default=False
        ),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(
            "--concurrent", metavar="N", min=1, help="At a time. Default: as many as fit.", show_default=False
        ),
    ] = None,
    searcher: Annotated[
        Searcher | None, typer.Option("--search", help="Default: tpe, or grid for a grid.", show_default=False)
    ] = None,
    scheduler: Annotated[Scheduler, typer.Option("--scheduler", help="Which trials end early.")] = Scheduler.asha,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="K", min=0, help="Run the finalists again with K other seeds.")
    ] = 0,
    finalists: Annotated[int, typer.Option("--finalists", metavar="F", help="So many settings are repeated.")] = 2,
    max_examples: Annotated[
        int | None,
        typer.Option(
            "--max-examples",
            metavar="N",
            min=1,
            help="Of each trial. Default: as the config has it.",
            show_default=False,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="M",
            min=0.01,
            help="Of the sweep: then it saves and stops (75).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search; trials share train.seed.")] = 1,
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
    _show_sweep(lambda: tune_run(*load_named_config(config, overrides or ()), options, console), as_json)


def _show_sweep(run: Callable[[], Path], as_json: bool) -> None:
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


@app.command()
def resume(run: Run, store: Store = "./runs", as_json: Json = False) -> None:
    """Continue an interrupted run or sweep."""
    from sftray.platform.driver import resume_run
    from sftray.platform.results import find_run
    from sftray.platform.summary import show_summary
    from sftray.platform.sweep import resume_sweep
    from sftray.platform.sweep_files import find_sweep, refuse_trial
    from sftray.platform.terminal import build_console

    console = build_console(stderr=as_json)
    if (sweep := find_sweep(run, store)) is not None:
        _show_sweep(lambda: resume_sweep(sweep, console), as_json)
        return
    folder = find_run(run, store)
    refuse_trial(folder)
    summary = resume_run(folder, console)
    if as_json:
        print_json(summary.to_json())
    else:
        show_summary(summary, console)


@app.command()
def plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check everything, train nothing."""
    from sftray.platform.planning import plan_run, show_plan
    from sftray.platform.shipped import load_named_config
    from sftray.platform.terminal import build_console

    console = build_console(stderr=as_json)
    found = plan_run(*load_named_config(config, overrides or ()), console)
    if as_json:
        print_json(found.to_json())
    else:
        show_plan(found, console)
    if found.shortage is not None:  # told on standard error alone: the plan's JSON has it already
        raise typer.Exit(report_problems(found.shortage.problems, found.shortage.exit_code, as_json=False))


@runs.command("list")
def list_runs(
    store: Store = "./runs",
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="Lowest first; -COLUMN: highest first. Default: the newest."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="The first N runs.")] = None,
    as_json: Json = False,
) -> None:
    """The runs of a store."""
    from sftray.platform.results import load_runs, sort_runs, to_records
    from sftray.platform.tables import show_runs
    from sftray.platform.terminal import build_console

    found, column = sort_runs(load_runs(store), sort, limit)
    if as_json:
        print_json(to_records(found))
    else:
        show_runs(found, build_console(), column)


@runs.command("show")
def show(run: Run, store: Store = "./runs", as_json: Json = False) -> None:
    """One run: how it went, its config and data, checkpoints and answers; or one sweep."""
    from sftray.platform.results import find_run
    from sftray.platform.run_page import describe_run, show_run
    from sftray.platform.sweep_files import find_sweep
    from sftray.platform.sweep_table import show_leaderboard, sweep_to_json
    from sftray.platform.terminal import build_console

    if (sweep := find_sweep(run, store)) is not None:
        if as_json:
            print_json(sweep_to_json(sweep))
        else:
            show_leaderboard(sweep, build_console())
        return
    folder = find_run(run, store)
    if as_json:
        print_json(describe_run(folder))
    else:
        show_run(folder, build_console())


@runs.command("report")
def report(
    name: Annotated[str, typer.Argument(metavar="SWEEP|RUN", help="Its directory, or its name.", show_default=False)],
    store: Store = "./runs",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Default: report.html in its directory.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """A sweep or a run as one HTML file with pictures, which opens without a network."""
    from sftray.platform.report import find_folder, write_report

    path = write_report(find_folder(name, store), output)
    if as_json:
        print_json({"report": str(path)})
    else:
        print(path)


@runs.command("compare")
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Two runs or more, or trials: sweep/trial-000.", show_default=False),
    ],
    store: Store = "./runs",
    as_json: Json = False,
) -> None:
    """Runs side by side: settings that differ, numbers, and whether they can be compared."""
    from sftray.platform.compare import comparison_to_json, load_sides, show_comparison
    from sftray.platform.terminal import build_console

    sides = load_sides(names, store)
    if as_json:
        print_json(comparison_to_json(sides))
    else:
        show_comparison(sides, build_console())


@runs.command("export")
def export(
    store: Store = "./runs",
    format: Annotated[
        Literal["csv", "parquet", "jsonl"] | None,
        typer.Option("--format", help="Default: what FILE ends in, else csv.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Default: runs.csv here.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """The runs of a store, trials among them, as one file: a row each."""
    from sftray.platform.export import export_runs

    path, count = export_runs(store, output, format, force)
    if as_json:
        print_json({"path": str(path), "runs": count})
    else:
        print(f"{count} runs in {path}")


@app.command()
def chat(
    run: Run,
    store: Store = "./runs",
    ask: Annotated[str | None, typer.Option("--ask", metavar="TEXT", help="One question, one answer.")] = None,
    step: Annotated[str, typer.Option("--step", metavar="N", help="newest, best, or a step's number.")] = "newest",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")] = 0.0,
) -> None:
    """Talk to a checkpoint; a question may also come from standard input."""
    from sftray.platform.results import find_run

    folder = find_run(run, store)  # before the import, which takes seconds
    from sftray.platform.chat import chat_with_run, read_step

    chat_with_run(folder, read_step(step), ask, max_new_tokens, temperature)


def _invoke(arguments: Sequence[str]) -> int:
    """Parse and run; what typer says of a wrong command line is told like every other error."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("sftray", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        context_of = getattr(error, "ctx", None)
        fix = f"{context_of.command_path if context_of else 'sftray'} --help"
        return report_problems([Problem(error.format_message(), fix=fix)], USAGE, "--json" in arguments)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_guarded(lambda: _invoke(given), as_json="--json" in given)


if __name__ == "__main__":
    sys.exit(main())
