"""A Ray cluster of this machine alone: on the loopback, behind a token, in a folder of its owner's."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sftray.cluster.authentication import find_token_file, make_token, refuse_disabled
from sftray.train_fn.errors import ClusterError, Problem

LOOPBACK = "127.0.0.1"

# A cluster that is started here has one node for as long as the run lasts.
_SETTINGS = {
    # Nobody takes this node away with a notice, and the process that would look for it slows down the start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray takes 127.0.0.1 for a mistake, and listens at all addresses of the machine. Where it takes the machine for
    # one that cannot have clusters, which this says on Linux too, it does as it is told.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Processes that train together meet there.
    "GLOO_SOCKET_IFNAME": "lo",
}


def start_ray() -> None:
    """Start it, and connect to it. Raises ClusterError."""
    refuse_disabled()
    # Ray turns its token authentication on by itself for a cluster that starts here. RAY_AUTH_MODE is left
    # alone: Ray has read it when it was imported, and a mode that is set later holds for the servers only.
    make_token(find_token_file())
    folder = make_private_folder()
    with _in_environment(_SETTINGS):
        import ray

        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=len(os.sched_getaffinity(0)),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(folder / "ray"),
                )
        except Exception as error:  # Ray raises just that where its own processes do not come up in time
            raise ClusterError(
                Problem(
                    "Ray did not start on this machine",
                    why=str(error).strip().splitlines()[0][:300],
                    fix=f"try again when the machine is less busy; its logs are in {folder}/ray/session_latest/logs",
                )
            ) from error


def make_private_folder() -> Path:
    """Where Ray's own folders go, which anybody may write in: below one that only its owner enters.

    As for Ray, RAY_TMPDIR, TMPDIR or /tmp holds it. Raises ClusterError where it is somebody else's.
    """
    parent = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = Path(parent, f"sftray-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
            folder.chmod(0o700)
            return folder
        why = "it is not a folder of this user"
    except OSError as error:
        why = error.strerror or str(error)
    raise ClusterError(
        Problem(f"Ray's files on this machine cannot go to {folder}", why=why, fix="RAY_TMPDIR: a folder of yours")
    )


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """The setting of the same name, where Ray was imported before it."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


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
