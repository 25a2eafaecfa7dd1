"""What a store promises, kept by a folder and by a bucket over HTTP alike, and through a network that fails."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import CUT, Faults, Proxy, run_proxy
from outcomes import Outcome, record
from ray_node import find_free_ports
from s3_server import make_place

from sftray.train_fn.errors import ConfigError, FencedError, Problem, StoreError
from sftray.train_fn.patience import Patience, plan_waits, try_patiently
from sftray.train_fn.store import Store, connect_store
from sftray.train_fn.store_objects import ObjectStore

QUICK = Patience(tries=8, first_s=0.001, longest_s=0.01)
DATA = bytes(range(256)) * 40


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return connect_store(tmp_path / "alpha")
    return connect_store(make_place(request.getfixturevalue("s3_endpoint")), QUICK)


@pytest.fixture(scope="module")
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with run_proxy(s3_endpoint) as running:
        yield running


@pytest.fixture
def shaken(proxy: Proxy, s3_endpoint: str) -> Iterator[Store]:
    """A store behind the proxy, which does nothing yet."""
    proxy.counts.clear()
    yield connect_store(make_place(s3_endpoint, proxy.address), QUICK)
    proxy.faults = Faults()


def stage(store: Store, draft: str = "checkpoints/.draft-a") -> Path:
    staged = store.stage(draft)
    (staged / "trainer").mkdir()
    (staged / "weights").write_bytes(DATA)
    (staged / "trainer" / "state.json").write_bytes(b"{}")
    (staged / "LAST").write_bytes(b"last")
    return staged


def publish(store: Store, claim: bytes = b"1", check: Callable[[], None] = lambda: None) -> bool:
    return store.publish(stage(store), "checkpoints/a", "LAST", claim, check)


WHOLE = {"weights": len(DATA), "trainer/state.json": 2, "LAST": 4}
FILES = {name: (size, "") for name, size in WHOLE.items()}


def test_files_are_written_listed_read_and_deleted(store: Store) -> None:
    assert store.list_files() == {} and store.list_folders("checkpoints") == []
    store.write("a/b/one", DATA)
    store.write("a/b/one", DATA[:300])
    store.write("a/two", b"")
    assert store.list_files() == {"a/b/one": 300, "a/two": 0} and store.list_files("a/b") == {"one": 300}
    assert store.list_folders("a") == ["b"]
    assert (store.read("a/b/one"), store.read("a/two"), store.read("a/b")) == (DATA[:300], b"", None)
    assert store.digest("a/b/one") == hashlib.sha256(DATA[:300]).hexdigest() and store.digest("a/three") is None
    store.delete("a/b/one")
    store.delete("a/b/one")
    assert store.list_files() == {"a/two": 0} and store.read("a/b/one") is None


def test_a_folder_is_removed_and_none_beside_it(store: Store) -> None:
    for path in ("a/one", "a/b/two", "ab/three"):
        store.write(path, b"x")
    store.remove("a")
    store.remove("a")
    assert store.list_files() == {"ab/three": 1}


def test_a_file_is_created_once(store: Store) -> None:
    assert store.create("leases/one", b"mine") and not store.create("leases/one", b"yours")
    assert store.read("leases/one") == b"mine" and store.list_files() == {"leases/one": 4}


def test_a_published_folder_stands_whole_and_is_fetched(store: Store) -> None:
    assert publish(store)
    assert store.list_files("checkpoints/a") == WHOLE and store.list_folders("checkpoints") == ["a"]
    folder = store.fetch("checkpoints/a", {**FILES, "gone": (1, "")})
    assert folder == store.locate("checkpoints/a")
    assert (folder / "weights").read_bytes() == DATA and (folder / "trainer/state.json").read_bytes() == b"{}"
    assert not (folder / "gone").exists()


@pytest.mark.parametrize("there", ["LAST", "weights"], ids=["whole", "half"])
def test_a_name_that_is_taken_is_left_alone(there: str, store: Store) -> None:
    store.write(f"checkpoints/a/{there}", b"theirs")
    assert not publish(store) and not publish(store)
    assert store.list_files("checkpoints/a") == {there: 6}


def test_two_writers_of_one_name_do_not_meet(store: Store) -> None:
    assert publish(store, b"1") and not publish(store, b"2")
    assert store.list_files("checkpoints/a") == WHOLE


def test_a_check_that_fails_leaves_nothing_behind(store: Store) -> None:
    def refuse() -> None:
        raise FencedError(Problem("taken over"))

    staged = stage(store)
    with pytest.raises(FencedError):
        store.publish(staged, "checkpoints/a", "LAST", b"1", refuse)
    store.discard(staged)
    assert not staged.exists() and store.list_files("checkpoints") == {}


def test_waits_double_up_to_a_bound() -> None:
    assert plan_waits(Patience(5, 0.5, 2.0)) == [0.5, 1.0, 2.0, 2.0] and plan_waits(Patience(1)) == []


@pytest.mark.parametrize(("failures", "tried"), [(0, 1), (2, 3), (3, 3)])
def test_what_may_pass_is_tried_again_and_only_so_often(failures: int, tried: int) -> None:
    calls: list[int] = []
    slept: list[float] = []

    def act() -> str:
        calls.append(1)
        if len(calls) <= failures:
            raise TimeoutError
        return "done"

    def run() -> str:
        return try_patiently(act, lambda e: isinstance(e, TimeoutError), Patience(3, 1.0), slept.append)

    if failures < 3:
        assert run() == "done"
    else:
        with pytest.raises(TimeoutError):
            run()
    assert len(calls) == tried and slept == [1.0, 2.0][: tried - 1]


def test_what_does_not_pass_is_raised_at_once() -> None:
    def act() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        try_patiently(act, lambda e: False, Patience(), lambda s: pytest.fail("it slept"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_fifth_of_calls_may_fail(seed: int, shaken: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(error_rate=0.2, seed=seed)
    for number in range(10):
        assert shaken.create(f"leases/{number}", b"mine %d" % number)
        shaken.write(f"files/{number}", DATA)
        assert not shaken.create(f"leases/{number}", b"yours")
    assert publish(shaken)
    shaken.fetch("checkpoints/a", FILES)
    assert shaken.list_files("checkpoints/a") == WHOLE
    assert all(shaken.read(f"files/{number}") == DATA for number in range(10))
    faults = proxy.counts["before"] + proxy.counts["after"]
    assert faults > 10
    record(Outcome("store", "S3: 500, 503, 429 or a cut connection on 20 % of calls", faults, "nothing", faults))


@pytest.mark.slow
@pytest.mark.parametrize("error", [500, 503, 429, 0])
def test_a_service_that_only_fails_is_a_store_error(error: int, s3_endpoint: str, proxy: Proxy) -> None:
    shaken = connect_store(make_place(s3_endpoint, proxy.address), Patience(3, 0.001))
    proxy.faults = Faults(error_rate=1.0, errors=(error,))
    acts: list[Callable[[], object]] = [
        lambda: shaken.read("a"),
        lambda: shaken.create("a", b""),
        lambda: shaken.delete("a"),
    ]
    for act in acts:
        with pytest.raises(StoreError, match=r"cannot be (read|written|removed), though that was tried 3 times"):
            act()
    proxy.faults = Faults()


def test_a_service_that_is_down_is_waited_for(s3_endpoint: str, proxy: Proxy) -> None:
    shaken = connect_store(make_place(s3_endpoint, proxy.address), Patience(2, 0.001))
    shaken.write("a", DATA)
    proxy.faults = Faults(is_down=True)
    with pytest.raises(StoreError) as caught:
        shaken.list_files()
    problem = caught.value.problems[0]
    assert problem.where and problem.where.startswith("s3://runs-") and problem.why and problem.fix
    proxy.faults = Faults()
    assert shaken.read("a") == DATA


@pytest.mark.slow
@pytest.mark.parametrize("act", ["create", "read_version", "replace", "list_marks", "delete", "get", "put", "find"])
def test_a_port_that_is_closed_is_tried_until_it_opens(act: str, s3_endpoint: str) -> None:
    (port,) = find_free_ports(1)
    store = connect_store(make_place(s3_endpoint, f"http://127.0.0.1:{port}"), Patience(40, 0.05, 0.25))
    assert isinstance(store, ObjectStore)
    bucket: Any = store.bucket
    arguments = {"create": [DATA], "put": [DATA], "replace": [DATA, '"version"']}.get(act, [])
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(getattr(bucket, act)("key", *arguments)), daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and not done, "nothing listens there yet"
    with run_proxy(s3_endpoint, port):
        thread.join(60)
    assert len(done) == 1


def test_a_port_that_stays_closed_is_a_store_error_that_says_how_often(s3_endpoint: str) -> None:
    (port,) = find_free_ports(1)
    store = connect_store(make_place(s3_endpoint, f"http://127.0.0.1:{port}"), Patience(3, 0.001))
    with pytest.raises(StoreError, match="cannot be written, though that was tried 3 times"):
        store.create("key", DATA)


def test_an_answer_that_is_cut_in_the_middle_is_asked_for_again(shaken: Store, proxy: Proxy) -> None:
    shaken.write("a", DATA)
    proxy.faults = Faults(error_rate=0.5, errors=(CUT,), seed=2)
    assert isinstance(shaken, ObjectStore)
    bucket: Any = shaken.bucket
    for _ in range(4):
        assert bucket.read_version("a")[0] == DATA and shaken.read("a") == DATA
    assert proxy.counts["before"] + proxy.counts["after"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing", "truncated"])
def test_an_upload_that_lies_is_made_again(kind: str, shaken: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(lie=kind, lie_about="weights", lies=2)  # type: ignore[arg-type]
    assert publish(shaken)
    assert shaken.list_files("checkpoints/a") == WHOLE and proxy.counts["lie"] == 2
    record(Outcome("store", "S3: an upload that is said to be kept, and is not", 2, "nothing: it is sent again", 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing", "truncated"])
@pytest.mark.parametrize("about", ["weights", "LAST"])
def test_an_upload_that_lies_for_good_is_found_out(kind: str, about: str, shaken: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(lie=kind, lie_about=about)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=f"the store says that it keeps {about}, and does not"):
        publish(shaken)
    assert shaken.list_files("checkpoints/a").get("LAST", 0) != WHOLE["LAST"]
    record(Outcome("store", "S3: every upload of a file lies", 1, "the store says that it keeps …, and does not", 1))


def test_a_creation_that_lies_is_not_won(shaken: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(lie="nothing", lie_about="leases")
    assert not shaken.create("leases/one", b"mine")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("ftp://host/runs", "ftp://host/runs is no place for a store"),
        ("s3:///runs", "s3:///runs is no place for a store"),
        ("s3://bucket/runs?endpoint=http://x", "endpoint is no option of a store"),
    ],
)
def test_a_place_that_is_none_is_refused(place: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what.replace("?", r"\?")):
        connect_store(place)


def test_a_bucket_that_does_not_exist_is_a_store_error(s3_endpoint: str) -> None:
    store = connect_store(f"s3://no-such-bucket/alpha?endpoint_override={s3_endpoint}&region=us-east-1", QUICK)
    with pytest.raises(StoreError, match="cannot be written"):
        store.write("a", b"x")
    with pytest.raises(StoreError, match="cannot be written"):
        store.create("a", b"x")


def count_winners(store: Store, races: int, racers: int) -> list[int]:
    """For each of `races` names, how many of as many threads as racers were told that it is theirs."""
    won = [0] * races
    lock, gate = threading.Lock(), threading.Barrier(racers)

    def race(mine: bytes) -> None:
        for number in range(races):
            gate.wait()
            if store.create(f"leases/{number}", mine):
                with lock:
                    won[number] += 1

    threads = [threading.Thread(target=race, args=(b"racer %d" % index,)) for index in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.slow
@pytest.mark.parametrize("races", [20, pytest.param(300, marks=pytest.mark.chaos)])
def test_of_all_who_race_for_a_name_one_gets_it(races: int, store: Store) -> None:
    winners = count_winners(store, races, racers=4)
    kind = type(store).__name__
    record(Outcome("owners", f"4 race for one name, {kind}", races, "one has it", winners.count(1)))
    assert winners == [1] * races


@pytest.mark.slow
@pytest.mark.parametrize("races", [10, pytest.param(100, marks=pytest.mark.chaos)])
def test_of_all_who_race_through_a_bad_network_one_gets_it(races: int, shaken: Store, proxy: Proxy) -> None:
    proxy.faults = Faults(error_rate=0.2, seed=races)
    winners = count_winners(shaken, races, racers=3)
    fault = "3 race for one name in S3, 20 % of calls fail"
    record(Outcome("owners", fault, races, "one has it", winners.count(1)))
    assert winners == [1] * races
