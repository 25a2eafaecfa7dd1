"""Errors a person can act on: what is wrong, where, why, and how to mend it.

One error carries every problem of its pass, so that a person mends them together. The class says the
exit code of the command. All of them survive pickling, so a worker may raise them.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `where` is `file:line` or `file:line:byte`; None if no file is at fault."""

    what: str
    where: str | None = None
    why: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [f"error  {head}"]
        if self.why:
            lines.append(f"  why  {self.why}")
        if self.fix:
            lines.append(f"  fix  {self.fix}")
        return "\n".join(lines)


class UserError(Exception):
    """What the person, the data or the machine caused; shown without a traceback."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(UserError):
    """Usage, config, or a name that is taken."""


class DataError(UserError):
    exit_code = 3


class StoreError(UserError):
    exit_code = 4


class ClusterError(UserError):
    exit_code = 5


class DivergedError(UserError):
    exit_code = 6


class CheckpointError(UserError):
    exit_code = 7


class StoppedError(UserError):
    """Stopped at a saved step; resuming continues it."""

    exit_code = 75


class BugError(UserError):
    """A worker failed by a mistake of sftray or of the model; the problem names the file with the traceback."""

    exit_code = 70


class FencedError(StoppedError):
    """A newer attempt, or another owner, has taken over the run; this one must not write any more."""
