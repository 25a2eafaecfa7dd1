"""What the doctor finds: by tables where facts are given, and on this machine and a real store."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import no_flock
import pytest
from ray_node import find_free_ports, join_node, lead_node
from s3_server import make_place

from sftray.cluster.inspection import PACKAGES, NodeFacts, Visitor, ask_torch, look_at_node
from sftray.platform.cli import main
from sftray.platform.doctor import (
    Finding,
    check_token_file,
    choose_exit_code,
    compare_versions,
    judge_clock,
    judge_disk,
    judge_gpus,
    judge_reach,
    judge_versions,
    judge_view,
)
from sftray.platform.store_probe import probe_store

GOOD = {**dict.fromkeys(PACKAGES, "1.0"), "ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
NODE = NodeFacts("a", "3.11.7", GOOD, clock=0.0, free_bytes=10**11)


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.9.1", "a: torch 2.9.1 has known security holes"),
        ("ray", "2.53.9", "a: ray 2.53.9 has known security holes"),
        ("transformers", "5.2", "a: transformers 5.2 has known security holes"),
        ("pydantic", None, "a: pydantic is not installed"),
    ],
)
def test_what_is_old_or_missing_is_bad(name: str, version: str | None, said: str) -> None:
    (found,) = judge_versions(replace(NODE, versions={**GOOD, name: version}))
    assert (found.level, found.what) == ("bad", said) and found.fix


def test_good_versions_are_told() -> None:
    (found,) = judge_versions(NODE)
    assert found.level == "ok" and "python 3.11.7, sftray 1.0, ray 2.60.0, torch 2.13.0+cpu" in found.what


def test_nodes_that_differ_are_told_with_who_has_what() -> None:
    other = replace(NODE, host="b", python="3.12.1", versions={**GOOD, "torch": "2.13.1"})
    found = [each.what for each in compare_versions([NODE, other, replace(other, host="c")])]
    assert found == ["python differs: 3.11 on a; 3.12 on b, c", "torch differs: 2.13.0+cpu on a; 2.13.1 on b, c"]
    assert compare_versions([NODE, replace(NODE, host="b", python="3.11.9")]) == []


@pytest.mark.parametrize(("skew", "said"), [(1.0, []), (30.0, ["30 s ahead"]), (-400.0, ["400 s behind"])])
def test_clocks(skew: float, said: list[str]) -> None:
    assert [each.what for each in judge_clock(replace(NODE, skew=skew))] == [
        f"a: its clock is {text}" for text in said
    ]


def test_disks_and_views_of_the_store() -> None:
    assert judge_disk(NODE)[0].level == "ok" and judge_disk(replace(NODE, free_bytes=10**9))[0].level == "bad"
    assert judge_view(NODE, "/s") == [] == judge_view(replace(NODE, sees_store=True), "/s")
    assert judge_view(replace(NODE, sees_store=False), "/s")[0].what == "a does not see /s, or may not write there"


def test_a_token_that_others_can_read_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert check_token_file() == []
    (tmp_path / "token").touch(0o644)
    (found,) = check_token_file()
    assert found.level == "bad" and found.fix == f"chmod 600 {tmp_path / 'token'}"
    (tmp_path / "token").chmod(0o600)
    assert check_token_file()[0].level == "ok"


@pytest.mark.parametrize(
    ("gpus", "torch_sees", "levels", "said"),
    [
        ([], "", [], ""),
        (["H100, 580.65, 81559 MiB"], "ok 1 of them for torch, CUDA 13.0, NCCL 2.28.9", ["ok", "ok"], "NCCL 2.28.9"),
        (["H100, 580.65, 81559 MiB"], "torch 2.13.0+cpu is built without CUDA", ["ok", "bad"], "without CUDA"),
    ],
)
def test_gpus_are_told_with_what_torch_makes_of_them(
    gpus: list[str], torch_sees: str, levels: list[str], said: str
) -> None:
    found = judge_gpus(replace(NODE, gpus=gpus, torch_sees=torch_sees))
    assert [each.level for each in found] == levels
    assert all(each.what.startswith("a: ") for each in found) and (not found or said in found[-1].what)


@pytest.mark.slow
def test_torch_is_asked_what_it_makes_of_gpus() -> None:
    assert ask_torch().startswith("torch 2.") or ask_torch().startswith("ok ")


def test_nodes_that_take_no_connection_are_named() -> None:
    there, visitor = Visitor(), Visitor()
    open_port, (closed_port,) = there.listen("127.0.0.1"), find_free_ports(1)
    places = [("b", "127.0.0.1", open_port), ("c", "127.0.0.1", closed_port)]
    assert visitor.find_unreached(places) == ["c (127.0.0.1)"]
    (found,) = judge_reach(replace(NODE, unreached=["c (127.0.0.1)"]))
    assert (found.level, found.what) == ("bad", "a does not reach c (127.0.0.1)") and "SOCKET_IFNAME" in found.fix
    assert judge_reach(NODE) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_store_is_tried(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = str(tmp_path / "runs") if kind == "folder" else make_place(request.getfixturevalue("s3_endpoint"))
    ((level, what, _),) = probe_store(place)
    assert level == "ok" and "gives a name once" in what and "MB/s written" in what
    assert not list((tmp_path / "runs").glob("*"))  # the probe is gone


def test_a_store_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ((level, what, fix),) = probe_store(str(tmp_path / "file"))
    assert level == "bad" and str(tmp_path / "file") in what and fix


def test_a_folder_without_locks_is_bad(tmp_path: Path) -> None:
    code = f"from sftray.platform.store_probe import probe_store; print(*probe_store({str(tmp_path / 'runs')!r}))"
    without = [sys.executable, str(Path(no_flock.__file__)), sys.executable, "-c", code]
    done = subprocess.run(without, capture_output=True, text=True, timeout=120, check=True)
    assert "('bad', " in done.stdout and "cannot be locked there (No locks available)" in done.stdout
    assert "NFS with its lock service" in done.stdout and not list((tmp_path / "runs").iterdir())


def test_the_worst_area_gives_the_exit_code() -> None:
    store, disk = Finding("store", "bad", ""), Finding("disk", "bad", "")
    assert [choose_exit_code(found) for found in ([], [Finding("ports", "note", "")], [disk], [disk, store])] == [
        0,
        0,
        5,
        4,
    ]


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = main(["doctor", "--store", str(tmp_path / "runs"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == told["exit_code"]
    assert {"versions", "disk", "store"} <= {each["area"] for each in told["findings"]}
    assert look_at_node().versions["ray"] is not None


def examine_as_a_process(address: str, store: Path) -> dict[str, list[str]]:
    """What it says of each area. In a process of its own: it connects and leaves."""
    command = [sys.executable, "-m", "sftray.platform.cli", "doctor", "--store", str(store), "--json"]
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    told = json.loads(done.stdout)
    assert done.returncode == told["exit_code"], done.stderr
    by_area: dict[str, list[str]] = {}
    for finding in told["findings"]:
        by_area.setdefault(finding["area"], []).append(f"{finding['level']} {finding['what']}")
    return by_area


@pytest.mark.ray
def test_the_nodes_of_a_cluster(tmp_path: Path) -> None:
    """Both see the store, reach each other, and leave nothing in it."""
    (tmp_path / "runs").mkdir()
    with lead_node(1) as head, join_node(head.address, 1):
        found = examine_as_a_process(head.address, tmp_path / "runs")
    assert found["nodes"][0].startswith("ok 2 node(s): ")
    assert len(found["versions"]) == 3 and len({*found["versions"]}) == 1
    assert len(found["store"]) == 1 and not any((tmp_path / "runs").iterdir())
    assert found["auth"] == [f"ok the cluster at {head.address} asks for its token"]
    assert "ports" not in found


@pytest.mark.ray
def test_a_cluster_that_asks_for_no_token_is_bad(tmp_path: Path) -> None:
    with lead_node(1, RAY_AUTH_MODE="disabled") as head:
        found = examine_as_a_process(head.address, tmp_path / "runs")
    (said,) = found["auth"]
    assert said.startswith(f"bad the cluster at {head.address} answers who has no token")
