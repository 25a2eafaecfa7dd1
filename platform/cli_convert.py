"""`sftray convert …`: weights of other tools in and out."""

from typing import Annotated, Literal

import typer

from sftray.platform.cli_words import Json
from sftray.platform.exits import print_json

convert = typer.Typer(help="Weights of other tools in and out.")


@convert.command("minimind")
def minimind(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .pth file; with --to minimind a folder.", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="A new folder; with --to minimind a new file.", show_default=False)
    ],
    to: Annotated[
        Literal["transformers", "minimind"], typer.Option("--to", help="What OUT is for.")
    ] = "transformers",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="DIR", help="Its tokenizer, copied into OUT.", show_default=False),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option("--heads", metavar="N", min=1, help="Where it is not 8 heads of queries.", show_default=False),
    ] = None,
    experts_per_token: Annotated[
        int | None,
        typer.Option("--experts-per-token", metavar="N", min=1, help="Default: MiniMind's.", show_default=False),
    ] = None,
    generation: Annotated[
        Literal["original", "llama", "minimind-3"] | None,
        typer.Option("--generation", help="Of OUT, with --to minimind; default: what it was.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """MiniMind's .pth to a folder that transformers loads, or back; every value keeps its bits."""
    from sftray.platform.convert import export_minimind, import_minimind, refuse_options, show_conversion

    refuse_options(to, tokenizer, heads, experts_per_token, generation)
    if to == "minimind":
        done = export_minimind(source, target, generation)
    else:
        done = import_minimind(source, target, tokenizer, heads, experts_per_token)
    if as_json:
        print_json(done.to_json())
    else:
        show_conversion(done)
