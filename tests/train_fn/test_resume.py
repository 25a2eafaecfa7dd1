"""Where an attempt begins: its number, the newest whole checkpoint, and what is set aside on the way there."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fault_proxy import Faults, run_proxy
from outcomes import Outcome, record
from s3_server import make_place
from tiny import build_model, build_tokenizer, build_trainer

from sftray.train_fn.attempts import is_fenced, name_record, open_attempt, read_record
from sftray.train_fn.checkpoint import (
    BROKEN,
    MANIFEST,
    Checkpoint,
    Manifest,
    commit_checkpoint,
    find_best,
    find_newest,
    list_checkpoints,
    verify_checkpoint,
)
from sftray.train_fn.cleanup import prune_checkpoints
from sftray.train_fn.errors import FencedError, StoreError
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.patience import Patience
from sftray.train_fn.resume import adopt_checkpoint, begin_attempt
from sftray.train_fn.snapshot import take_snapshot, write_snapshot
from sftray.train_fn.store import Store, connect_store

QUICK = Patience(tries=8, first_s=0.001, longest_s=0.01)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return connect_store(tmp_path / "alpha")
    return connect_store(make_place(request.getfixturevalue("s3_endpoint")), QUICK)


def write(folder: Path) -> None:
    (folder / "trainer").mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 8)
    (folder / "trainer" / "state.json").write_text("{}")


def commit(store: Store, step: int, attempt: int = 1, loss: float | None = None) -> Checkpoint:
    return commit_checkpoint(store, Manifest(step, attempt, "config", "data", loss), write)


def test_the_first_attempt_begins_at_nothing(store: Store) -> None:
    beginning = begin_attempt(store, "alpha", owner=3)
    assert (beginning.attempt, beginning.newest, beginning.broken, beginning.start_step) == (1, None, (), 0)
    record = read_record(store, name_record("attempt-", 1)) or {}
    assert {key: record[key] for key in ("run", "attempt", "owner", "start_step")} == {
        **{"run": "alpha", "attempt": 1, "owner": 3, "start_step": 0}
    }


@pytest.mark.slow
def test_a_later_attempt_goes_on_from_the_newest_checkpoint(store: Store) -> None:
    assert begin_attempt(store, "alpha").attempt == 1
    for step in (10, 20):
        commit(store, step)
    beginning = begin_attempt(store, "alpha")
    assert beginning.attempt == 2 and beginning.newest is not None and beginning.start_step == 20
    assert verify_checkpoint(beginning.newest) == [], "its files are on this machine"
    assert begin_attempt(store, "alpha", least=7).attempt == 7 and open_attempt(store, "alpha") == 8


@pytest.mark.parametrize(
    ("step", "attempt", "starts", "fenced"),
    [
        (30, 1, {}, False),
        (30, 1, {2: 30}, False),
        (31, 1, {2: 30}, True),
        (31, 2, {2: 30}, False),
        (31, 1, {2: 40, 3: 30}, True),
        (31, 3, {2: 0}, False),
    ],
)
def test_a_checkpoint_beyond_a_newer_start_is_fenced(
    step: int, attempt: int, starts: dict[int, int], fenced: bool
) -> None:
    assert is_fenced(step, attempt, starts) == fenced


@pytest.mark.slow
def test_an_older_attempt_neither_commits_nor_deletes(store: Store) -> None:
    begin_attempt(store, "alpha")
    for step in (10, 20, 30):
        commit(store, step)
    begin_attempt(store, "alpha")
    with pytest.raises(FencedError, match="attempt 2 has taken over the run") as caught:
        commit(store, 40)
    assert caught.value.exit_code == 75
    assert prune_checkpoints(store, attempt=1, keep=1) == []
    assert [c.step for c in list_checkpoints(store)] == [10, 20, 30]
    assert prune_checkpoints(store, attempt=2, keep=1) == ["step-000010", "step-000020"]
    saw = "attempt 2 has taken over the run; exit 75"
    record(Outcome("owners", "an attempt that was taken for dead comes back, saves and deletes", 1, saw, 1))


@pytest.mark.slow
def test_what_slips_through_is_ignored_and_cleaned_up(store: Store) -> None:
    begin_attempt(store, "alpha")
    commit(store, 10)
    store.delete("leases/attempt-000001.json")
    late = commit(store, 20, attempt=1, loss=0.1)
    assert begin_attempt(store, "alpha", least=2).start_step == 20
    store.write(name_record("attempt-", 3), json.dumps({"attempt": 3, "start_step": 10}).encode())
    assert [c.step for c in list_checkpoints(store)] == [10] and find_best(store) is None
    newest = find_newest(store)
    assert newest is not None and newest.step == 10
    assert prune_checkpoints(store, attempt=3, keep=2) == [late.name]
    assert not store.list_files(f"{CHECKPOINTS}/{late.name}")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "manifest"])
def test_what_is_broken_is_set_aside_and_named(damage: str, store: Store) -> None:
    for step in (10, 20, 30):
        commit(store, step)
    path = f"{CHECKPOINTS}/step-000030/weights"
    manifest = f"{CHECKPOINTS}/step-000030/{MANIFEST}"
    wrong = {
        "missing": "weights is missing",
        "short": "weights has 5 bytes, not 2048",
        "flipped": "weights does not have the hash of its manifest",
        "manifest": "its manifest is not what was written",
    }[damage]
    match damage:
        case "missing":
            store.delete(path)
        case "short":
            store.write(path, b"short")
        case "flipped":
            store.write(path, bytes(2048))
        case _:
            store.write(manifest, (store.read(manifest) or b"")[:-9])
    beginning = begin_attempt(store, "alpha")
    assert beginning.start_step == 20 and beginning.broken == (("step-000030", wrong),)
    assert store.read(manifest) is None
    assert json.loads(store.read(f"{CHECKPOINTS}/step-000030/{BROKEN}") or b"") == {"wrong": [wrong]}
    assert begin_attempt(store, "alpha").broken == (), "it is said once"
    assert commit(store, 30, attempt=2).name == "step-000030-attempt-2"
    prune_checkpoints(store, attempt=2, keep=1)
    assert BROKEN in store.list_files(f"{CHECKPOINTS}/step-000030"), "it is kept for who wants to see it"


@pytest.mark.slow
def test_clean_up_keeps_what_is_whole(store: Store) -> None:
    for step, loss in ((10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4)):
        commit(store, step, loss=loss)
    for name in ("step-000040", "step-000010"):
        store.write(f"{CHECKPOINTS}/{name}/weights", bytes(2048))
    assert prune_checkpoints(store, attempt=1, keep=1) == ["step-000010"]
    assert [c.step for c in list_checkpoints(store)] == [20, 30, 40]


def test_clean_up_with_nothing_whole_deletes_nothing(store: Store) -> None:
    for step in (10, 20):
        commit(store, step)
        store.delete(f"{CHECKPOINTS}/step-{step:06d}/weights")
    assert prune_checkpoints(store, attempt=1, keep=1) == [] and len(list_checkpoints(store)) == 2


def test_half_a_deletion_is_ended_by_the_next_attempt(store: Store) -> None:
    begin_attempt(store, "alpha")
    for step in (10, 20):
        commit(store, step)
    store.delete(f"{CHECKPOINTS}/step-000010/{MANIFEST}")
    assert begin_attempt(store, "alpha").start_step == 20
    assert store.list_folders(CHECKPOINTS) == ["step-000020"]


@pytest.mark.slow
def test_a_store_that_cannot_be_read_breaks_nothing(s3_endpoint: str) -> None:
    """A checkpoint is called broken for what it is, and never for what the network does."""
    with run_proxy(s3_endpoint) as proxy:
        store = connect_store(make_place(s3_endpoint, proxy.address), Patience(2, 0.001))
        commit(store, 10)
        proxy.faults = Faults(error_rate=1.0, seed=2)
        for _ in range(5):
            with pytest.raises(StoreError):
                begin_attempt(store, "alpha")
        proxy.faults = Faults()
        beginning = begin_attempt(store, "alpha")
    assert beginning.start_step == 10 and not beginning.broken


@pytest.mark.slow
def test_a_run_is_saved_and_resumed_through_a_bad_network(s3_endpoint: str) -> None:
    with run_proxy(s3_endpoint) as proxy:
        store = connect_store(make_place(s3_endpoint, proxy.address), QUICK)
        proxy.faults = Faults(error_rate=0.2, seed=5)
        for attempt in range(1, 5):
            beginning = begin_attempt(store, "alpha")
            assert (beginning.attempt, beginning.start_step, beginning.broken) == (attempt, 10 * (attempt - 1), ())
            commit(store, 10 * attempt, attempt)
            prune_checkpoints(store, attempt, keep=1)
        assert [c.step for c in list_checkpoints(store)] == [40]
        assert proxy.counts["before"] + proxy.counts["after"] > 10


def test_a_checkpoint_of_another_run_is_adopted_whole_or_not_at_all(tmp_path: Path) -> None:
    donor, own = (connect_store(tmp_path / name) for name in ("donor", "own"))
    given = commit(donor, 20, attempt=4, loss=0.5)
    for step in (10, 20, 30):
        commit(own, step, loss=0.1)
    root = tmp_path / "own" / CHECKPOINTS
    adopted = adopt_checkpoint(given, given.folder.parent, root, "own", least=2)
    assert adopted is not None and adopted.manifest.attempt == 2 and verify_checkpoint(adopted) == []
    assert list_checkpoints(own) == [adopted] and adopted.manifest.val_loss == 0.5
    assert begin_attempt(own, "own").newest == adopted
    (given.folder / "weights").write_bytes(b"")
    assert adopt_checkpoint(given, given.folder.parent, root, "own", least=2) is None and list_checkpoints(own) == [
        adopted
    ]
    assert not list((tmp_path / "own").glob(".adopting-*"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of a small model, of steps 1 and 2."""
    trainer = build_trainer(build_model())
    folder = tmp_path_factory.mktemp("real") / "alpha"
    for step in (1, 2):
        snapshot = take_snapshot(trainer, {"step": step}, {})
        commit_checkpoint(
            folder / CHECKPOINTS,
            Manifest(step, 1, "config", "data"),
            lambda to, snapshot=snapshot: write_snapshot(to, snapshot, trainer.model, build_tokenizer()),
        )
    return folder


