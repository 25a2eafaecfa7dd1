"""Copies that this machine keeps of what stands in buckets, and folders that go there; on a real S3 over HTTP."""

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from s3_server import make_place

from sftray.cluster.local import make_private_folder
from sftray.train_fn import local_copies
from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.errors import StoreError
from sftray.train_fn.local_copies import copy_here, keep_copy, upload_folder
from sftray.train_fn.places import as_path, find_bucket, write_whole


@pytest.fixture
def place(s3_endpoint: str) -> Path:
    return as_path(make_place(s3_endpoint))


def test_a_copy_is_fetched_once_and_again_when_the_source_changes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(place / "data" / "a.txt", "one")
    write_whole(place / "data" / "deep" / "b.txt", "two")
    first = copy_here(place / "data")
    assert (first / "a.txt").read_text() == "one" and (first / "deep/b.txt").read_text() == "two"
    (first / "a.txt").write_text("seen")  # a second look would bring back what stands in the bucket
    assert copy_here(place / "data") == first and (first / "a.txt").read_text() == "seen"
    write_whole(place / "data" / "a.txt", "other")
    assert (copy_here(place / "data") / "a.txt").read_text() == "other"
    assert copy_here(place / "data" / "a.txt").read_text() == "other"
    with pytest.raises(FileNotFoundError):
        copy_here(place / "nothing")
    assert copy_here(Path("some/file")) == Path("some/file")


def test_of_many_one_fetches_a_copy() -> None:
    filled: list[Path] = []
    threads = [threading.Thread(target=keep_copy, args=("shared", filled.append)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1


def test_copies_that_nobody_asks_for_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local_copies.CACHE, str(tmp_path))
    old, used = (keep_copy(name, lambda folder: None) for name in ("old", "used"))
    for folder, days in ((old, 8), (used, 6)):
        then = time.time() - days * 86400
        os.utime(folder / ".whole", (then, then))
    keep_copy("new", lambda folder: None)
    assert not old.exists() and used.is_dir() and (used.parent / "new").is_dir()


def test_what_is_not_a_copy_stays_in_a_folder_that_is_named_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(local_copies.CACHE, str(tmp_path))
    copy = keep_copy("copy", lambda folder: None)
    foreign = (tmp_path / "thesis", copy.parent / "thesis")
    then = time.time() - 365 * 86400
    for folder in (*foreign, copy.parent / "torn"):  # the last as a killed process leaves it
        folder.mkdir()
        os.utime(folder, (then, then))
    (copy.parent / "torn.lock").touch()
    keep_copy("new", lambda folder: None)
    assert all(folder.is_dir() for folder in foreign) and copy.is_dir() and copy.parent.parent == tmp_path
    assert not (copy.parent / "torn").exists() and not (copy.parent / "torn.lock").exists()


def test_without_a_home_copies_are_not_among_ray_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(local_copies.CACHE, str(tmp_path / "file"))  # in which no folder can be made
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    cache = local_copies.get_cache()
    assert cache.is_dir() and cache == tmp_path / f"sftray-copies-{os.getuid()}" != make_private_folder()
    cache.rmdir()
    cache.symlink_to(make_private_folder())
    with pytest.raises(StoreError, match="it is not a folder of this user"):
        local_copies.get_cache()


def test_a_full_disk_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local_copies.CACHE, str(tmp_path))

    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left") as caught:
        keep_copy("name", fill)
    assert local_copies.CACHE in str(caught.value)


def test_a_folder_is_uploaded_with_all_below_it(place: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("1")
    there = find_bucket(place / "up")
    assert isinstance(there, BucketPath)
    upload_folder(tmp_path, there)
    assert (place / "up" / "deep" / "file").read_text() == "1"
