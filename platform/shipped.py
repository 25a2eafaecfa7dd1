"""The config a command names: a file, or a preset that ships with the package."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from sftray.train_fn.config_file import Resolved, load_config
from sftray.train_fn.errors import ConfigError, Problem

PRESETS = Path(__file__).parent / "presets"


def list_presets(folder: Path = PRESETS) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_named_config(name: str, overrides: Sequence[str] = (), folder: Path = PRESETS) -> tuple[Resolved, str]:
    """The config file `name`, or the preset of that name in `folder`, with `overrides` put over it.

    Returns:
        The config, and a label for it: the stem of the file's name, or the preset's name.

    Raises:
        ConfigError: there is no such file or preset, or what it holds is wrong.
    """
    if os.path.isfile(name):
        return load_config(Path(name), overrides), Path(name).stem
    presets = list_presets(folder)
    if name in presets:
        return load_config(folder / f"{name}.yaml", overrides, label=f"preset {name}"), name
    raise ConfigError(_explain_missing(name, presets))


def _explain_missing(name: str, presets: list[str]) -> Problem:
    beside = Path(name).parent
    files = sorted(str(path) for path in beside.glob("*.y*ml")) if os.path.isdir(beside) else []
    near = difflib.get_close_matches(name, [*presets, *files], n=2, cutoff=0.5)
    if not near and Path(name).stem in presets:
        near = [Path(name).stem]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if os.path.isdir(name):
        what = f"{name} is a directory, not a config.{hint}"
    elif "=" in name:
        what = f"CONFIG comes first, and {name} is a setting"
    else:
        what = f"there is no config file and no preset {name}.{hint}"
    return Problem(
        what,
        why=f"presets: {', '.join(presets) or 'none'}; files here: {', '.join(files[:8]) or 'none'}",
        fix=f"name {near[0] if near else 'a YAML file, or one of the presets'}",
    )
