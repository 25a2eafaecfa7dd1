"""What of this machine a job on a cluster needs: its config, and the files that the config names by relative paths.

Nothing else travels: no folder as a whole, no environment. A relative path means the same in the job as it does here,
for the files keep their places; an absolute one is taken for a path of the cluster.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sftray.platform.run_directory import make_name
from sftray.platform.shipped import load_named_config
from sftray.platform.submit_words import Inner, parse_inner
from sftray.train_fn.config import RunConfig
from sftray.train_fn.errors import ConfigError, DataError, Problem
from sftray.train_fn.files import ASSETS, find_files
from sftray.train_fn.minimind_layout import is_weights_file
from sftray.train_fn.places import as_path

LIMIT_BYTES = 90 * 10**6  # Ray takes a working directory of 100 MiB, and packs it in memory
_MODEL_ENDINGS = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".bin", ".gguf")


@dataclass(frozen=True)
class Bundle:
    """`arguments`: of the sftray command that the job runs. `files`: what travels, by the path it gets there.
    `elsewhere`: paths that are the cluster's own. `name`: of the run or sweep. `place`: its directory.
    """

    arguments: list[str]
    files: dict[str, Path]
    elsewhere: list[str]
    name: str
    place: str

    def count_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def digest(self) -> str:
        """Of all that is asked: the command, and what the files hold."""
        return _digest(self.arguments, self.files)

    def write(self, folder: Path) -> None:
        """Put the files into an empty folder."""
        for place, source in self.files.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def plan_bundle(arguments: Sequence[str]) -> Bundle:
    """What the job of `sftray` with these arguments needs.

    Raises:
        ConfigError: the command line or the config is wrong, a path leads out of this folder, or it is too much.
    """
    inner = parse_inner(arguments)
    if inner.config is None:
        return _plan_resume(inner, arguments)
    resolved, label = load_named_config(inner.config, inner.overrides)
    config = resolved.config
    problems = _check_store(config)
    files: dict[str, Path] = {}
    elsewhere: list[str] = []
    for key, named in _list_paths(config):
        found = _collect(key, named)
        if found is None:
            elsewhere.append(named)
        elif isinstance(found, dict):
            files |= found
        else:
            problems += found
    rewritten = list(arguments)
    for option, path in (("CONFIG", inner.config), ("--space", inner.space)):
        if path is not None and os.path.isfile(path):
            place = path if _is_below_here(path) else os.path.basename(path)
            rewritten = _replace(rewritten, path, place)
            if files.setdefault(place, Path(path)) != Path(path):
                problems.append(Problem(f"{option} {path} and another file would both be {place} in the job"))
    if problems:
        raise ConfigError(*problems)
    name = config.name or _make_name(label, rewritten, files)
    if config.name is None:
        rewritten.append(f"name={name}")
    bundle = Bundle(rewritten, files, elsewhere, name, str(as_path(config.store.path) / name))
    _refuse_large(bundle)
    return bundle


def _plan_resume(inner: Inner, arguments: Sequence[str]) -> Bundle:
    """Nothing travels: the run is where the cluster has it."""
    if not any("://" in path or os.path.isabs(path) for path in (inner.run, inner.store)):
        raise ConfigError(
            Problem(
                f"{inner.run} is a path of this machine, or a name in a store that is",
                why="the job looks for the run where the cluster has it",
                fix=f"sftray submit -- resume /SHARED/runs/{os.path.basename(inner.run)}",
            )
        )
    is_path = "://" in inner.run or os.path.isabs(inner.run)
    place = as_path(inner.run) if is_path else as_path(inner.store) / inner.run
    return Bundle(list(arguments), {}, [str(place)], place.name, str(place))


def _check_store(config: RunConfig) -> list[Problem]:
    path = config.store.path
    if "://" in path or os.path.isabs(path):
        return []
    return [
        Problem(
            f"store.path: {path} is relative, and a job's own folder is thrown away with the job",
            fix="store.path: s3://bucket/prefix, or an absolute path that every node of the cluster reaches",
        )
    ]


def _list_paths(config: RunConfig) -> Iterable[tuple[str, str]]:
    """Keys and values that may be files of this machine."""
    for key in ("train", "validation"):
        value = getattr(config.data, key)
        for path in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            if "://" not in path:
                yield f"data.{key}", path
    for key in ("name", "tokenizer", "chat_template"):
        value = getattr(config.model, key)
        # A hub's id looks like a path: it is one where something stands there, or where it is named like a file.
        if value and "://" not in value and _is_path(key, value):
            yield f"model.{key}", value


def _is_path(key: str, value: str) -> bool:
    ships = {"tokenizer": f"{value}/tokenizer", "chat_template": f"templates/{value}.jinja"}
    if key in ships and (ASSETS / ships[key]).exists() and "/" not in value:
        return False  # whatever stands here under the name of one that ships
    is_file = key == "name" and is_weights_file(value)
    return is_file or os.path.isabs(value) or value.startswith("~") or os.path.exists(value)


def _collect(key: str, path: str) -> dict[str, Path] | list[Problem] | None:
    """The files at a path, by their places; None for a path of the cluster; or what is wrong with it."""
    if os.path.isabs(path):
        return None
    if path.startswith("~") or not _is_below_here(path):
        return [
            Problem(
                f"{key}: {path} leads out of this folder, which is all that a job sees of this machine",
                fix=f"{key}: a path below {os.getcwd()}, an absolute one that the cluster has, or a URL",
            )
        ]
    if key.startswith("data."):
        try:
            files = find_files(path, key)  # those that the run would find
        except DataError as error:
            return list(error.problems)
    else:
        files = _list_model_files(Path(path))
        if not files:
            return [Problem(f"{key}: nothing is at {path}", fix=f"{key}: a file or a folder that is there")]
    return {file.as_posix(): file for file in files}


def _list_model_files(path: Path) -> list[Path]:
    """The file, or of a folder those that a model or a tokenizer is loaded from."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = (file for file in path.rglob("*") if file.suffix in _MODEL_ENDINGS and file.is_file())
    return sorted(file for file in files if not _is_hidden(file.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_below_here(path: str) -> bool:
    return not os.path.isabs(path) and not os.path.normpath(path).startswith("..")


def _replace(arguments: Sequence[str], old: str, new: str) -> list[str]:
    places = {old: new, f"--space={old}": f"--space={new}"}
    return [places.get(given, given) for given in arguments]


def _make_name(label: str, arguments: Sequence[str], files: dict[str, Path]) -> str:
    """Of the label and all that is asked: who asks for the same again gets the same name, and so the same job."""
    return f"{make_name(label)[:50]}-{_digest(arguments, files)[:8]}"


def _digest(arguments: Sequence[str], files: dict[str, Path]) -> str:
    digest = hashlib.sha256(repr(list(arguments)).encode())
    for place, path in sorted(files.items()):
        with path.open("rb") as file:
            digest.update(f"{place} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _refuse_large(bundle: Bundle) -> None:
    if bundle.count_bytes() <= LIMIT_BYTES:
        return
    largest = sorted(bundle.files, key=lambda place: -bundle.files[place].stat().st_size)[:3]
    sizes = ", ".join(f"{place} {bundle.files[place].stat().st_size / 1e6:.0f} MB" for place in largest)
    raise ConfigError(
        Problem(
            f"{bundle.count_bytes() / 1e6:.0f} MB would travel with the job, and {LIMIT_BYTES / 1e6:.0f} MB may",
            why=f"the largest: {sizes}",
            fix="put them where every node reaches them (beside store.path), and name them by absolute path or URL",
        )
    )
