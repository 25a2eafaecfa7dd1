"""Connecting to the Ray cluster that is there, or starting one here."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from sftray.cluster.authentication import TOKEN_FIX, is_refused, use_token
from sftray.cluster.local import start_ray
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
def connect_for(
    scaling: ScalingConfig, tell: Callable[[str], None] = print, check: Callable[[], None] = lambda: None
) -> Iterator[tuple[Placement, int]]:
    """Connect to the cluster that RAY_ADDRESS names, or start one here for as long as this lasts.

    Gives the placement of the workers, and the number of nodes.

    Args:
        tell: hears of it where nodes are waited for.
        check: called again and again meanwhile; what it raises ends the wait.

    Raises:
        ClusterError: the cluster cannot be reached, or the workers do not fit; on this machine that is said
            before anything is started.
    """
    apply_settings()
    if has_cluster():
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # else the dashboard's Train page is empty
        _join()
    else:
        check_this_machine(scaling)
        with _keep_sigterm():
            start_ray()
    import ray

    try:
        yield find_room(scaling, tell, check) if has_cluster() else (place_workers(scaling, look_at_cluster()), 1)
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
    _join()
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _join() -> None:
    use_token()
    import ray

    address = os.environ["RAY_ADDRESS"]
    try:
        _knock(address)
        if ":" in address and "/" not in address and is_refused(address):
            raise ClusterError(Problem(f"the Ray cluster at {address} wants another token", fix=TOKEN_FIX))
        with _keep_sigterm():
            ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            Problem(
                f"no Ray cluster answers at {address}",
                why=" ".join(str(error).split())[:300] or type(error).__name__,
                fix="start one (ray start --head), mend RAY_ADDRESS, or unset it to use this machine alone",
            )
        ) from error


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """What this process does at SIGTERM, if it has a way of its own: Ray puts one in its place that just leaves."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as end:  # what Ray's does
        if end.code != signal.SIGTERM:
            raise
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
