"""An S3 over HTTP on this machine: moto behind a lock, for it looks and puts in two steps where S3 does in one."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class _OneConditionAtATime:
    def __init__(self, app: Any) -> None:
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ and "HTTP_IF_MATCH" not in environ:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        with self._lock:
            return list(self._app(environ, start_response))


@contextmanager
def serve_s3() -> Iterator[str]:
    """The address of a running server. It takes the credentials that all tests have in their environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _OneConditionAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_place(endpoint: str, through: str | None = None) -> str:
    """A new bucket, and the URL of a run in it, asked for at another address if `through` is given."""
    bucket = f"runs-{uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/store/alpha?endpoint_override={through or endpoint}&region=us-east-1"
