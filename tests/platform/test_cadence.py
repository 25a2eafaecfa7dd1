"""The recommended cadence of checkpoints, against a simulation of failures."""

import pytest
from failure_model import find_best_seconds, simulate_loss

from sftray.platform.cadence import RESTART_S, compute_loss, describe_cadence, recommend_cadence

WEEK = 7 * 86400.0


@pytest.mark.parametrize("parameters", [135_000_000, 1_000_000_000])
@pytest.mark.parametrize("workers", [1, 64, 1024, 4096])
def test_the_formula_is_what_a_simulation_loses(workers: int, parameters: int) -> None:
    cadence = recommend_cadence(parameters, workers)
    lost = simulate_loss(cadence.seconds, cadence.cost, RESTART_S, WEEK / workers, 200_000, seed=1)
    assert lost == pytest.approx(cadence.lost, rel=0.02)


@pytest.mark.parametrize("workers", [1, 64, 1024, 4096])
def test_no_other_cadence_loses_much_less(workers: int) -> None:
    cadence, between = recommend_cadence(1_000_000_000, workers), WEEK / workers
    best = find_best_seconds(cadence.seconds, cadence.cost, RESTART_S, between, 20_000, seed=2)
    lost = [simulate_loss(each, cadence.cost, RESTART_S, between, 20_000, seed=2) for each in (best, cadence.seconds)]
    assert lost[1] - lost[0] < 0.01
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert compute_loss(cadence.seconds * factor, cadence.cost, RESTART_S, between) > cadence.lost


@pytest.mark.parametrize("parameters", [1, 10**9, 10**14])
def test_what_is_lost_is_a_share(parameters: int) -> None:
    assert 0 < recommend_cadence(parameters, 10**6).lost <= 1


def test_more_workers_save_more_often_and_larger_models_less() -> None:
    one, many = recommend_cadence(10**9, 1), recommend_cadence(10**9, 100)
    assert one.seconds == pytest.approx(10 * many.seconds) and many.lost > one.lost
    assert recommend_cadence(4 * 10**9, 1).seconds == pytest.approx(2 * one.seconds)
    assert recommend_cadence(1000, 4096).seconds >= 1.0, "never more often than a second, however small"


@pytest.mark.parametrize(
    ("save_every", "said"),
    [(100, "train.save_every=100 is that for steps of 15 s"), (0, "train.save_every=0 saves at the end alone")],
)
def test_it_is_said_in_steps_and_with_its_assumption(save_every: int, said: str) -> None:
    cadence = recommend_cadence(135_000_000, 2)
    assert cadence.seconds == pytest.approx(1533, rel=1e-3)
    assert describe_cadence(cadence, save_every) == (
        "checkpoints: about 1.62 GB and 3.9 s each; one in 26 min loses the least, 0.5% of the time, "
        "if a worker fails once a week: train.save_every=1533 where a step takes 1 s, 153 where it takes 10 s; "
        + said
    )
