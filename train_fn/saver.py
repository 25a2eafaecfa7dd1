"""Checkpoints written by a thread while training goes on, one at a time."""

import threading
import time
from collections.abc import Callable

from sftray.train_fn.checkpoint import Checkpoint
from sftray.train_fn.errors import StoreError

PATIENCE_S = 1800.0  # so long a save is tried again while the store refuses, before the run ends
_LONGEST_WAIT_S = 30.0


class Saver:
    """At most one save is in flight: the next one waits for it, so that a store that is down pauses the run.

    A save that the store refuses is tried again, with longer and longer waits.

    Args:
        tell: called, in the thread, with the error of a save that is going to be tried again, and the seconds until
            then; and with None once it has succeeded after all.
        patience: seconds that a save may be tried for.
        first_wait: seconds until a save is tried the second time.
    """

    def __init__(
        self,
        tell: Callable[[StoreError | None, float], None],
        patience: float = PATIENCE_S,
        first_wait: float = 1.0,
    ) -> None:
        self._tell, self._patience, self._first_wait = tell, patience, first_wait
        self._thread: threading.Thread | None = None
        self._saved: Checkpoint | None = None
        self._error: BaseException | None = None
        self._hurry = threading.Event()

    def start(self, save: Callable[[], Checkpoint]) -> None:
        """Begin a save. What was saved before must have been taken."""
        assert self._thread is None
        assert self._saved is None
        self._thread = threading.Thread(target=self._run, args=(save,), name="checkpoint", daemon=True)
        self._thread.start()

    def take_saved(self, hurry: bool = False) -> Checkpoint | None:
        """What has been saved since the last call; waits for a save in flight.

        Args:
            hurry: a refused save is tried once more, at once, and given up.

        Raises:
            UserError: what ended the save.
        """
        if self._thread is None:
            return None
        if hurry:
            self._hurry.set()
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        saved, self._saved = self._saved, None
        return saved

    def has_saved(self) -> bool:
        """Whether a save has ended, well or not, since the last was taken: it is time to `take_saved`."""
        return self._thread is not None and not self._thread.is_alive()

    def _run(self, save: Callable[[], Checkpoint]) -> None:
        try:
            self._saved = self._try(save)
        except BaseException as error:  # handed to the thread that waits
            self._error = error

    def _try(self, save: Callable[[], Checkpoint]) -> Checkpoint:
        started, pause, refused = time.monotonic(), self._first_wait, False
        while True:
            last = self._hurry.is_set() or time.monotonic() - started >= self._patience
            try:
                saved = save()
            except StoreError as error:
                if last:
                    raise
                refused = True
                self._tell(error, pause)
            else:
                if refused:
                    self._tell(None, 0.0)
                return saved
            self._hurry.wait(pause)
            pause = min(pause * 2, _LONGEST_WAIT_S)