def spoil(path: Path, kind: str, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    match kind:
        case "flipped":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
        case "truncated":
            path.write_bytes(data[: draw.randrange(len(data))])
        case _:
            path.unlink()


@pytest.mark.parametrize("times", [60, pytest.param(2000, marks=pytest.mark.chaos)])
def test_no_damage_to_a_real_checkpoint_goes_unseen(times: int, real: Path, tmp_path: Path) -> None:
    draw, seen = random.Random(times), Counter[str]()
    files = sorted(path for path in (real / CHECKPOINTS / "step-000002").rglob("*") if path.is_file())
    assert len(files) > 5
    store = connect_store(real)
    for number in range(times):
        path, kind = draw.choice(files), draw.choice(["flipped", "truncated", "deleted"])
        kept = tmp_path / "kept"
        shutil.copy2(path, kept)
        spoil(path, kind, draw)
        newest = find_newest(store)
        assert newest is not None and newest.step == 1, (number, path.name, kind)
        seen[kind] += 1
        shutil.copy2(kept, path)
    assert sum(seen.values()) == times and min(seen.values()) > times / 5
    for kind, count in seen.items():
        saw = "named and set aside; the one before is taken"
        record(Outcome("files", f"a file of a checkpoint {kind}, at random", count, saw, count))
    newest = find_newest(store)
    assert newest is not None and newest.step == 2
