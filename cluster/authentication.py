"""The token that every cluster of ours asks for: where it is, who may read it, and that it is asked for."""

import contextlib
import http.client
import ipaddress
import json
import os
import secrets
import stat
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from sftray.train_fn.errors import ClusterError, Problem

_ANSWER_S = 5.0
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
ADDRESS_FIX = "--address http://HEAD:8265, the address of the cluster's dashboard; or see that it runs"
TOKEN_FIX = "RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names: the token of that cluster"


def find_token_file() -> Path:
    """Where the token is, or will be, unless the environment has it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def make_token(path: Path) -> None:
    """A token file that only its owner can read, unless there is one or the environment has the token.

    Ray makes its own one readable for everybody: such a file is closed. Raises ClusterError where none can be
    written.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            _close(path)
            return
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


def _close(path: Path) -> None:
    """Groups may share a token on purpose. All the world may not."""
    facts = path.stat()
    if facts.st_mode & stat.S_IROTH and facts.st_uid == os.geteuid():
        path.chmod(0o600)


def load_token() -> str | None:
    """The token of the environment or of the file; None where there is none to be read."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return find_token_file().read_text(encoding="utf-8").strip() or None
    return None


def use_token() -> None:
    """Have Ray's clients send the token if there is one: by themselves they do so for clusters that start here only.

    Ray reads the mode when it is imported.
    """
    if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or find_token_file().exists()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_refused(address: str) -> bool:
    """Whether the head at `host:port` wants another token than is here, which Ray would take 20 s to find out, and
    then not tell from a head that is not there.
    """
    return _ask_head(address, load_token()) == "UNAUTHENTICATED"


def is_open(address: str) -> bool:
    """Whether the head at `host:port` answers who has no token."""
    return _ask_head(address, None) == "OK"


def _ask_head(address: str, token: str | None) -> str:
    """The name of gRPC's status."""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(_QUESTION, lambda _: b"", lambda answer: answer)
        try:
            ask(None, timeout=_ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def refuse_disabled() -> None:
    """Raises ClusterError where a cluster that starts here would ask for no token."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ClusterError(
            Problem(
                f"RAY_AUTH_MODE is {mode}: a cluster that starts here would ask nobody for a token",
                why="every user and every web page of this machine could run code in it",
                fix="unset RAY_AUTH_MODE, or RAY_AUTH_MODE=token",
            )
        )


def refuse_open_cluster(address: str) -> None:
    """Raises ClusterError where the dashboard at `address`, a URL, is not of this machine and does not say that it
    asks for a token, as those that are too old to know tokens, or where nobody answers.

    It is asked for that alone, and gets nothing. Who has RAY_AUTH_MODE=disabled knows, and is not kept from it.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" or _is_loopback(address):
        return
    if ask_mode(address) in (None, "disabled"):
        raise ClusterError(
            Problem(
                f"the cluster at {address} asks nobody for a token",
                why="whoever reaches its ports reads what is sent there, and runs what he likes on its nodes",
                fix="RAY_AUTH_MODE=token and one token on all of its nodes; or here RAY_AUTH_MODE=disabled, where "
                "you trust everybody in its network",
            )
        )


def _is_loopback(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def ask_mode(address: str) -> str | None:
    """`token` or `disabled`, as the dashboard at this URL says; None where it does not say.

    Raises:
        ClusterError: nobody answers there in a few seconds.
    """
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/authentication_mode", timeout=_ANSWER_S) as answer:
            said = json.load(answer)
    except (urllib.error.HTTPError, ValueError):  # it answers something else
        return None
    except (OSError, http.client.HTTPException) as error:
        problem = Problem(f"no job server at {address}", why=str(error) or type(error).__name__, fix=ADDRESS_FIX)
        raise ClusterError(problem) from error
    return str(said.get("authentication_mode")) if isinstance(said, dict) else None
