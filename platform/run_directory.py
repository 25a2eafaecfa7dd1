"""The store and a run's directory in it: opening, naming, and taking a name."""

import os
from pathlib import Path
from uuid import uuid4

from sftray.train_fn.config import StoreConfig
from sftray.train_fn.errors import ConfigError, Problem, StoreError
from sftray.train_fn.places import as_path, spell
from sftray.train_fn.store import connect_store

TOKENS = "tokens"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a job


def open_store(store: StoreConfig) -> Path:
    """The store's folder or its place in a bucket, made if need be and known to be writable.

    Raises:
        ConfigError: it is relative inside a job, whose working directory is a copy that is thrown away.
        StoreError: it cannot be written.
    """
    if "://" in store.path:
        return _open_bucket(store.path)
    path = _expand_home(store.path)
    if is_job() and not path.is_absolute():
        raise ConfigError(
            Problem(
                f"store.path: {store.path} is relative, and this is a job on a cluster",
                why="a job runs in a temporary copy of its working directory, and the run would go with it",
                fix="store.path: an absolute path that all nodes reach",
            )
        )
    path = path.absolute()
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StoreError(
            Problem(
                f"store.path: {path} cannot be written: {error.strerror}",
                fix="store.path: a folder that this user may write, with free space",
            )
        ) from error
    return path


def _open_bucket(url: str) -> Path:
    """Raises ConfigError where it is no URL of a bucket, and StoreError where that cannot be reached or written."""
    path = as_path(url)
    opened = connect_store(path)
    probe = f".probe-{uuid4().hex[:12]}"
    opened.write(probe, b"")
    opened.delete(probe)
    return path


def is_job() -> bool:
    """Whether this process is the entry point of a job on a cluster."""
    return _JOB in os.environ


def _expand_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        problem = Problem(f"store.path: {path}: {error}", fix="store.path: a path without ~, or ~ of a known user")
        raise StoreError(problem) from error


def take_run_directory(store: Path, name: str | None, label: str) -> Path:
    """Make the run's directory. A name that was given must be free; a made one gets the next free number.

    Raises:
        ConfigError: the name is taken.
    """
    if name is not None:
        try:
            (store / name).mkdir()
        except FileExistsError:
            raise ConfigError(describe_taken(store / name)) from None
        return store / name
    base = make_name(label)
    number = 1
    while True:
        path = store / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def check_name_is_free(store: Path, name: str | None) -> None:
    """Say that a name is taken, or is the store's own, before anything costly starts."""
    if name == TOKENS:
        problem = Problem(
            f"the name {TOKENS} is taken: prepared data of all runs stands there", str(store / TOKENS), fix="name=…"
        )
        raise ConfigError(problem)
    if name is not None and (store / name).exists():
        raise ConfigError(describe_taken(store / name))


def describe_taken(path: Path) -> Problem:
    return Problem(
        f"the name {path.name} is taken",
        where=str(path),
        why="a run is never overwritten or continued unasked",
        fix=f"sftray resume {spell(path)}, or another name (name={path.name}-2), or remove the folder",
    )


def make_name(label: str) -> str:
    """A legal run name from a preset's name or a file's stem."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in label.lower())
    return kept.strip("._-")[:50] or "run"
