"""The process that speaks to W&B for a run: `python -m sftray.platform.wandb_process`.

wandb starts a server, changes sys.exit and sys.excepthook, prints, and waits in an exit hook for as long as
the network does (measured: 17 s after its start has failed). All of that stays in here, and ends with it.

Standard input, one JSON value a line: the job, then rows, then a number, the exit code of the run. The job is
`init`, arguments of wandb.init, and `finish_seconds`: from the input's end on, the process lasts no longer, and
what is not uploaded by then stays on the disk. An end without a number: the parent is dead.
Standard output: a Report as JSON.
"""

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TextIO

INIT_SECONDS = 20.0

_PARENT_DIED = 1
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": INIT_SECONDS,
    # Nothing of this machine, its environment or its code is sent; nor of its load, which is not the workers'.
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    # Seconds. By default rows of the last 15 are lost where uploads hang and the process is ended.
    "x_transaction_log_flush_interval": 0.5,
}


@dataclass
class Report:
    """What became of the rows. `folder` is wandb's own of this run, `url` its page if it is online."""

    mirrored: int = 0
    finished: bool = False
    folder: str | None = None
    url: str | None = None
    error: str | None = None


class _Reporter:
    """Context manager: whatever happens, one report is written before the process ends."""

    def __init__(self, stream: TextIO) -> None:
        self.report = Report()
        self._stream = stream
        self._lock = threading.Lock()  # never released: the first to report ends the process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.report.finished = True
        else:
            traceback.print_exception(error)
            self.report.error = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        self.leave()

    def leave(self) -> None:
        """Report and end the process, past wandb's exit hook."""
        self._lock.acquire()
        try:
            json.dump(asdict(self.report), self._stream)
            self._stream.flush()
        finally:  # also where the parent is dead, and nobody reads it
            os._exit(0 if self.report.finished else 1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # W&B's stop button sends one; the run is not W&B's to stop
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints goes where errors go
    job = json.loads(sys.stdin.readline())
    with _Reporter(replies) as reporter:
        rows: SimpleQueue[dict[str, Any] | int] = SimpleQueue()
        threading.Thread(target=_read_rows, args=(rows, reporter, job["finish_seconds"]), daemon=True).start()
        run = _start_run(job["init"])
        reporter.report.folder, reporter.report.url = os.path.dirname(run.dir), run.url
        while isinstance(row := rows.get(), dict):
            run.log(_convert(row))
            reporter.report.mirrored += 1
        run.finish(exit_code=row)


def _read_rows(rows: SimpleQueue[dict[str, Any] | int], reporter: _Reporter, finish_seconds: float) -> None:
    """Take rows as they come, also while W&B is slow, so that the end is seen in time."""
    last: dict[str, Any] | int = {}
    for line in sys.stdin:
        if line.endswith("\n"):  # else it is what a parent had written when it was killed
            last = json.loads(line)
            rows.put(last)
    if isinstance(last, dict):
        rows.put(_PARENT_DIED)
    limit = threading.Timer(finish_seconds, reporter.leave)
    limit.daemon = True
    limit.start()


def _start_run(init: dict[str, Any]) -> Any:
    import wandb

    run = wandb.init(**init, resume="allow", allow_val_change=True, settings=wandb.Settings(**_SETTINGS))
    # Charts go by our step. W&B's own counts rows: a step that is logged again after a resume would be refused.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _convert(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl as W&B takes it: not-a-number as a number, its time as W&B's own."""
    numbers = {
        key: float(value) if isinstance(value, str) else value for key, value in row.items() if key != "ledger"
    }
    if "time" in numbers:
        numbers["_timestamp"] = numbers.pop("time")
    return numbers


if __name__ == "__main__":
    main()
