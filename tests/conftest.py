"""Settings of every test: no network, no telemetry, one thread per process, and `tests/support` importable."""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower on several
# Ray reads both when it is imported: a token of this test run alone.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.environ.pop("RAY_ADDRESS", None)
# Of the tests' own S3. Ray's nodes inherit them, and give them to their workers.
os.environ.update(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing", AWS_DEFAULT_REGION="us-east-1")
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
_copies = tempfile.TemporaryDirectory(prefix="sftray-copies-", ignore_cleanup_errors=True)
os.environ["SFTRAY_CACHE"] = _copies.name  # of what stands in buckets: of this test run alone
for _folder in ("support", "chaos"):  # spawned processes inherit it
    sys.path.insert(0, str(Path(__file__).parent / _folder))


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Any]:
    """The one Ray node of the tests, with more CPUs than the machine may have: tests of layout need three.

    As in a cluster that a run starts for itself, no process of Ray's own looks for notices and keeps the dashboard's
    pages: each start of workers would wait for its imports. Tests of clusters turn them on again.
    """
    from ray_node import lead_node

    helpers = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where jobs look for python
    with lead_node(num_cpus=4, PATH=path) as head:
        settings = {"RAY_ADDRESS": head.address, **helpers}
        os.environ.update(settings)
        yield head
        for name in settings:
            del os.environ[name]


@pytest.fixture(scope="session")
def ray_address(ray_head: Any) -> str:
    address: str = ray_head.address
    return address


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The one S3 server of the tests; s3_server.make_place makes a bucket in it."""
    from s3_server import serve_s3

    with serve_s3() as endpoint:
        yield endpoint
