"""An HTTP proxy that fails: in front of a storage service, as networks and services do.

with run_proxy("http://127.0.0.1:9000") as proxy:
    proxy.faults = Faults(error_rate=0.2, seed=1)
    ... use proxy.address in place of the service's ...
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

RESET = 0  # in place of a status: the connection is cut
CUT = -1  # the connection is cut in the middle of the answer
ERRORS = (500, 503, 429, RESET)
_BODIES = {500: "InternalError", 503: "SlowDown", 429: "TooManyRequests", 403: "ExpiredToken"}


@dataclass(frozen=True)
class Faults:
    """Args:
    error_rate: share of calls that fail, with one of `errors`, half of them after the service has done its work.
    seed: which calls fail depends on it and their order alone.
    delay_s: seconds that each call is held back.
    is_down: every connection is cut.
    lie: a PUT is answered with 200 although nothing of it is stored, or half.
    lie_about: only PUTs whose path holds this.
    lies: how many PUTs are lied about; then all is well.
    """

    error_rate: float = 0.0
    errors: tuple[int, ...] = ERRORS
    seed: int = 0
    delay_s: float = 0.0
    is_down: bool = False
    lie: Literal["", "nothing", "truncated"] = ""
    lie_about: str = ""
    lies: int = 10**9


class Proxy:
    """`counts`: of calls, and of what was done to them, by name."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.address = ""
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.faults = Faults()

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults, self._random, self._lies = faults, random.Random(faults.seed), faults.lies

    def draw(self, method: str, path: str) -> tuple[str, int]:
        """What happens to a call: "" (nothing), "lie", "before" or "after" (an error, and when), and its status."""
        with self._lock:
            self.counts["calls"] += 1
            faults = self._faults
            kind, status = "", 200
            if faults.is_down:
                kind, status = "before", RESET
            elif self._random.random() < faults.error_rate:
                kind, status = self._random.choice(["before", "after"]), self._random.choice(faults.errors)
            elif faults.lie and method == "PUT" and faults.lie_about in path and self._lies > 0:
                kind, self._lies = "lie", self._lies - 1
            self.counts[kind or "well"] += 1
            return kind, status


@contextmanager
def run_proxy(upstream: str, port: int = 0) -> Iterator[Proxy]:
    """A proxy in front of the service at `upstream`, on a free port unless one is given."""
    proxy = Proxy(upstream)
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="fault-proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self._read_body()
        faults = self.proxy.faults
        if faults.delay_s:
            time.sleep(faults.delay_s)
        kind, status = self.proxy.draw(self.command, self.path)
        if status == CUT:
            self._answer(*self._ask(dict(self.headers.items()), body), is_cut=True)
        elif kind == "before":
            self._fail(status)
        elif kind == "lie" and faults.lie == "nothing":
            self._answer(200, {"ETag": '"0123456789abcdef0123456789abcdef"'}, b"")
        elif kind == "lie":
            headers, plain = _decode(dict(self.headers.items()), body)
            self._answer(*self._ask(headers, plain[: len(plain) // 2]))
        else:
            answer = self._ask(dict(self.headers.items()), body)
            self._fail(status) if kind == "after" else self._answer(*answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _ask(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            dropped = {"transfer-encoding", "content-length", "expect", "connection"}
            kept = {key: value for key, value in headers.items() if key.lower() not in dropped}
            connection.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, is_cut: bool = False) -> None:
        self.send_response_only(status)
        dropped = {"transfer-encoding", "connection"} | (set() if self.command == "HEAD" else {"content-length"})
        for key, value in headers.items():
            if key.lower() not in dropped:
                self.send_header(key, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body[: len(body) // 2] if is_cut else body)
        self.close_connection |= is_cut

    def _fail(self, status: int) -> None:
        self.proxy.counts[str(status or "reset")] += 1
        if status != RESET:
            text = f"<Error><Code>{_BODIES[status]}</Code><Message>by the proxy</Message></Error>"
            return self._answer(status, {"Content-Type": "application/xml", "Content-Length": "0"}, text.encode())
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the connection was cut, by us or by the client
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _decode(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
    """A PUT without checksums, and without the pieces into which SDKs cut its body."""
    lowered = {key.lower(): value for key, value in headers.items()}
    if "aws-chunked" in lowered.get("content-encoding", ""):
        pieces, rest = [], body
        while rest:
            head, _, rest = rest.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            pieces.append(rest[:size])
            rest = rest[size + 2 :]
        body = b"".join(pieces)
    dropped = ("content-encoding", "content-md5", "x-amz-checksum", "x-amz-trailer", "x-amz-decoded", "x-amz-sdk")
    kept = {key: value for key, value in headers.items() if not key.lower().startswith(dropped)}
    return {**kept, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, body
