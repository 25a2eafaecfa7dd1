"""What a stranger gets from the ports of a cluster, and where secrets are not found after a run: nowhere."""

import base64
import gzip
import json
import os
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from canary import find_secrets, read_files
from guarded_head import Guarded, lead_guarded
from knocking import STRANGERS, ask_as_stranger, ask_grpc, ask_http
from tiny_runs import build_config, read_events
from waiting import wait_until

from sftray.train_fn.config_file import Resolved, dump_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with lead_guarded() as guarded:
        yield guarded


CLOSED = [
    *("/logs", "/nodes?view=summary", "/logical/actors", "/events", "/timezone"),
    *("/api/version", "/api/jobs/", "/api/cluster_status", "/api/component_activities", "/api/train/v2/runs/v1"),
    *("/api/v0/actors", "/api/v0/tasks", "/api/v0/workers", "/api/v0/logs", "/api/v0/logs/file", "/api/v0/objects"),
    *("/api/packages/gcs/x.zip", "/worker/traceback?pid=1", "/task/cpu_profile", "/memory_profile?pid=1"),
]


@pytest.mark.parametrize("token", STRANGERS)
def test_the_dashboard_has_nothing_for_a_stranger(token: str | None, guarded: Guarded) -> None:
    refused = (401, b"Unauthorized: Missing authentication token")
    if token is not None:
        refused = (403, b"Forbidden: Invalid authentication token")
    for path in CLOSED:
        assert ask_http(guarded.head.dashboard + path, token) == refused, path
    job = json.dumps({"entrypoint": "true", "submission_id": "strange"}).encode()
    for path, method in (("/api/jobs/", "POST"), ("/api/jobs/x/stop", "POST"), ("/api/jobs/x", "DELETE")):
        assert ask_http(guarded.head.dashboard + path, token, method, job) == refused, path
    assert ask_http(f"{guarded.head.dashboard}/api/packages/gcs/x.zip", token, "PUT", b"PK") == refused
    assert json.loads(guarded.ask("/api/jobs/")) == [] and json.loads(guarded.ask("/api/version"))["ray_version"]


def test_what_is_open_is_a_page_without_data_and_signs_of_life(guarded: Guarded) -> None:
    page = ask_http(f"{guarded.head.dashboard}/")
    assert page[0] == 200 and guarded.head.address.encode() not in page[1] and len(page[1]) < 2000
    mode = ask_http(f"{guarded.head.dashboard}/api/authentication_mode")
    assert mode == (200, b'{"authentication_mode": "token"}')
    assert ask_http(f"{guarded.head.dashboard}/api/gcs_healthz") == (200, b"success")


def test_no_port_of_a_node_answers_a_stranger(guarded: Guarded) -> None:
    answers: dict[str, set[str]] = {}
    workers = "CoreWorkerService/GetCoreWorkerStats"  # none may be there yet

    def have_all_answered() -> bool:
        """Some ports open a while after Ray says that it runs."""
        answers.update(ask_as_stranger(each.port for each in guarded.list_listeners()))
        return all(found for question, found in answers.items() if question != workers)

    wait_until(have_all_answered)
    assert answers.pop(workers) <= {"UNAUTHENTICATED"}
    assert answers == {question: {"UNAUTHENTICATED"} for question in answers}
    for question in ("NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys"):
        status, answer = ask_grpc(guarded.head.address, f"/ray.rpc.{question}", guarded.token)
        assert status == "OK" and len(answer) > 100  # the questions are such that Ray has an answer


def test_other_web_servers_of_a_node_have_metrics_for_a_stranger_or_nothing(guarded: Guarded) -> None:
    found = set()
    for each in guarded.list_listeners():
        try:
            status, body = ask_http(f"http://{each.address.replace('::', '127.0.0.1')}:{each.port}/x")
        except OSError:  # not HTTP
            continue
        found.add((status, body[:6]))
    assert found == {(401, b"Unauth"), (200, b"# HELP")}
    assert find_secrets(guarded.read_metrics(), [*guarded.secrets.values(), guarded.token]) == []


def plant(folder: Path, secret: str, place: str) -> dict[str, bytes]:
    """Put the secret into a folder in one of several ways, and read it."""
    folder.mkdir(exist_ok=True)
    text = f"key={secret};".encode()
    if place == "plain":
        (folder / ".hidden").write_bytes(b"\0" * 1000 + text)
    elif place == "name":
        (folder / secret).touch()
    elif place == "gzip":
        (folder / "log.gz").write_bytes(gzip.compress(text))
    elif place == "header":
        (folder / "seen").write_bytes(b"Authorization: Basic YXBpO" + base64.b64encode(b"api:" + text))
    else:
        with zipfile.ZipFile(folder / "inner.zip", "w", zipfile.ZIP_DEFLATED) as inner:
            inner.writestr("a/b", text)
        with zipfile.ZipFile(folder / "outer.zip", "w", zipfile.ZIP_DEFLATED) as outer:
            outer.write(folder / "inner.zip", "inner.zip")
        (folder / "inner.zip").unlink()
    return read_files(folder)


