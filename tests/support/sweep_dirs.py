"""Whole directories of sweeps as the driver and the workers of its trials leave them."""

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from run_dirs import CONFIG_TEXT, add_answers, log_step, write_checkpoint, write_lines, write_run

from sftray.platform.sweep_files import BASE, LEDGER, Point, SweepSettings, TrialRecord, add_trial, save_settings
from sftray.train_fn.config_file import dump_config, load_config
from sftray.train_fn.journal import EVENTS, Journal, read_lines

STEPS = 40  # of a whole trial; `log_step` counts progress in them
EVALUATIONS = [count / 8 for count in range(1, 9)]
RUNGS = [0.25, 0.5]
STARTED = 1_750_000_000.0  # Unix seconds
KEYS = ("optim.learning_rate", "train.gradient_accumulation_steps")
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB"

Scheduler = Literal["asha", "pbt", "none"]
Fates = Mapping[int, str]


def write_sweep(
    store: Path,
    name: str = "sweep",
    trials: int = 8,
    repeats: int = 0,
    scheduler: Scheduler = "asha",
    fates: Fates | None = None,
) -> Path:
    """A sweep that has ended: `trials` trials and, of its two best, `repeats` more seeds each.

    From four trials on, one fails at step 10; under asha the worse half is pruned at either rung, under pbt the
    worst trial takes over the best one at 0.5. `fates` says of some trials that they shall end otherwise: a state,
    where `pruned` is at the first rung and `failed` at step 10.
    """
    folder = store / name
    folder.mkdir(parents=True)
    points = [plan_point(number) for number in range(trials)]
    ends = {**plan_ends(points, scheduler), **{n: _place(state) for n, state in (fates or {}).items()}}
    _write_head(folder, build_settings(name, trials, repeats, scheduler))
    journal = Journal(folder)
    journal.add_event("starting", 0, f"{trials} trials")
    journal.add_event("running", 1)
    for number, point in enumerate(points):
        write_trial(folder, TrialRecord(number, "search", point, 1, None, STARTED + 60 * number), ends[number])
    if scheduler == "pbt" and trials >= 4:
        _write_exploit(folder, points, [number for number in ends if ends[number][0] == "finished"])
    finished = sorted((n for n in ends if ends[n][0] == "finished"), key=lambda n: compute_loss(points[n], 1, 1.0))
    for place, winner in enumerate(finished[:2] if repeats else []):
        for seed in range(2, 2 + repeats):
            number = trials + place * repeats + seed - 2
            record = TrialRecord(number, "repeat", points[winner], seed, winner, STARTED + 60 * number)
            write_trial(folder, record, ("finished", 1.0))
    journal.add_event("finished", 1)
    return folder


def build_settings(name: str, trials: int, repeats: int = 0, scheduler: Scheduler = "asha") -> SweepSettings:
    space = {KEYS[0]: {"log_uniform": [1e-5, 1e-2]}, KEYS[1]: {"choice": [1, 2, 4, 8]}}
    return SweepSettings(
        **{"name": name, "space_name": "space.yaml", "space": space, "searcher": "tpe", "scheduler": scheduler},
        **{"seed": 1, "trials": trials, "concurrent": 2, "repeats": repeats, "finalists": 2 if repeats else 0},
        **{"max_examples": 320, "max_minutes": None, "evaluations": EVALUATIONS},
        **{"rungs": [] if scheduler == "none" else RUNGS, "reduction_factor": 2.0},
    )


def plan_point(number: int) -> Point:
    """Learning rates spread evenly over three decades, in a mixed order."""
    place = (number * 0.6180339887 + 0.3) % 1
    return {KEYS[0]: float(f"{10 ** (-5 + 3 * place):.3g}"), KEYS[1]: (4, 1, 8, 2)[number % 4]}


def compute_loss(point: Point, seed: int, progress: float) -> float:
    """Validation loss: best near 1e-3 and 4 accumulated; small rates begin slowly, and each seed is a bit off."""
    rate = math.log10(point[KEYS[0]])
    floor = 1.2 + 0.25 * (rate + 3) ** 2 + 0.04 * abs(math.log2(point[KEYS[1]]) - 2)
    noise = random.Random(f"{point} {seed}").gauss(0, 0.02)
    return round(floor + 1.8 * math.exp(-(7 + rate) * progress) + noise, 4)


