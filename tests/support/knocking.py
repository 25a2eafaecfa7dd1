"""Asking the ports of a Ray cluster, over HTTP and gRPC, with a token or without one; bounded in time."""

import contextlib
import http.client
import urllib.error
import urllib.request

import grpc

_LIMIT_S = 20.0


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
