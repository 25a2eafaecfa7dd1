"""Two attempts at one run, one of which falls asleep, at every moment of what they do."""

from checkpoint_machine import MACHINES, Protocol


def hand_over_at_every_moment(kind: str) -> None:
    """One attempt sleeps at any act of a save, and another while it begins; the first ends its save and prunes, and
    then the other goes on."""
    for asleep_at in range(1, 14):
        for taken_at in range(1, 18):
            machine = MACHINES[kind]()
            try:
                hand_over(machine, asleep_at, taken_at)
            finally:
                machine.teardown()


def hand_over(machine: Protocol, asleep_at: int, taken_at: int) -> None:
    look = machine.nothing_is_lost_and_nothing_wrong_is_resumed
    machine.one_begins(None)
    machine.the_newest_commits(None)
    look()
    (older,) = machine.attempts
    machine.one_commits(0, None, asleep_at)
    look()
    machine.one_begins(taken_at)
    look()
    machine.go(older, None)
    look()
    if not older.process.is_dead:
        older.process.start(lambda: older.prune(1))
        machine.go(older, None)
        look()
    for attempt in list(machine.attempts):
        machine.go(attempt, None)
    look()


def clear_at_every_moment(kind: str) -> None:
    """What is left of a checkpoint is cleared away by an attempt that falls asleep over it, and then by another, that
    saves this very step anew; then the first wakes up."""
    for asleep_at in range(1, 25):
        machine = MACHINES[kind]()
        look = machine.nothing_is_lost_and_nothing_wrong_is_resumed
        try:
            machine.one_begins(None)
            machine.the_newest_commits(None)
            machine.a_file_rots(0, "MANIFEST.json", "a")
            machine.one_begins(asleep_at)
            (*_, sleeper) = machine.attempts
            machine.one_begins(None)
            machine.one_commits(0, 0.5, None)
            look()
            machine.go(sleeper, None)
            look()
        finally:
            machine.teardown()
