"""The recommended cadence of checkpoints, against a simulation of failures."""

import random

import pytest

from sftray.platform.cadence import compute_loss, describe_cadence, recommend_cadence


def simulate(seconds: float, cost: float, restart: float, between: float, failures: int, seed: int) -> float:
    """The share of time lost over so many failures, which come at any moment, also while it saves or restarts."""
    draw, clock, kept = random.Random(seed), 0.0, 0.0
    for _ in range(failures):
        lived = draw.expovariate(1 / between)
        clock += lived
        if lived > restart:
            kept += int((lived - restart) / (seconds + cost)) * seconds
    return 1 - kept / clock


@pytest.mark.parametrize(("workers", "parameters"), [(1, 135_000_000), (64, 1_000_000_000), (8, 7_000_000_000)])
def test_the_formula_is_what_a_simulation_loses(workers: int, parameters: int) -> None:
    cadence, between = recommend_cadence(parameters, workers), 7 * 86400.0 / workers
    lost = simulate(cadence.seconds, cadence.cost, 13.5, between, 20_000, seed=1)
    assert lost == pytest.approx(cadence.lost, rel=0.15)


def test_no_other_cadence_loses_less() -> None:
    workers, parameters = 64, 1_000_000_000
    cadence, between = recommend_cadence(parameters, workers), 7 * 86400.0 / workers
    for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
        assert compute_loss(cadence.seconds * factor, cadence.cost, 13.5, between) > cadence.lost
    for factor in (0.25, 4.0):  # where it is flat, chance hides the difference
        other = simulate(cadence.seconds * factor, cadence.cost, 13.5, between, 20_000, seed=2)
        assert other > simulate(cadence.seconds, cadence.cost, 13.5, between, 20_000, seed=2)


def test_more_workers_save_more_often_and_larger_models_less() -> None:
    one, many = recommend_cadence(10**9, 1), recommend_cadence(10**9, 100)
    assert one.seconds == pytest.approx(10 * many.seconds) and many.lost > one.lost
    assert recommend_cadence(4 * 10**9, 1).seconds == pytest.approx(2 * one.seconds)
    assert recommend_cadence(1000, 4096).seconds >= 1.0, "never more often than a second, however small"


def test_it_is_said_with_its_assumption() -> None:
    assert describe_cadence(recommend_cadence(135_000_000, 2)) == (
        "checkpoints: about 1.62 GB and 3.9 s each; one in 26 min loses the least, 0.5% of the time, "
        "if a worker fails once a week (train.save_every counts steps)"
    )
