"""A checkpoint on its way to a bucket that has its own troubles: it arrives whole, and the person has been told."""

import time
from collections.abc import Iterator

import pytest
from fault_proxy import Faults, Proxy, run_proxy
from outcomes import Outcome, record
from s3_server import make_place
from small_checkpoints import describe, write_two_files

from sftray.train_fn.checkpoint import commit_checkpoint, list_checkpoints
from sftray.train_fn.errors import StoreError
from sftray.train_fn.patience import Patience
from sftray.train_fn.saver import Saver
from sftray.train_fn.store import Store, connect_store

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with run_proxy(s3_endpoint) as running:
        yield running


@pytest.fixture
def store(proxy: Proxy, s3_endpoint: str) -> Store:
    return connect_store(make_place(s3_endpoint, proxy.address), Patience(tries=2, first_s=0.001))


EXPIRED = Faults(error_rate=1.0, errors=(403,))


@pytest.mark.parametrize(
    ("fault", "faults", "said"),
    [
        ("S3: expired credentials, then new ones", EXPIRED, "give new credentials"),
        ("S3: gone for a while", Faults(is_down=True), "see that the service answers"),
        ("S3: nothing but 503 for a while", Faults(error_rate=1.0, errors=(503,)), "see that the service answers"),
    ],
)
def test_a_save_waits_until_the_trouble_is_over(
    fault: str, faults: Faults, said: str, store: Store, proxy: Proxy
) -> None:
    told: list[StoreError | None] = []

    def tell(error: StoreError | None, pause: float) -> None:
        told.append(error)
        if len(told) == 2:
            proxy.faults = Faults()  # mended

    began, saver = time.monotonic(), Saver(tell, first_wait=0.01)
    proxy.faults = faults
    saver.start(lambda: commit_checkpoint(store, describe(3), write_two_files))
    assert saver.take_saved() is not None
    assert [found.step for found in list_checkpoints(store)] == [3]
    assert told[-1] is None and len(told) == 3
    assert all(said in str(error.problems[0].fix) for error in told if error is not None)
    saw = "the store refuses, it is tried again; then: it takes checkpoints again"
    record(Outcome("store", fault, 1, saw, 1, seconds=time.monotonic() - began))


def test_expired_credentials_are_not_knocked_at_again_and_again(store: Store, proxy: Proxy) -> None:
    proxy.faults = EXPIRED
    with pytest.raises(StoreError) as caught:
        store.read("a")
    assert proxy.counts["calls"] == 1, "the service has said what it has to say"
    assert "give new credentials" in str(caught.value.problems[0].fix)


def test_a_slow_store_is_a_slow_save_and_no_more(store: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(delay_s=0.2)
    saver = Saver(lambda error, pause: pytest.fail("it was not refused"))
    saver.start(lambda: commit_checkpoint(store, describe(3), write_two_files))
    assert not saver.has_saved(), "training goes on meanwhile"
    began = time.monotonic()
    assert saver.take_saved() is not None and [found.step for found in list_checkpoints(store)] == [3]
    record(Outcome("store", "S3: every call 0.2 s late", 1, "nothing", 1, seconds=time.monotonic() - began))
