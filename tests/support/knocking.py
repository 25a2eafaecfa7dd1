"""Asking the ports of a Ray cluster, over HTTP and gRPC, with a token or without one; bounded in time."""

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc

_LIMIT_S = 20.0
_GREETING_S = 3.0

# A question for each kind of port that Ray has on a node.
QUESTIONS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "JobInfoGcsService/GetAllJobInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "ReporterService/HealthCheck",
    "RayletDriver/ListNamedActors",
    "CoreWorkerService/GetCoreWorkerStats",
)
STRANGERS = (None, "wrong" * 8)


def ask_http(url: str, token: str | None = None, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of the answer. Raises OSError where nobody speaks HTTP."""
    request = urllib.request.Request(url, data=body, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with contextlib.ExitStack() as stack:
        try:
            answer = stack.enter_context(urllib.request.urlopen(request, timeout=_LIMIT_S))
        except urllib.error.HTTPError as error:
            answer = stack.enter_context(error)
        except http.client.HTTPException as error:
            raise ConnectionError(url) from error
        return answer.status, answer.read()


def ask_grpc(address: str, method: str, token: str | None = None) -> tuple[str, bytes]:
    """Name of the status, and the answer, of a call with an empty request."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(method, lambda _: b"", lambda answer: answer)
        try:
            return "OK", bytes(call(None, timeout=_LIMIT_S, metadata=metadata, wait_for_ready=False))
        except grpc.RpcError as error:
            return error.code().name, b""


def ask_as_stranger(ports: Iterable[int]) -> dict[str, set[str]]:
    """What ports of the loopback answer to QUESTIONS, those that do not know the question left out."""
    ports = sorted(set(ports))
    with ThreadPoolExecutor(len(ports)) as crowd:
        places = [
            f"127.0.0.1:{port}" for port, speaks in zip(ports, crowd.map(speaks_grpc, ports), strict=True) if speaks
        ]
    answers = {
        question: {ask_grpc(place, f"/ray.rpc.{question}", token)[0] for place in places for token in STRANGERS}
        for question in QUESTIONS
    }
    return {question: found - {"UNIMPLEMENTED"} for question, found in answers.items()}


def speaks_grpc(port: int) -> bool:
    """Others, as those where processes meet to train, take a connection and say nothing for ever."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(_GREETING_S)
        except grpc.FutureTimeoutError:
            return False
    return True
