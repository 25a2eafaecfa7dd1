"""Connecting to the Ray cluster that is there, or starting one here."""

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from sftray.cluster.resources import Node, Placement, look_at_cluster, look_at_this_machine, place_workers
from sftray.cluster.room import find_room, has_autoscaler
from sftray.train_fn.config import ScalingConfig
from sftray.train_fn.errors import ClusterError, Problem

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often the controller looks: it paces every report and the notice of a dead worker. Ray's own is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A worker that does not answer for so long is frozen. Ray's own is 600 s.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "40",
    # Workers keep the directory the run was started in, so that relative paths mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

# Of a cluster that is started here, and has one node for as long as the run lasts.
_SETTINGS_HERE = {
    # Nobody takes this node away with a notice, and the process that would look for it slows down the start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

# A head node that does not take a connection within this is not there.
_ANSWER_S = 5.0


def has_cluster() -> bool:
    """Whether a cluster is named by the environment; Ray sets it too for the entry point of a job."""
    return bool(os.environ.get("RAY_ADDRESS"))


def apply_settings() -> None:
    """What Ray Train takes from the environment of the process that starts workers, unless it is set there."""
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)


@contextlib.contextmanager
def connect_for(scaling: ScalingConfig, tell: Callable[[str], None] = print) -> Iterator[tuple[Placement, int]]:
    """Connect to the cluster that RAY_ADDRESS names, or start one here for as long as this lasts.

    Gives the placement of the workers, and the number of nodes.

    Args:
        tell: hears of it where nodes are waited for.

    Raises:
        ClusterError: the cluster cannot be reached, or the workers do not fit; on this machine that is said
            before anything is started.
    """
    import ray

    apply_settings()
    if has_cluster():
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # else the dashboard's Train page is empty
        _join()
    else:
        check_this_machine(scaling)
        _start_here()
    try:
        yield find_room(scaling, tell) if has_cluster() else (place_workers(scaling, look_at_cluster()), 1)
    finally:
        ray.shutdown()


def check_this_machine(scaling: ScalingConfig) -> None:
    """Where no cluster is named, refuse at once what this machine cannot hold."""
    if not has_cluster():
        place_workers(scaling, look_at_this_machine())


def look_around() -> tuple[list[Node], bool]:
    """The nodes a run would get, and whether something adds more, without starting anything."""
    if not has_cluster():
        return look_at_this_machine(), False
    with connected():
        return look_at_cluster(), has_autoscaler()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """A connection to the cluster that RAY_ADDRESS names, for questions. Raises ClusterError where none answers."""
    import ray

    _join()
    try:
        yield
    finally:
        ray.shutdown()


def _start_here() -> None:
    """A cluster of this machine alone, on the loopback, behind a token."""
    import ray

    # Ray turns its token authentication on by itself for a cluster that starts here. RAY_AUTH_MODE is left
    # alone: Ray has read it when it was imported, and a mode that is set later holds for the servers only.
    make_token(Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser())
    try:
        with _in_environment(_SETTINGS_HERE):
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
    except Exception as error:  # Ray raises just that where its own processes do not come up in time
        raise ClusterError(
            Problem(
                "Ray did not start on this machine",
                why=str(error).strip().splitlines()[0][:300],
                fix="try again when the machine is less busy; its logs are in /tmp/ray/session_latest/logs",
            )
        ) from error


@contextlib.contextmanager
def _in_environment(settings: dict[str, str]) -> Iterator[None]:
    """Processes that are started within this inherit these settings, unless others are set."""
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def make_token(path: Path) -> None:
    """A token file that only its owner can read, unless there is one or the environment has the token."""
    if os.environ.get("RAY_AUTH_TOKEN") or path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):  # another start has just made one
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
    except OSError as error:
        raise ClusterError(
            Problem(
                f"the token file of a cluster on this machine cannot be written: {error.strerror}",
                where=str(path),
                fix="RAY_AUTH_TOKEN_PATH: a file that this user may write",
            )
        ) from error


def _join() -> None:
    import ray

    address = os.environ["RAY_ADDRESS"]
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            Problem(
                f"no Ray cluster answers at {address}",
                why=" ".join(str(error).split())[:300] or type(error).__name__,
                fix="start one (ray start --head), mend RAY_ADDRESS, or unset it to use this machine alone",
            )
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
