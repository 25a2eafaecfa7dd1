"""The store is opened or refused in words; a run's name is taken once."""

import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftray.platform.run_directory import (
    TOKENS,
    check_name_is_free,
    describe_taken,
    make_name,
    open_store,
    take_run_directory,
)
from sftray.train_fn.config import NAME_PATTERN, StoreConfig
from sftray.train_fn.errors import ConfigError, StoreError, UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def open_path(path: str) -> Path:
    return open_store(StoreConfig(path=path))


def test_a_store_is_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_path("./a/b") == tmp_path / "a" / "b"
    assert open_path("~/runs") == tmp_path / "home" / "runs"
    assert open_path(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"  # again
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("file", "cannot be written: File exists"),
        ("file/runs", "cannot be written: Not a directory"),
        ("link", "cannot be written: File exists"),  # to nowhere
        ("/proc/sftray", "cannot be written: No such file or directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("~nobody-of-this-name/runs", "Could not determine home directory"),
    ],
)
def test_a_store_that_cannot_be_is_refused(
    path: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    with pytest.raises(StoreError) as caught:
        open_path(path)
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.what.startswith("store.path: ") and what in problem.what and problem.fix
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]


def test_a_relative_store_would_go_with_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB, "{}")
    with pytest.raises(ConfigError, match="this is a job on a cluster") as caught:
        open_path("./runs")
    assert caught.value.exit_code == 2 and "an absolute path" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert open_path(str(tmp_path / "runs")) == tmp_path / "runs"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_path("~/other") == tmp_path / "other"


def test_made_names_are_numbered_and_given_ones_are_taken_once(tmp_path: Path) -> None:
    taken = [take_run_directory(tmp_path, None, "My Config").name for _ in range(3)]
    assert taken == ["my-config", "my-config-2", "my-config-3"]
    (tmp_path / "my-config-2").rmdir()
    (tmp_path / "my-config-4").touch()  # a file takes a name too
    taken = [take_run_directory(tmp_path, None, "my-config").name for _ in range(2)]
    assert taken == ["my-config-2", "my-config-5"]
    assert take_run_directory(tmp_path, "mine", "my-config") == tmp_path / "mine"
    with pytest.raises(ConfigError):
        take_run_directory(tmp_path, "mine", "my-config")
    with pytest.raises(ConfigError):
        take_run_directory(tmp_path, "my-config-4", "x")


def take(store: Path, name: str | None, times: int) -> list[Path | UserError]:
    """What each of `times` starts at once gets."""
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        futures = [pool.submit(take_run_directory, store, name, "quick") for _ in range(times)]
        errors = [future.exception(120) for future in futures]
        return [
            error if isinstance(error, UserError) else f.result() for f, error in zip(futures, errors, strict=True)
        ]


@pytest.mark.slow
def test_starts_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    names = {path.name for path in take(tmp_path, None, 30) if isinstance(path, Path)}
    assert names == {"quick", *(f"quick-{number}" for number in range(2, 31))}
    results = take(tmp_path, "mine", 9)
    assert [result for result in results if isinstance(result, Path)] == [tmp_path / "mine"]
    assert sum(isinstance(result, ConfigError) for result in results) == 8


def test_a_taken_name_has_three_ways_on(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError) as caught:
        check_name_is_free(tmp_path, "mine")
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 2 and problem == describe_taken(tmp_path / "mine")
    assert problem.where == str(tmp_path / "mine")
    assert problem.fix == f"sftray resume {tmp_path}/mine, or another name (name=mine-2), or remove the folder"
    check_name_is_free(tmp_path, "other")
    check_name_is_free(tmp_path, None)


def test_the_place_of_all_tokens_is_no_name_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name_is_free(tmp_path, TOKENS)  # though nothing is prepared yet
    assert "remove" not in str(caught.value) and "resume" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("quickstart", "quickstart"),
        ("My Run (v2)", "my-run--v2-".strip("-")),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("中文", "run"),
        ("Ünï-1", "n--1"),
        ("", "run"),
        ("x" * 99, "x" * 50),
    ],
)
def test_a_label_becomes_a_name(label: str, name: str) -> None:
    assert make_name(label) == name


@given(st.text(max_size=80), st.integers(2, 10**9))
def test_every_label_becomes_a_legal_name_with_room_for_a_number(label: str, number: int) -> None:
    for name in (make_name(label), f"{make_name(label)}-{number}"):
        assert re.fullmatch(NAME_PATTERN.strip("^$"), name)
