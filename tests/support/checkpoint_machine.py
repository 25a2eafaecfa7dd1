"""A model of the processes of one run on the real protocol of checkpoints, attempts and clean-up.

They begin, save, prune, die after any single act, sleep in the middle of one while others act, and wake up too late;
files rot. Whatever happens, what was saved stays, but for what was spoiled on purpose.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from simulated_store import CrashError, Process, ShakenFolder, ShakenObjects

from sftray.train_fn import attempts, checkpoint, cleanup, resume
from sftray.train_fn.checkpoint import Checkpoint, Manifest, list_checkpoints, rank_by_loss, verify_in_store
from sftray.train_fn.errors import FencedError
from sftray.train_fn.store import Store

TICKS = st.none() | st.integers(1, 12)
PICK = st.integers(0, 7)
LOSS = st.none() | st.integers(1, 9).map(lambda tenths: tenths / 10)


def make_content(step: int, attempt: int, name: str) -> bytes:
    return f"{name} of step {step} by attempt {attempt}".encode()


class Attempt:
    """A process of the run, from its beginning on."""

    def __init__(self, open_store: Callable[[Process], Store]) -> None:
        self.process = Process()
        self.store = open_store(self.process)
        self.number, self.step = 0, 0
        self.trusted: set[str] = set()

    def begin(self) -> resume.Beginning:
        beginning = resume.begin_attempt(self.store, "run")
        self.number, self.step = beginning.attempt, beginning.start_step
        return beginning

    def commit(self, loss: float | None) -> None:
        self.step += 1
        manifest = Manifest(self.step, self.number, "config", "data", loss)
        self.trusted.add(checkpoint.commit_checkpoint(self.store, manifest, self._write).name)

    def _write(self, folder: Path) -> None:
        for name in ("weights", "state"):
            data = make_content(self.step, self.number, name)
            (folder / name).write_bytes(data[:5])
            self.process.tick()  # a crash here leaves half a file
            (folder / name).write_bytes(data)

    def prune(self, keep: int) -> None:
        cleanup.prune_checkpoints(self.store, self.number, keep, self.trusted)


class Protocol(RuleBasedStateMachine):
    """`begun`: number and start step of each attempt whose beginning has returned. `late`: checkpoints that were
    published when a newer attempt had its number, which may take them or not."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[Attempt] = []
        self.begun: list[tuple[int, int]] = []
        self.seen: set[str] = set()
        self.late: set[str] = set()
        self.floor, self.ceiling = 0, float("inf")
        self.fsync, os.fsync = os.fsync, lambda handle: None  # processes die here, not the machine
        self.open()
        self.truth = self.open_store(Process())

    def open(self) -> None:
        raise NotImplementedError

    def open_store(self, process: Process) -> Store:
        raise NotImplementedError

    def spoil(self, path: str, change: Callable[[bytes], bytes | None]) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        for attempt in self.attempts:
            attempt.process.kill()
        os.fsync = self.fsync

    # What processes do.

    def go(self, attempt: Attempt, ticks: int | None) -> None:
        attempt.process.go(ticks)
        error = attempt.process.error
        if isinstance(error, CrashError | FencedError):
            attempt.process.is_dead = True
        elif error is not None:
            raise error
        self.attempts = [each for each in self.attempts if not each.process.is_dead]

    def choose(self, pick: int, busy: bool) -> Attempt | None:
        found = [each for each in self.attempts if each.process.is_busy == busy and (busy or each.number)]
        return found[-1 - pick % len(found)] if found else None

    @precondition(lambda self: len(self.attempts) < 3)
    @rule(ticks=TICKS)
    def one_begins(self, ticks: int | None) -> None:
        attempt = Attempt(self.open_store)
        self.attempts.append(attempt)

        def act() -> None:
            beginning = attempt.begin()
            self.begun.append((beginning.attempt, beginning.start_step))

        attempt.process.start(act)
        self.go(attempt, ticks)

    @precondition(lambda self: self.choose(0, busy=False))
    @rule(loss=LOSS)
    def the_newest_commits(self, loss: float | None) -> None:
        self.one_commits(0, loss, None)

    @precondition(lambda self: self.choose(0, busy=False))
    @rule(pick=PICK, loss=LOSS, ticks=TICKS)
    def one_commits(self, pick: int, loss: float | None, ticks: int | None) -> None:
        if attempt := self.choose(pick, busy=False):
            attempt.process.start(lambda: attempt.commit(loss))
            self.go(attempt, ticks)

    @precondition(lambda self: self.choose(0, busy=False))
    @rule(pick=PICK, keep=st.integers(1, 2), ticks=TICKS)
    def one_prunes(self, pick: int, keep: int, ticks: int | None) -> None:
        if attempt := self.choose(pick, busy=False):
            attempt.process.start(lambda: attempt.prune(keep))
            self.go(attempt, ticks)

    @precondition(lambda self: self.choose(0, busy=True))
    @rule(pick=PICK, ticks=TICKS)
    def one_goes_on(self, pick: int, ticks: int | None) -> None:
        if attempt := self.choose(pick, busy=True):
            self.go(attempt, ticks)

    @precondition(lambda self: len(self.attempts) > 2)
    @rule(pick=PICK)
    def one_dies(self, pick: int) -> None:
        attempt = self.attempts.pop(pick % len(self.attempts))
        attempt.process.kill()

    @precondition(lambda self: self.seen and not self.choose(0, busy=True))
    @rule(pick=PICK, name=st.sampled_from(["weights", "state", "MANIFEST.json"]), kind=st.sampled_from("fta"))
    def a_file_rots(self, pick: int, name: str, kind: str) -> None:
        """Flipped, truncated or absent, while nobody is in the middle of something. Who has compared the hashes of a
        checkpoint does not do so again, so of this one nobody has."""
        found = list_checkpoints(self.truth)
        if not found:
            return
        chosen = found[-1 - pick % len(found)]
        changes: dict[str, Callable[[bytes], bytes | None]] = {
            "f": lambda data: bytes([data[0] ^ 1]) + data[1:],
            "t": lambda data: data[:-1],
            "a": lambda data: None,
        }
        self.spoil(f"checkpoints/{chosen.name}/{name}", changes[kind])
        for attempt in self.attempts:
            attempt.trusted.discard(chosen.name)
        self.floor, self.ceiling = self.measure(self.find_whole())

    # What must hold.

    def find_whole(self) -> list[Checkpoint]:
        return [c for c in list_checkpoints(self.truth) if not verify_in_store(self.truth, c)]

    def measure(self, whole: list[Checkpoint]) -> tuple[int, float]:
        """The step of the newest whole checkpoint, and the lowest loss of one, late ones aside."""
        counted = [c for c in whole if c.name not in self.late]
        best = rank_by_loss(counted)
        return max((c.step for c in counted), default=0), best[0].manifest.val_loss or 0 if best else float("inf")

    @invariant()
    def nothing_is_lost_and_nothing_wrong_is_resumed(self) -> None:
        whole = self.find_whole()
        newest_attempt = attempts.find_newest_attempt(self.truth)
        new = {c.name for c in whole if c.manifest.attempt < newest_attempt} - self.seen
        self.seen |= {c.name for c in whole}
        self.late |= new
        self.late -= {c.name for c in whole if any(n > c.manifest.attempt and s == c.step for n, s in self.begun)}
        step, loss = self.measure(whole)
        assert step >= self.floor, "the newest whole checkpoint has gone back"
        assert loss <= self.ceiling, "the best whole checkpoint is gone"
        self.floor, self.ceiling = step, loss
        if whole:
            newest = whole[-1]
            number = newest.manifest.attempt
            for name in ("weights", "state"):
                found = self.truth.read(f"checkpoints/{newest.name}/{name}")
                assert found == make_content(newest.step, number, name), "the resume point is not what was saved"
            overtaken = [n for n, start in self.begun if n > number and start < newest.step]
            assert not overtaken, "the resume point is fenced"


class FolderProtocol(Protocol):
    def open(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="protocol-"))

    def open_store(self, process: Process) -> Store:
        return ShakenFolder(self.root, process)

    def spoil(self, path: str, change: Callable[[bytes], bytes | None]) -> None:
        if (self.root / path).exists():
            data = change((self.root / path).read_bytes())
            (self.root / path).unlink() if data is None else (self.root / path).write_bytes(data)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.root)


class ObjectProtocol(Protocol):
    def open(self) -> None:
        self.objects: dict[str, bytes] = {}

    def open_store(self, process: Process) -> Store:
        return ShakenObjects(self.objects, process)

    def spoil(self, path: str, change: Callable[[bytes], bytes | None]) -> None:
        if path in self.objects:
            data = change(self.objects.pop(path))
            if data is not None:
                self.objects[path] = data


MACHINES: dict[str, type[Protocol]] = {"folder": FolderProtocol, "objects": ObjectProtocol}


def run_machine(kind: str, examples: int, steps: int, derandomize: bool = True) -> None:
    """Without shrinking: what is found is read from its steps."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        MACHINES[kind],
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
