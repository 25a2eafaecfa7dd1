"""A path in a bucket, on a real S3 over HTTP: what runs do by paths, and that nothing is lost where several write."""

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import Faults, Proxy, run_proxy
from s3_server import make_place
from waiting import wait_until

from sftray.train_fn.bucket_path import BucketError
from sftray.train_fn.bucket_url import BucketUrl, parse_bucket_url
from sftray.train_fn.errors import StoreError
from sftray.train_fn.journal import EVENTS, METRICS, Journal, read_lines
from sftray.train_fn.local_copies import copy_here
from sftray.train_fn.looking import watch_for
from sftray.train_fn.places import as_path, find_bucket, remove_tree, write_whole
from sftray.train_fn.tail import Tail


@pytest.fixture
def place(s3_endpoint: str) -> Path:
    return as_path(make_place(s3_endpoint))


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with run_proxy(s3_endpoint) as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same words about a folder and a bucket."""
    if request.param == "folder":
        return tmp_path / "alpha"
    return as_path(make_place(request.getfixturevalue("s3_endpoint")))


def test_its_name_and_parts_are_those_of_a_path() -> None:
    path = as_path("s3://bucket/store/run?endpoint_override=http://host:1&region=r")
    assert str(path / "a" / "b.json") == "s3://bucket/store/run/a/b.json?endpoint_override=http://host:1&region=r"
    assert path.name == "run" and path.parent / "run" == path and (path / "a").parent == path
    assert (path / "b.json").stem == "b" and path.with_name("c") == path.parent / "c"
    assert str((path / "a" / "b").relative_to(path)) == "a/b"
    assert str(path.parent.parent) == "s3://bucket/?endpoint_override=http://host:1&region=r"
    assert path.parent.parent / "store" == path.parent and path.absolute() == path
    assert pickle.loads(pickle.dumps(path)) == path and len({path, as_path(str(path))}) == 1
    assert find_bucket(path) is path and find_bucket(as_path("a/b")) is None


@pytest.mark.parametrize("options", ["", "?region=r", "?endpoint_override=http://host:1&region=r"])
@pytest.mark.parametrize(
    "name",
    [
        "part#1.jsonl",
        "train-?.jsonl",
        "50%.csv",
        "a%20b",
        "a b",
        "what?",
        "a?b=c",
        "a?region=x",
        "a?&",
        "é&ü=1",
        "x?y=/z",
    ],
)
def test_names_are_no_parts_of_a_url(name: str, options: str) -> None:
    path = as_path(f"s3://bucket/data{options}") / name
    assert path.name == name.rpartition("/")[2] and find_bucket(path).key == f"data/{name}"  # type: ignore[union-attr]
    for again in (as_path(str(path)), pickle.loads(pickle.dumps(path)), path.parent / path.name):
        assert again == path and hash(again) == hash(path) and str(again) == str(path)
    assert str(path).endswith(options) and path / "b" != path and (path / "b").parent == path
    assert (path / "#").with_name("?") == path / "?" and {path, path / "b"} == {path, as_path(str(path / "b"))}


@pytest.mark.parametrize(
    ("url", "key", "query"),
    [
        ("s3://bucket/a#b?region=r", "a#b", "region=r"),
        ("s3://bucket/*.json?", "*.json?", ""),
        ("s3://bucket/*.json??region=r", "*.json?", "region=r"),
        ("s3://bucket/day=1/?.csv", "day=1/?.csv", ""),
        ("s3://bucket?colour=red", "", "colour=red"),
        ("s3://bucket//a/", "a", ""),
        ("S3://bucket", "", ""),
    ],
)
def test_what_looks_like_options_is_no_part_of_the_key(url: str, key: str, query: str) -> None:
    assert parse_bucket_url(url) == BucketUrl("s3", "bucket", key, query)


def test_odd_names_are_objects_like_others(either: Path) -> None:
    names = ["50%.csv", "a b", "a%20b", "a?b=c", "part#1.jsonl", "what?"]
    for name in names:
        (either / "data").mkdir(parents=True, exist_ok=True)
        write_whole(either / "data" / name, name)
    assert sorted(path.name for path in (either / "data").iterdir()) == names
    for path in (either / "data").iterdir():
        assert as_path(str(path)).read_text() == path.name == copy_here(path).read_text()
    assert sorted(path.name for path in (either / "data").glob("?art#*")) == ["part#1.jsonl"]


def test_files_and_folders(either: Path) -> None:
    assert not either.exists() and not either.is_dir()
    either.mkdir(parents=True, exist_ok=True)
    write_whole(either / "one.json", "ä")
    (either / "deep").mkdir(exist_ok=True)
    write_whole(either / "deep" / "two.txt", b"2")
    assert (either / "one.json").is_file() and not (either / "one.json").is_dir() and (either / "deep").is_dir()
    assert (either / "one.json").read_text(encoding="utf-8") == "ä" and (
        either / "deep" / "two.txt"
    ).read_bytes() == b"2"
    assert (either / "one.json").stat().st_size == 2
    with (either / "one.json").open("rb") as file:
        assert file.read() == "ä".encode()
    with (either / "one.json").open(encoding="utf-8") as text:
        assert text.read() == "ä"
    assert sorted(path.name for path in either.iterdir()) == ["deep", "one.json"]
    assert [path.name for path in either.glob("*.json")] == ["one.json"]
    (either / "flag").touch()
    (either / "flag").touch()
    assert (either / "flag").read_bytes() == b""
    (either / "flag").unlink()
    (either / "flag").unlink(missing_ok=True)
    remove_tree(either / "deep")
    assert sorted(path.name for path in either.iterdir()) == ["one.json"]


@pytest.mark.parametrize("act", ["read_text", "read_bytes", "open", "stat", "unlink"])
def test_what_is_not_there_is_an_error(act: str, either: Path) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(either / "nothing", act)()


def test_a_folder_is_made_once(either: Path) -> None:
    either.parent.mkdir(parents=True, exist_ok=True)
    either.mkdir()
    for _ in range(2):
        with pytest.raises(FileExistsError):
            either.mkdir()
    either.mkdir(exist_ok=True)


def test_of_many_one_makes_a_folder(place: Path) -> None:
    made: list[int] = []

    def make(number: int) -> None:
        try:
            as_path(str(place)).mkdir()
            made.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_refusal_is_an_error_of_the_store_and_of_the_system(s3_endpoint: str) -> None:
    path = as_path(f"s3://no-such-bucket/a?endpoint_override={s3_endpoint}&region=us-east-1")
    with pytest.raises(BucketError) as caught:
        write_whole(path, "text")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, StoreError)
    assert "no-such-bucket" in str(caught.value) and caught.value.exit_code == 4


@pytest.mark.parametrize(
    "url", ["s3://runs/a?endpoint_override=http://no host", "s3://runs/a?endpoint_override=http://"]
)
def test_what_cannot_be_opened_is_an_error_with_its_fix(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        as_path(url).exists()
    assert "endpoint_override" in str(caught.value.problems[0].fix)


def test_a_service_of_its_own_needs_no_region(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    path = as_path(make_place(s3_endpoint).replace("&region=us-east-1", ""))
    write_whole(path / "file", "text")
    assert (path / "file").read_text() == "text"


def test_events_of_many_writers_are_all_there_and_counted(place: Path) -> None:
    def write(writer: int) -> None:
        journal = Journal(as_path(str(place)))
        for number in range(5):
            journal.add_event("state", 1, f"{writer}-{number}")

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(read_lines(place / EVENTS))
    assert [row["seq"] for row in rows] == list(range(20))
    assert {row["why"] for row in rows} == {f"{writer}-{number}" for writer in range(4) for number in range(5)}


@pytest.mark.slow
def test_events_are_written_once_though_answers_are_lost(s3_endpoint: str, proxy: Proxy) -> None:
    place = as_path(make_place(s3_endpoint, proxy.address))
    proxy.faults = Faults(error_rate=0.3, seed=3)
    journal = Journal(place)
    for number in range(12):
        journal.add_event("state", 1, str(number))
    proxy.faults = Faults()
    assert [row["why"] for row in read_lines(place / EVENTS)] == [str(number) for number in range(12)]


@pytest.mark.slow
def test_metrics_go_by_themselves_and_never_wait_for_the_bucket(s3_endpoint: str, proxy: Proxy) -> None:
    place = as_path(make_place(s3_endpoint, proxy.address))
    journal = Journal(place, patient=True)
    proxy.faults = Faults(is_down=True)
    for step in range(3):
        journal.add_metrics({"step": step})
    with pytest.raises(StoreError):
        journal.write_waiting()
    proxy.faults = Faults()
    wait_until(lambda: (place / METRICS).exists())
    journal.add_metrics({"step": 3})
    journal.write_waiting()
    assert [row["step"] for row in read_lines(place / METRICS)] == [0, 1, 2, 3]
    journal.rewind(1)
    assert [row["step"] for row in read_lines(place / METRICS)] == [0, 1]


def test_a_tail_gives_each_line_once(place: Path) -> None:
    tail, journal = Tail(place / METRICS), Journal(place)
    assert tail.read() == []
    for step in range(3):
        journal.add_metrics({"step": step, "time": step})
    assert [row["step"] for row in tail.read()] == [0, 1, 2] and tail.read() == []
    journal.rewind(1)
    journal.add_metrics({"step": 2, "time": 7})
    assert [row["time"] for row in tail.read()] == [7]


def test_a_disk_here_that_fills_up_on_the_way_is_not_the_bucket_s_error(s3_endpoint: str, proxy: Proxy) -> None:
    """So the bucket is not asked again."""
    there = find_bucket(as_path(make_place(s3_endpoint, proxy.address)) / "data")
    assert there is not None
    there.write_bytes(b"x" * 100_000)
    before = proxy.counts["calls"]
    with pytest.raises(OSError, match="No space left") as caught:
        there.bucket.download(there.key, Path("/dev/full"))
    assert not isinstance(caught.value, StoreError) and proxy.counts["calls"] - before <= 3


@pytest.mark.slow
def test_a_stop_is_seen_at_a_later_look(place: Path, tmp_path: Path) -> None:
    is_there = watch_for([tmp_path / "stop", place / "stop"])
    assert not is_there()
    (tmp_path / "stop").touch()
    assert is_there()
    is_far = watch_for([place / "stop"])
    assert not is_far()
    write_whole(place / "stop", "please")
    wait_until(is_far)
