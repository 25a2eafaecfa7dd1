"""A jump of the loss is noticed once; what is usual for a loss is not."""

import json
import random
from pathlib import Path

import pytest
from local_runs import build_job, run_here
from tiny_runs import build_config, read_events, trace

from sftray.train_fn.config import TrainConfig
from sftray.train_fn.order import order_step
from sftray.train_fn.spike import FEWEST, WINDOW, SpikeWatch


def follow(losses: list[float]) -> list[int]:
    """The steps, from 1, at which a spike is told."""
    watch = SpikeWatch()
    return [step for step, loss in enumerate(losses, start=1) if watch.notice(loss) is not None]


def draw_noise(length: int, level: float, width: float) -> list[float]:
    draw = random.Random(7)
    return [draw.gauss(level, width) for _ in range(length)]


@pytest.mark.parametrize(("level", "width"), [(2.0, 0.3), (0.3, 0.02), (8.0, 0.01), (1.0, 0.0)])
def test_a_jump_is_told_with_what_was_usual(level: float, width: float) -> None:
    losses = draw_noise(100, level, width)
    assert follow(losses) == []
    watch = SpikeWatch()
    assert [watch.notice(loss) for loss in losses] == [None] * 100
    assert watch.notice(3 * level) == pytest.approx(level, rel=0.1)


def test_a_spike_of_several_steps_is_told_once_and_the_next_one_again() -> None:
    calm = draw_noise(40, 2.0, 0.2)
    assert follow([*calm, 9.0, 8.0, 7.0, *calm[:5], 9.0]) == [41, 49]


def test_a_level_that_stays_becomes_usual() -> None:
    low, high = draw_noise(40, 1.0, 0.1), draw_noise(2 * WINDOW, 3.0, 0.3)
    assert follow([*low, *high, 9.5]) == [41, 41 + 2 * WINDOW]


def test_training_that_falls_and_wanders_has_no_spike() -> None:
    draw = random.Random(3)
    falling = [9.0 * 0.97**step + 0.5 + draw.uniform(0.0, 0.2) for step in range(300)]
    assert follow(falling) == []
    assert follow([*reversed(falling)]) == [], "rising slowly is no jump"


def test_rows_known_by_heart_move_by_many_times_their_loss() -> None:
    assert follow([*draw_noise(60, 0.05, 0.002), 0.4, 0.05, 0.3]) == []


def test_of_the_first_steps_nothing_is_said() -> None:
    assert follow([1.0] * (FEWEST - 1) + [50.0]) == []
    assert follow([1.0] * FEWEST + [50.0]) == [FEWEST + 1]


@pytest.mark.slow
def test_a_row_unlike_all_others_is_named(tmp_path: Path) -> None:
    """The model has learnt one answer by heart when it meets the other row."""
    rows = [{"prompt": "1 + 1 = ?", "completion": "so it is 2"}] * 200
    late = int(order_step(TrainConfig().seed, step=40, global_batch_size=4, num_examples=200)[1][0])
    rows[late] = {"prompt": "1 + 1 = ?", "completion": "QUARTZ &%$ §!"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config(
        tmp_path,
        data={"train": str(path), "validation": None},
        train={"epochs": 1, "global_batch_size": 4},
        scaling={"num_workers": 1, "use_gpu": False},
    )
    job = build_job(config, tmp_path)
    run_here(job)
    losses = dict(trace(Path(job["run_dir"])))
    (spike,) = [event for event in read_events(Path(job["run_dir"])) if event["state"] == "loss_spike"]
    assert losses[spike["step"]] == max(loss for step, loss in losses.items() if step > FEWEST)
    assert f"{path}:{late + 1}" in spike["examples"] and len(spike["examples"]) == 4
    assert spike["why"].startswith(f"loss {losses[spike['step']]:.4g}, usual before ")
