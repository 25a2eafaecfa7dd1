"""Which setting is better, and how sure that is: exact numbers, and the words for them."""

import dataclasses
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_dirs import KEYS, rewrite_ledger, write_sweep, write_trial

from sftray.platform.certainty import (
    Comparison,
    Group,
    compare_groups,
    compare_settings,
    describe_answer,
    describe_comparison,
    load_groups,
    name_settings,
    write_setting,
)
from sftray.platform.leaderboard import choose_finalists, load_leaderboard
from sftray.platform.sweep_files import TrialRecord, load_settings, read_ledger, save_settings
from sftray.train_fn.checkpoint import find_best
from sftray.train_fn.journal import Journal

LOSSES = st.dictionaries(st.integers(1, 6), st.floats(0.1, 10.0), min_size=2, max_size=6)


@pytest.mark.slow
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


def test_two_settings_one_rate_apart_are_told_apart(tmp_path: Path) -> None:
    """Repeats with a planted difference of 0.5, ten times what seeds spread."""
    folder = write_sweep(tmp_path, trials=1, scheduler="none")
    for number, (rate, seed) in enumerate(
        [(1e-3, 2), (1e-3, 3), (1e-3, 4), (3e-5, 2), (3e-5, 3), (3e-5, 4)], start=1
    ):
        point = {KEYS[0]: rate, KEYS[1]: 4}
        write_trial(folder, TrialRecord(number, "repeat", point, seed, 0 if rate == 1e-3 else 1))
    lines = describe_answer(folder)
    assert lines[1].startswith("learning_rate 0.001 beats learning_rate 3e-05 by 0.")


def test_of_three_settings_the_leader_is_compared_to_both_at_a_higher_confidence() -> None:
    groups = [Group({"a": n}, {1: n, 2: n + 0.1, 3: n + 0.3}) for n in (1.0, 2.0, 3.0)]
    groups[1].losses[2] += 0.2
    found = compare_groups(groups)
    assert [(each.confidence, each.verdict) for each in found] == [(0.975, "better"), (0.975, "better")]
    # Differences 1, 1.2, 1: deviation 0.11547, error 0.066667, t(0.9875, 2) = 6.2053.
    assert found[0].half_width == pytest.approx(6.2053 / 15, rel=1e-4)
    assert found[1].half_width == pytest.approx(0.0, abs=1e-9)


def write_seeds(folder: Path, ends: dict[int, str]) -> None:
    """Trials of one setting, which differ in their seeds alone."""
    for number, end in ends.items():
        record = TrialRecord(number, "search", {KEYS[0]: 1e-3, KEYS[1]: 4}, number)
        write_trial(folder, record, (end, 1.0 if end == "finished" else 0.25))


def test_trials_that_differ_in_seeds_alone_cannot_be_told_apart(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=0)
    write_seeds(folder, dict.fromkeys(range(4), "finished"))
    (line,) = describe_answer(folder)
    assert line.startswith("cannot tell them apart: all 4 trials have the same settings; seeds alone spread")


def test_seeds_that_were_searched_are_compared_and_pruned_ones_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=0)
    write_seeds(folder, {0: "finished", 1: "finished", 2: "pruned"})
    for number, seed in ((3, 0), (4, 1)):
        write_trial(folder, TrialRecord(number, "search", {KEYS[0]: 3e-5, KEYS[1]: 4}, seed))
    text = " ".join(describe_answer(folder))
    assert "2 paired seeds" in text
    assert "1 run(s) of these settings were pruned and do not count" in text


def test_what_can_still_go_on_is_no_verdict_on_its_settings(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=0)
    write_seeds(folder, {0: "finished", 1: "finished", 2: "failed", 3: "interrupted"})
    assert [sorted(group.losses) for group in load_groups(folder)] == [[0, 1, 2]]
    Journal(folder / "trial-002").add_event("failed", 1, "the store is full", exit_code=4)
    assert [sorted(group.losses) for group in load_groups(folder)] == [[0, 1]]


def test_repeats_that_are_missing_are_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=8, repeats=2)
    records = [record for record in read_ledger(folder) if record.kind == "search"]
    rewrite_ledger(folder, records)
    assert f"sftray resume {folder}" in " ".join(describe_answer(folder))


def test_a_single_setting_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    text = " ".join(describe_answer(write_sweep(tmp_path, trials=1)))
    assert "no other settings finished" in text


def test_a_best_value_at_the_edge_of_the_space_is_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=1)
    settings = load_settings(folder)
    assert "at the edge" not in " ".join(describe_answer(folder))
    save_settings(folder, dataclasses.replace(settings, space={KEYS[0]: {"log_uniform": [1e-6, 8e-5]}}))
    assert "the best optim.learning_rate, 7.94e-05, is at the edge of [1e-06, 8e-05]: widen the space" in (
        describe_answer(folder)
    )


def test_a_trial_that_followed_another_has_its_settings_and_is_no_finalist(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=8, scheduler="pbt")
    ranked = load_leaderboard(folder)
    (changed,) = [each for each in ranked if each.followed]
    assert changed.followed == (ranked[0].record.name,)
    assert changed.setting[KEYS[0]] == pytest.approx(1.2 * ranked[0].setting[KEYS[0]])
    finished = [each for each in ranked if each.state == "finished"]
    assert choose_finalists(ranked, 99) == [each for each in finished if each is not changed]


def test_a_wait_before_a_resume_is_no_time_of_the_trial(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, trials=1)
    before = load_leaderboard(folder)[0].seconds
    Journal(folder / "trial-000").add_event("starting", 1)  # now, and the trial is of last year
    assert before == 80.0
    assert load_leaderboard(folder)[0].seconds == before


@pytest.mark.parametrize(
    ("difference", "half_width", "text"),
    [
        (0.0213, 0.00584, "0.0213 ± 0.0058"),
        (1.26, 13.4, "1 ± 13"),
        (3e-5, 2.1e-6, "0.0000300 ± 0.0000021"),
        (1, 0, "1 ± 0"),
    ],
)
def test_a_difference_is_as_fine_as_its_interval(difference: float, half_width: float, text: str) -> None:
    told = describe_comparison(Comparison(difference, half_width, 3, True, 0.95, "better"), "A", "B")
    assert told == f"A beats B by {text} (95 % interval, 3 paired seeds)"
