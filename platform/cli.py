"""The command line: each command is a few lines over a function, imported when it is asked for."""

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from sftray.cluster.ending import say_end
from sftray.platform.cli_convert import convert
from sftray.platform.cli_jobs import doctor, logs, status, stop, submit
from sftray.platform.cli_runs import runs
from sftray.platform.cli_sweep import show_sweep, tune
from sftray.platform.cli_words import Config, Json, Overrides, Run, Store
from sftray.platform.exits import OUR_BUG, USAGE, leave, print_json, report_problems, run_guarded
from sftray.train_fn.errors import Problem

app = typer.Typer(
    name="sftray",
    help="Supervised fine-tuning of language models, as experiments on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(runs, name="runs")
app.add_typer(convert, name="convert")
for _command in (tune, submit, status, logs, stop, doctor):
    app.command()(_command)


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
def resume(run: Run, overrides: Overrides = None, store: Store = "./runs", as_json: Json = False) -> None:
    """Continue an interrupted run or sweep; a run also with other learning rate, steps, layout or logging."""
    from sftray.platform.driver import resume_run
    from sftray.platform.results import find_run
    from sftray.platform.summary import show_summary
    from sftray.platform.sweep import resume_sweep
    from sftray.platform.sweep_files import find_sweep, refuse_overrides, refuse_trial
    from sftray.platform.terminal import build_console

    console = build_console(stderr=as_json)
    if (sweep := find_sweep(run, store)) is not None:
        refuse_overrides(overrides or ())
        show_sweep(lambda: resume_sweep(sweep, console), as_json)
        return
    folder = find_run(run, store)
    refuse_trial(folder)
    summary = resume_run(folder, console, overrides or ())
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


@app.command()
def verify(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", min=4, help="Steps of each rehearsal.")] = 6,
    kills: Annotated[int, typer.Option("--kills", min=0, help="Runs that are killed at random.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the moments of the kills.")] = 1,
    as_json: Json = False,
) -> None:
    """Prove on this config that layout changes nothing and kills lose nothing."""
    from sftray.platform.shipped import load_named_config
    from sftray.platform.terminal import build_console
    from sftray.platform.verify import VerifyOptions, show_certificate, verify_run

    console = build_console(stderr=as_json)
    options = VerifyOptions(steps, kills, seed)
    certificate = verify_run(*load_named_config(config, overrides or ()), options, console)
    if as_json:
        print_json(certificate.to_json())
    else:
        show_certificate(certificate, console)
    if not certificate.holds:
        raise typer.Exit(OUR_BUG)


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
    code = run_guarded(lambda: _invoke(given), as_json="--json" in given)
    say_end(code)
    return code


def run_command() -> NoReturn:
    """What `sftray` runs."""
    leave(main())


if __name__ == "__main__":
    run_command()
