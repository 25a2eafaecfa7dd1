"""Weights & Biases as a mirror of a run. W&B may be down, slow or broken: the run goes on unchanged.

Rows go through a bounded queue to a thread, and from it to a process that alone loads wandb. What does not
get through is counted, and the run's own metrics.jsonl has all of it.
"""

import contextlib
import json
import logging
import os
import queue
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sftray.platform.wandb_process import Report
from sftray.train_fn.config import TrackingConfig
from sftray.train_fn.errors import StoreError
from sftray.train_fn.local_copies import upload_folder
from sftray.train_fn.places import find_bucket, write_whole

Row = Mapping[str, Any]

QUEUE_ROWS = 10_000
# What W&B gets at the end of a run, to upload what is left. More than _MARGIN_SECONDS late, its process is killed.
CLOSE_SECONDS = 5.0
_MARGIN_SECONDS = 1.0
_LOOK_SECONDS = 1.0  # how often the process is looked at where no row comes
FOLDER, LOG = "wandb", "mirror.log"

_logger = logging.getLogger(__name__)


def build_wandb_mirror(
    config: TrackingConfig,
    run_dir: Path,
    run_name: str,
    run_config: Mapping[str, Any],
    group: str | None = None,
    tell: Callable[[str], None] = _logger.warning,
    close_seconds: float = CLOSE_SECONDS,
) -> "WandbMirror | None":
    """The W&B mirror of a run, or None if it is disabled. Nothing starts before the first row.

    Args:
        run_config: the resolved config as JSON values; W&B shows all of it.
        group: runs of one sweep share it.
        tell: takes one line on what became of the rows when the mirror closes, and one if it fails before that.
        close_seconds: what W&B gets at the end of the run; closing takes 2 s longer at most.
    """
    if config.wandb == "disabled":
        return None
    init = {
        "mode": config.wandb,
        "project": config.project,
        "entity": config.entity,
        "tags": config.tags,
        "name": run_name,
        "group": group,
        "config": dict(run_config),
    }
    return WandbMirror(init, run_dir, tell, close_seconds)


class WandbMirror:
    """Hands rows to the process. Built by `build_wandb_mirror`."""

    def __init__(
        self, init: dict[str, Any], run_dir: Path, tell: Callable[[str], None], close_seconds: float
    ) -> None:
        self._init = init
        self._run_dir = run_dir.absolute()
        # wandb writes on a disk only; what belongs in a bucket is put there at the end.
        self._local = Path(tempfile.mkdtemp(prefix="sftray-wandb-")) if find_bucket(run_dir) else self._run_dir
        self._tell = tell
        self._close_seconds = close_seconds
        self._queue: queue.Queue[Row | int] = queue.Queue(QUEUE_ROWS)
        self._thread = threading.Thread(target=self._feed, name="wandb-mirror", daemon=True)
        self._process: subprocess.Popen[str] | None = None
        self._given = 0  # rows
        self._closing = False
        self._report = Report(error="its process gave no answer")

    def on_metrics(self, row: Row) -> None:
        if not self._given:
            self._thread.start()
        self._given += 1
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(row)

    @property
    def rows(self) -> tuple[int, int]:
        """How many W&B has, once it is closed, and how many it was given."""
        return self._report.mirrored, self._given

    def on_event(self, row: Row) -> None:
        pass  # W&B has no place for them

    def close(self, state: str) -> None:
        """Wait for W&B, for a bounded time, and tell what became of the rows."""
        if not self._given:
            return
        self._closing = True
        deadline = time.monotonic() + self._close_seconds + _MARGIN_SECONDS
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(0 if state == "finished" else 1, timeout=self._close_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join(_MARGIN_SECONDS)
        self._tell(f"W&B: {self._describe()}")
        self._move_to_bucket()

    def _move_to_bucket(self) -> None:
        if (there := find_bucket(self._run_dir)) is None:
            return
        try:
            upload_folder(self._local / FOLDER, there / FOLDER)
        except StoreError as error:
            self._tell(f"W&B: its files stay at {self._local} ({error.problems[0].what})")
        else:
            shutil.rmtree(self._local, ignore_errors=True)

    def _feed(self) -> None:
        """The thread: start the process, write rows to it until the end or its death, take its report."""
        try:
            run_id = load_run_id(self._run_dir)
            (self._local / FOLDER).mkdir(exist_ok=True)
            self._process = _start_process(self._local / FOLDER / LOG)
        except OSError as error:
            self._report = Report(error=f"{error.filename}: {error.strerror}")
            return
        with self._process as process:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and its report says why
                self._write_rows(process, run_id)
            answer = process.stdout.read() if process.stdout else ""
        if answer:
            self._report = Report(**json.loads(answer))
        if not self._closing:
            self._tell(f"W&B: the mirror is off, and the run goes on ({self._report.error})")

    def _write_rows(self, process: "subprocess.Popen[str]", run_id: str) -> None:
        assert process.stdin is not None  # it is a pipe
        init = {**self._init, "id": run_id, "dir": str(self._local)}
        with process.stdin as pipe:
            item: Row | int = {"init": init, "finish_seconds": self._close_seconds}
            pipe.write(json.dumps(item) + "\n")
            while not isinstance(item, int) and process.poll() is None:
                with contextlib.suppress(queue.Empty):
                    item = self._queue.get(timeout=_LOOK_SECONDS)
                    pipe.write(json.dumps(item) + "\n")
                    pipe.flush()

    def _describe(self) -> str:
        report, dropped = self._report, self._given - self._report.mirrored
        sync = f"wandb sync {shlex.quote(str(report.folder))}"
        if report.folder and find_bucket(self._run_dir) is not None:
            sync = f"fetch {self._run_dir / FOLDER / os.path.basename(report.folder)}, and wandb sync it"
        if dropped or report.error:
            why = report.error or f"it was not ready within {self._close_seconds:g} s"
            kept = f"; to upload those kept: {sync}" if report.mirrored else ""
            log = self._local / FOLDER / LOG
            return f"{report.mirrored} rows mirrored, {dropped} dropped ({why}){kept}; details: {log}"
        if not report.finished:
            kept = f"not all uploaded within {self._close_seconds:g} s; to upload the rest: {sync}"
            return f"{report.mirrored} rows mirrored, {kept}"
        return f"{report.mirrored} rows mirrored{f' to {report.url}' if report.url else f'; to upload them: {sync}'}"


def load_run_id(run_dir: Path) -> str:
    """W&B's id of the run, made at the first call and kept in the run's directory: a resumed run goes on in it."""
    path = run_dir / FOLDER / "run-id"
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    if known:
        return known
    made = f"{run_dir.name}-{secrets.token_hex(4)}"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, made)
    return made


def _start_process(log: Path) -> "subprocess.Popen[str]":
    """Start it with its errors, and whatever wandb prints, going to `log`.

    In a session of its own, so that Ctrl-C in the terminal does not reach it; when this process dies, it ends.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # a job's code may be staged there alone
        "WANDB_ERROR_REPORTING": "false",
    }
    environment.pop("WANDB_SERVICE", None)  # a server that another wandb here has started
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "sftray.platform.wandb_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            text=True,
        )
