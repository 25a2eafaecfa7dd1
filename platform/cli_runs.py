"""`sftray runs …`: reading the store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sftray.platform.cli_words import Json, Run, Store
from sftray.platform.exits import print_json

runs = typer.Typer(help="Read the store: works with no cluster and no server.")


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
