"""The command that is given to `sftray submit` behind `--`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sftray.train_fn.errors import ConfigError, Problem

COMMANDS = ("train", "tune", "resume")


@dataclass(frozen=True)
class Inner:
    """`config` is None for `resume`, which has a `run` instead, in `store` if it is a name. `space` is that of
    `tune`.
    """

    command: str
    config: str | None
    run: str
    store: str
    overrides: list[str]
    space: str | None


def parse_inner(arguments: Sequence[str]) -> Inner:
    """Read a command line as `sftray` itself would.

    Raises:
        ConfigError: it is none of COMMANDS, or wrong.
    """
    import typer

    from sftray.platform.cli import app

    if not arguments or arguments[0] not in COMMANDS:
        given = f", not {arguments[0]}" if arguments else ""
        raise ConfigError(
            Problem(
                f"behind -- comes a command that runs on a cluster: {', '.join(COMMANDS)}{given}",
                fix="sftray submit -- train run.yaml",
            )
        )
    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]  # it is a group
    try:
        values = command.make_context(f"sftray {arguments[0]}", list(arguments[1:])).params
    except typer.TyperException as error:
        raise ConfigError(Problem(error.format_message(), fix=f"sftray {arguments[0]} --help")) from error
    return Inner(
        command=arguments[0],
        config=values.get("config"),
        run=values.get("run") or "",
        store=values.get("store") or "",
        overrides=list(values.get("overrides") or ()),
        space=values.get("space"),
    )