@pytest.mark.parametrize("place", ["plain", "name", "gzip", "header", "zip in zip"])
def test_a_secret_that_is_there_is_found(place: str, tmp_path: Path) -> None:
    secret = secrets.token_hex(20)
    found = find_secrets(plant(tmp_path / "there", secret, place), [secrets.token_hex(20), secret])
    assert len(found) == 1 and found[0].endswith(f": {secret}")


def write_desk(folder: Path, store: Path, secret: str) -> None:
    """A folder of somebody who trains: a config, its data, and secrets beside them."""
    folder.mkdir()
    config = build_config(
        folder,
        scaling={"num_workers": 1, "use_gpu": False},
        store={"path": str(store)},
        tracking={"wandb": "online"},
    )
    data = config.data.model_copy(update={"train": "train.jsonl", "validation": "validation.jsonl"})
    (folder / "run.yaml").write_text(dump_config(Resolved(config.model_copy(update={"data": data}), {})))
    (folder / ".env").write_text(f"WANDB_API_KEY={secret}\n")
    (folder / "id_ed25519").write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secret}\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(f"[remote]\n url = https://me:{secret}@host/x.git\n")


def call(folder: Path, secret: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`sftray` of somebody whose home and environment hold the secret."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n login user\n password {secret}\n")
    names = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY")
    environment = {**os.environ, "HOME": str(home), **dict.fromkeys(names, secret)}
    return subprocess.run(
        [sys.executable, "-m", "sftray.platform.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_after_a_run_secrets_are_where_they_were_and_nowhere_else(guarded: Guarded, tmp_path: Path) -> None:
    mine, bait = secrets.token_hex(20), secrets.token_hex(20)
    desk, store = tmp_path / "desk", tmp_path / "store"
    write_desk(desk, store, mine)
    say_aloud(guarded, bait)
    there = ("--address", guarded.head.dashboard)
    places: dict[str, Any] = {}
    said = [call(desk, mine, "submit", *there, "--no-wait", "--", "train", "run.yaml", "name=mine")]
    wait_until(lambda: (store / "mine" / "metrics.jsonl").exists(), 120)
    places |= {f"meanwhile {name}": content for name, content in guarded.read_state().items()}
    said.append(call(desk, mine, "logs", "mine", "-f", *there))
    said += [call(desk, mine, "status", "mine", *there, "--json"), call(desk, mine, "logs", "mine", *there)]
    said.append(call(desk, mine, "runs", "report", str(store / "mine")))
    assert [each.returncode for each in said] == [0] * 5, said
    assert read_events(store / "mine")[-1]["state"] == "finished"
    basic = {f"api:{guarded.secrets['WANDB_API_KEY']}"}
    shown = {base64.b64decode(each.removeprefix("Basic ")).decode() for each in guarded.shown_to_wandb}
    assert shown == basic, "the key of the cluster's processes is used, and no other"

    places |= {f"said {number}": f"{each.stdout}{each.stderr}".encode() for number, each in enumerate(said)}
    places |= guarded.read_state() | read_files(store) | read_files(guarded.folder)
    assert find_secrets(places, [mine, *guarded.secrets.values(), guarded.token]) == []
    found = {line.rpartition(": ")[0].rpartition("/")[2] for line in find_secrets(places, [bait])}
    expected = {"job-driver-loud.log", "", "jobs?detail=1&limit=1000"}  # a job's log; /api/jobs/; the state API
    assert expected <= found and any("job" in name and name.startswith("store") for name in found), found
    for name in ("/api/train/v2/runs/v1", "/api/jobs/sftray-mine", "said 3"):  # it looked where the run is
        assert b"mine" in places[name], name
    assert (store / "mine" / "report.html").exists() and any("runtime_resources" in name for name in places)


def say_aloud(guarded: Guarded, bait: str) -> None:
    """A job whose command and environment have what is searched for."""
    job = {"entrypoint": f"echo {bait}", "submission_id": "loud", "runtime_env": {"env_vars": {"LOUD": bait}}}
    body = json.dumps(job).encode()
    assert ask_http(f"{guarded.head.dashboard}/api/jobs/", guarded.token, "POST", body)[0] == 200
    wait_until(lambda: json.loads(guarded.ask("/api/jobs/loud"))["status"] == "SUCCEEDED", 60)
