"""What wandb did: the rows in its files, its processes; and servers for it to talk to."""

import http.server
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import has_ended, list_processes
from waiting import wait_until
from wandb.proto.wandb_internal_pb2 import Record


def read_records(run_dir: Path) -> list[Record]:
    """What wandb wrote, of all its runs, oldest first: LevelDB's log format with records of its own."""
    records = []
    for path in sorted(run_dir.glob("wandb/*run-*/*.wandb"), key=os.path.getmtime):
        data, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if (left := 32768 - position % 32768) < 7:  # a block's end too short for a header
                position += left
                continue
            _, size, kind = struct.unpack_from("<IHB", data, position)
            parts += data[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                records.append(Record.FromString(parts))
                parts = b""
    return records


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in read_records(run_dir)
        if record.HasField("history")
    ]


def find_offspring(parent: int) -> list[int]:
    """The mirror's process, and the server that wandb has it start: those that run by now."""
    processes = list(list_processes())
    own = [process.pid for process in processes if process.parent == parent and "wandb_process" in process.command]
    return own + [process.pid for process in processes if process.parent in own and "wandb-core" in process.command]


def wait_for_offspring(parent: int) -> list[int]:
    wait_until(lambda: len(find_offspring(parent)) == 2)
    return find_offspring(parent)


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: all(has_ended(pid) for pid in pids), seconds=5.0)


@contextmanager
def serve_silence() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"  # the kernel takes them


class Backend(http.server.BaseHTTPRequestHandler):
    """As much of W&B's backend as a run needs. `uploads` waits for ever where `stuck` is set."""

    protocol_version = "HTTP/1.1"
    stuck: threading.Event | None = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":
            if self.stuck is None:
                return self.answer({})
            self.stuck.wait(60)
            self.close_connection = True
            return None
        request = json.loads(body)
        entity = {"id": "e", "name": "me"}
        bucket = {"id": "cnVu", "name": request["variables"].get("name"), "displayName": "d", "config": "{}"}
        project = {"id": "p", "name": "sftray", "entity": entity}
        answers: dict[str, Any] = {
            "RunResumeStatus": {"model": {"id": "p", "name": "sftray", "entity": entity, "bucket": None}},
            "UpsertBucket": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}},
            "CreateRunFiles": {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": []}},
        }
        return self.answer({"data": answers.get(request["operationName"], {})})

    def answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve_backend(handler: type[Backend]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        if handler.stuck is not None:
            handler.stuck.set()
        server.shutdown()