def plan_ends(points: Sequence[Point], scheduler: Scheduler) -> dict[int, tuple[str, float]]:
    """How each trial ends, as (state, progress)."""
    ends = dict.fromkeys(range(len(points)), ("finished", 1.0))
    if len(points) < 4:
        return ends
    ends[1] = _place("failed")
    for rung in RUNGS if scheduler == "asha" else []:
        alive = [number for number in ends if ends[number][0] == "finished"]
        alive.sort(key=lambda number: compute_loss(points[number], 1, rung))
        ends.update(dict.fromkeys(alive[math.ceil(len(alive) / 2) :], ("pruned", rung)))
    return ends


def write_trial(sweep_dir: Path, record: TrialRecord, end: tuple[str, float] = ("finished", 1.0)) -> Journal:
    """The trial's line in the ledger and its run directory, validated and saved at the evaluations up to `end`."""
    state, progress = end
    add_trial(sweep_dir, record)
    settings = [f"{key}={value}" for key, value in record.point.items()] + [f"train.seed={record.seed}"]
    journal = write_run(sweep_dir, record.name, settings)
    start, pace = record.time, 2.0 + 0.3 * (record.number % 4)
    add_answers(journal, "before", 0, ["wrong", "wrong"])
    log_step(journal, 0, start, val_loss=3.2)
    for step in range(1, round(progress * STEPS) + 1):
        _log(journal, record, step, start + pace * step, 2048 / pace)
    _end_trial(journal, record, state, progress)
    _set_times(journal.folder, start, pace)
    return journal


def _log(journal: Journal, record: TrialRecord, step: int, time: float, speed: float) -> None:
    share, peak = step / STEPS, record.point[KEYS[0]]
    loss = compute_loss(record.point, record.seed, share)
    facts: dict[str, Any] = {"val_loss": loss, "milestone": share} if share in EVALUATIONS else {}
    log_step(
        journal,
        step,
        time,
        train_loss=round(loss - 0.05 + 0.02 * math.sin(step), 4),
        train_grad_norm=round(1 + math.exp(-share) + 0.1 * math.sin(3 * step), 4),
        optim_learning_rate=peak * (1 - 0.9 * share) if step > 2 else peak * step / 3,
        perf_target_tokens_per_second=round(speed + 20 * math.sin(step), 1),
        **facts,
    )
    if facts:
        write_checkpoint(journal, step, loss)


def _end_trial(journal: Journal, record: TrialRecord, state: str, progress: float) -> None:
    step = round(progress * STEPS)
    if state == "pruned":
        loss = compute_loss(record.point, record.seed, progress)
        why = f"asha: {loss:.4f} is not among the best half at {progress:.0%}"
        journal.add_event("pruned", 1, why, step=step, progress=progress, val_loss=loss)
    elif state == "finished":
        add_answers(journal, "after", step, ["right", "wrong"])
        journal.add_event("finished", 1, step=step)
    else:
        journal.add_event(state, 1, OOM if state == "failed" else "", step=step)


def _place(state: str) -> tuple[str, float]:
    return state, 1.0 if state == "finished" else 0.25


def _write_exploit(sweep_dir: Path, points: Sequence[Point], alive: Sequence[int]) -> None:
    """The worst trial takes over the weights of the best one in the middle."""
    order = sorted(alive, key=lambda number: compute_loss(points[number], 1, 0.5))
    donor, taker = (TrialRecord(number, "search", points[number], 1) for number in (order[0], order[-1]))
    folder = sweep_dir / taker.name
    events = list(read_lines(folder / EVENTS))
    facts = {"from": donor.name, "step": STEPS // 2, "progress": 0.5, "before": taker.point}
    after = {KEYS[0]: donor.point[KEYS[0]] * 1.2, KEYS[1]: donor.point[KEYS[1]]}
    last = events[-1]
    exploited = {**last, **facts, "after": after, "state": "exploited", "why": ""}
    write_lines(folder / EVENTS, [*events[:-1], exploited, {**last, "seq": last["seq"] + 1}])


def _set_times(run_dir: Path, start: float, pace: float) -> None:
    """Events as if they had taken `pace` seconds a step."""
    events = list(read_lines(run_dir / EVENTS))
    write_lines(run_dir / EVENTS, [{**event, "time": start + pace * event.get("step", 0)} for event in events])


def _write_head(folder: Path, settings: SweepSettings) -> None:
    source = folder / ".source" / "run.yaml"
    source.parent.mkdir()
    source.write_text(CONFIG_TEXT, encoding="utf-8")
    (folder / BASE).write_text(dump_config(load_config(source, [], label="run.yaml")), encoding="utf-8")
    save_settings(folder, settings)


def rewrite_ledger(sweep_dir: Path, records: Iterable[TrialRecord]) -> None:
    (sweep_dir / LEDGER).write_text("".join(json.dumps(r.to_json()) + "\n" for r in records), encoding="utf-8")
