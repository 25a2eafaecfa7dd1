"""Arguments that several commands share."""

from typing import Annotated

import typer

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
