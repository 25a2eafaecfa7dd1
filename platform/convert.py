"""`sftray convert minimind`: weights of MiniMind's in and out, and what is said of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sftray.platform.terminal import build_console, plain
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.minimind_layout import Generation, Layout, count_parameters


@dataclass(frozen=True)
class Conversion:
    """`notes`: what was assumed, or must be known, in words. `missing`: what OUT still lacks to be trained."""

    source: str
    target: str
    layout: Layout
    dtype: str
    notes: list[str]
    missing: list[str]

    def to_json(self) -> dict[str, Any]:
        layout = {**asdict(self.layout), "architecture": self.layout.architecture}
        rest = {"dtype": self.dtype, "parameters": count_parameters(self.layout)}
        return {"source": self.source, "target": self.target, **rest, "layout": layout, **self._list_words()}

    def _list_words(self) -> dict[str, list[str]]:
        return {"notes": self.notes, "missing": self.missing}


def import_minimind(
    source: str, target: str, tokenizer: str | None, heads: int | None, experts_per_token: int | None
) -> Conversion:
    """A `.pth` file to a folder of Hugging Face's layout.

    Raises:
        ConfigError: a path or an option is wrong. CheckpointError: the file is not what it should be.
        StoreError: the folder cannot be written.
    """
    from sftray.train_fn.minimind_folder import read_minimind, refuse_taken, write_folder
    from sftray.train_fn.minimind_shape import Asked

    path, folder = _local(source, "IN"), _local(target, "OUT")
    if path.is_dir():
        fix = f"sftray convert minimind {source} OUT.pth --to minimind, for the way back"
        raise ConfigError(Problem(f"{source} is a folder, and IN is a .pth file", fix=fix))
    refuse_taken(folder)
    converted = read_minimind(path, Asked(heads, experts_per_token))
    write_folder(converted, folder, _local(tokenizer, "--tokenizer") if tokenizer else None)
    lacks = "a tokenizer: only config and weights are there (--tokenizer DIR copies one, or model.tokenizer names it)"
    dtype = str(converted.dtype).removeprefix("torch.")
    return Conversion(source, target, converted.layout, dtype, converted.notes, [] if tokenizer else [lacks])


def export_minimind(source: str, target: str, generation: Generation | None) -> Conversion:
    """A folder of Hugging Face's layout, such as a checkpoint, to a `.pth` file.

    Raises:
        ConfigError: a path or an option is wrong. CheckpointError: the folder holds what MiniMind's cannot be.
        StoreError: the file cannot be written.
    """
    from sftray.train_fn.minimind_file import refuse_existing, save_file
    from sftray.train_fn.minimind_folder import read_folder

    folder, path = _local(source, "IN"), _local(target, "OUT")
    refuse_existing(path)
    converted = read_folder(folder, generation)
    save_file(converted.weights, path)
    dtype = str(converted.dtype).removeprefix("torch.")
    return Conversion(source, target, converted.layout, dtype, converted.notes, [])


def refuse_options(
    to: str, tokenizer: str | None, heads: int | None, experts_per_token: int | None, generation: str | None
) -> None:
    """Raise ConfigError for options of the other direction."""
    inwards: Mapping[str, object] = {
        "--tokenizer": tokenizer,
        "--heads": heads,
        "--experts-per-token": experts_per_token,
    }
    given = inwards if to == "minimind" else {"--generation": generation}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        way = (
            "a .pth file says it itself" if to == "transformers" else "the folder says it itself, or a .pth has none"
        )
        raise ConfigError(Problem(f"{', '.join(wrong)} with --to {to}", why=way, fix=f"leave {', '.join(wrong)} out"))


def show_conversion(done: Conversion) -> None:
    """What was found, what was assumed, and what is missing."""
    from sftray.train_fn.minimind_weights import describe_layout

    console = build_console()
    millions = count_parameters(done.layout) / 1e6
    lines = [
        f"{done.source}: {describe_layout(done.layout)}",
        f"  {millions:.2f} million parameters, {done.dtype}",
        *(f"  {note}" for note in done.notes),
        f"written: {done.target} ({done.layout.architecture})",
        *(f"  missing: {what}" for what in done.missing),
    ]
    for line in lines:
        console.print(plain(line), soft_wrap=True)


def _local(path: str, what: str) -> Path:
    if "://" in path:
        fix = f"{what}: a path of this machine; model.name takes s3:// and gs:// as they are"
        raise ConfigError(Problem(f"{what} is a URL: {path}", fix=fix))
    return Path(path).expanduser()
