"""Which setting is better, and how sure that is: exact numbers, and the words for them."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_dirs import write_sweep

from sftray.platform.certainty import (
    Comparison,
    compare_settings,
    describe_answer,
    describe_comparison,
    load_groups,
    name_settings,
    write_setting,
)
from sftray.platform.leaderboard import choose_finalists, load_leaderboard
from sftray.train_fn.checkpoint import find_best

LOSSES = st.dictionaries(st.integers(1, 6), st.floats(0.1, 10.0), min_size=2, max_size=6)


def test_shared_seeds_are_compared_in_pairs() -> None:
    found = compare_settings({1: 1.0, 2: 1.0, 3: 1.0}, {1: 2.0, 2: 3.0, 3: 4.0})
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027.
    assert found.difference == pytest.approx(2.0)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.paired, found.runs, found.verdict) == (True, 3, "cannot tell")


def test_a_difference_beyond_its_interval_is_told() -> None:
    found = compare_settings({1: 1.0, 2: 1.1, 3: 0.9}, {1: 2.0, 2: 2.11, 3: 1.91})
    assert found.verdict == "better"
    assert found.half_width is not None and found.half_width < 0.02


def test_without_shared_seeds_it_is_welchs_interval() -> None:
    found = compare_settings({1: 1.0, 2: 2.0}, {3: 5.0, 4: 6.0})
    # Variances 0.5 each: error sqrt(0.5), freedom 2.
    assert found.half_width == pytest.approx(4.302653 * math.sqrt(0.5), rel=1e-6)
    assert not found.paired and found.verdict == "better"


@pytest.mark.parametrize(("a", "b"), [({1: 1.0}, {1: 9.0}), ({1: 1.0, 2: 1.0}, {}), ({1: 1.0, 2: 2.0}, {3: 9.0})])
def test_too_few_runs_cannot_tell(a: dict[int, float], b: dict[int, float]) -> None:
    found = compare_settings(a, b)
    assert found.half_width is None and found.verdict == "cannot tell"


def test_the_same_losses_cannot_be_told_apart() -> None:
    same = {1: 1.5, 2: 1.25, 3: 1.75}
    assert compare_settings(same, same).verdict == "cannot tell"


def test_a_setting_with_a_diverged_run_loses() -> None:
    assert compare_settings({1: 1.0, 2: 1.0}, {1: 0.5, 2: math.inf}).verdict == "better"
    assert compare_settings({1: math.inf, 2: 1.0}, {1: 0.5, 2: math.inf}).verdict == "cannot tell"


@given(a=LOSSES, b=LOSSES)
def test_turned_round_it_says_the_opposite(a: dict[int, float], b: dict[int, float]) -> None:
    there, back = compare_settings(a, b), compare_settings(b, a)
    assert there.difference == pytest.approx(-back.difference)
    opposite = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert back.verdict == opposite[there.verdict]


def test_of_a_setting_against_itself_one_in_twenty_is_told_apart() -> None:
    draw = random.Random(1)
    verdicts = []
    for _ in range(400):
        a, b = ({seed: draw.gauss(2.0, 0.1) for seed in range(4)} for _ in range(2))
        verdicts.append(compare_settings(a, b).verdict)
    assert 0.02 < sum(verdict != "cannot tell" for verdict in verdicts) / 400 < 0.09


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (
            Comparison(0.021, 0.006, 3, True, 0.95, "better"),
            "A beats B by 0.021 ± 0.006 (95 % interval, 3 paired seeds)",
        ),
        (Comparison(-0.021, 0.006, 3, True, 0.95, "worse"), "B beats A by 0.021 ± 0.006"),
        (Comparison(0.002, 0.009, 4, False, 0.95, "cannot tell"), "cannot tell A and B apart: 0.002 ± 0.009"),
        (Comparison(0.1, None, 1, False, 0.95, "cannot tell"), "the runs are too few"),
        (Comparison(math.nan, None, 0, False, 0.95, "better"), "A beats B, of which not every run"),
    ],
)
def test_the_words(comparison: Comparison, text: str) -> None:
    assert text in describe_comparison(comparison, "A", "B")


def test_settings_are_named_by_what_differs() -> None:
    settings = [
        {"optim.learning_rate": 3e-4, "train.packing": True},
        {"optim.learning_rate": 1e-4, "train.packing": True},
    ]
    assert name_settings(settings) == ["learning_rate 0.0003", "learning_rate 0.0001"]
    assert write_setting({}) == "the base config"


def test_the_ranking_is_by_losses_that_have_a_checkpoint(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=8)
    ranked = load_leaderboard(folder)
    assert [each.record.number for each in ranked if each.state == "failed"] == [ranked[-1].record.number]
    losses = [each.loss for each in ranked if each.state != "failed"]
    assert losses == sorted(losses, key=lambda loss: float("inf") if loss is None else loss)
    best = find_best(folder / ranked[0].record.name / "checkpoints")
    assert best is not None and (best.manifest.val_loss, best.step) == (ranked[0].loss, ranked[0].step)
    finalists = choose_finalists(ranked, 2)
    assert all(each.state == "finished" for each in finalists)
    assert finalists[0].setting != finalists[1].setting


def test_without_repeats_chance_is_not_measured(tmp_path: Path) -> None:
    text = " ".join(describe_answer(write_sweep(tmp_path, trials=8)))
    assert "chance is not measured" in text and "--repeats 3" in text


def test_repeats_are_what_is_compared(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=8, repeats=3)
    groups = load_groups(folder)
    assert [sorted(group.losses) for group in groups] == [[2, 3, 4], [2, 3, 4]]
    text = " ".join(describe_answer(folder))
    assert "95 % interval, 3 paired seeds" in text


def test_a_sweep_of_which_nothing_finished_says_why(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=2, fates={0: "failed", 1: "failed"})
    (line,) = describe_answer(folder)
    assert line.startswith("none of 2 trials has finished; ")
