"""What a report computes: who could have won, ticks, colours, the study."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from sweep_dirs import write_sweep

from sftray.platform.report_figures import (
    BEST,
    FAILED,
    LAST,
    SECOND,
    Axis,
    colour_by_rank,
    escape,
    plan_log_ticks,
    shape_axis,
    thin,
    write_tick,
)
from sftray.platform.report_page import Picture, Pictures, Table, escape_json
from sftray.platform.report_run import build_curves
from sftray.platform.report_stops import Losses, Stop, describe_stop, describe_stops, judge_stop
from sftray.platform.report_study import build_study
from sftray.platform.report_trials import load_trials, shorten_keys

WINNER = {0.25: 2.0, 0.5: 1.5, 1.0: 1.0}
RUNNER_UP = {0.25: 2.3, 0.5: 1.9, 1.0: 1.1}  # makes up 0.2 from 0.25 on, 0.3 from 0.5 on


@pytest.mark.parametrize(
    ("progress", "loss", "finished", "could", "made_up"),
    [
        (0.25, 1.9, [WINNER], True, 0.0),  # ahead of the winner
        (0.25, 2.0, [WINNER], True, 0.0),
        (0.25, 2.01, [WINNER], False, 0.0),  # nobody shows that a gap can be made up
        (0.25, 2.19, [WINNER, RUNNER_UP], True, 0.2),
        (0.25, 2.21, [WINNER, RUNNER_UP], False, 0.2),
        (0.5, 1.79, [WINNER, RUNNER_UP], True, 0.3),
        (0.5, 1.81, [WINNER, RUNNER_UP], False, 0.3),
        (0.25, math.inf, [WINNER, RUNNER_UP], False, 0.2),
        (0.25, 2.1, [WINNER, {0.25: 2.1, 1.0: 1.9}], False, 0.0),  # it fell back
        (0.25, 2.1, [WINNER, {1.0: 1.9}], False, 0.0),  # not validated there
        (0.125, 2.1, [WINNER, RUNNER_UP], None, 0.0),
        (0.25, 2.1, [], None, 0.0),
    ],
)
def test_whether_a_stopped_trial_could_have_won(
    progress: float, loss: float, finished: Sequence[Losses], could: bool | None, made_up: float
) -> None:
    stop = judge_stop("trial-005", progress, loss, finished)
    assert stop.could_have_won is could
    assert stop.made_up == pytest.approx(made_up)


def test_how_many_were_behind_a_stopped_trial() -> None:
    stop = judge_stop("trial-005", 0.5, 1.7, [WINNER, RUNNER_UP, {0.5: 1.8, 1.0: 1.2}, {0.25: 9.0}])
    assert (stop.behind, stop.finished, stop.worst_loss) == (2, 3, 1.9)
    assert describe_stop(stop, "trial-001") == (
        "trial-005 was stopped at 50 % with 1.7: trial-001, which won, had 1.5 there, the worst of the trials that "
        "finished 1.9; 2 of 3 finished trials were behind it; the largest gap made up from there on was 0.3."
    )


def make_stop(name: str, could: bool | None, gap: float = 0.1) -> Stop:
    winner = None if could is None else 2.0
    return Stop(name, 0.25, 2.0 + gap, winner, winner, 0, 1, 0.0, could)


def test_stops_in_sentences() -> None:
    assert describe_stops([], "w") == []
    assert describe_stops([make_stop("a", None)], "w") == [
        "No trial has finished that the stopped ones could be compared with."
    ]
    none, nearest = describe_stops([make_stop("far", False, 0.5), make_stop("near", False, 0.2)], "w")
    assert none == "None of 2 stopped trials could have won, as measured here. The one that came nearest:"
    assert nearest.startswith("near was stopped at 25 % with 2.2: w, which won, had 2 there")
    head, *each = describe_stops([make_stop("a", True), make_stop("b", False), make_stop("c", True)], "w")
    assert head == "2 of 3 stopped trials could have won, as measured here: a, c."
    assert [line[:1] for line in each] == ["a", "c"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-5, 1e-2, "1e-5 1e-4 1e-3 0.01"),
        (1e-4, 1e-3, "1e-4 2e-4 3e-4 5e-4 7e-4 1e-3"),
        (2e-5, 7e-4, "2e-5 5e-5 1e-4 2e-4 5e-4"),
        (0.5, 3.0, "0.5 0.7 1 2 3"),
        (1e-9, 1e9, "1e-9 1e-5 0.1 1,000 1e7"),
        (1.2, 1.9, "1.2 1.9"),  # no round number between them
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: str) -> None:
    assert list(map(write_tick, plan_log_ticks(low, high))) == ticks.split()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (2.34e-5, "2.34e-5"), (0.02, "0.02"), (1.5, "1.5"), (2000, "2,000"), (0, "0"), (3e7, "3e7")],
)
def test_ticks_are_written_for_people(value: float, text: str) -> None:
    assert write_tick(value) == text


def test_losses_far_apart_are_on_a_logarithmic_axis() -> None:
    axis = Axis("loss", log=None)
    assert shape_axis(axis, [1.0, 10.0])["type"] == "log"
    assert "type" not in shape_axis(axis, [1.0, 2.0])
    assert "type" not in shape_axis(axis, [0.0, 10.0])
    assert "type" not in shape_axis(axis, [])
    assert shape_axis(axis, [math.inf, 1.0, 10.0])["range"] == pytest.approx([-0.05, 1.05])


def test_colours_run_from_the_best_to_the_last() -> None:
    assert [colour_by_rank(rank, 9) for rank in (1, 2, 9, None)] == [BEST, SECOND, LAST, FAILED]
    assert colour_by_rank(2, 2) == SECOND


def test_thinning_keeps_both_ends() -> None:
    points = [(float(n), 0.0) for n in range(100)]
    assert thin(points, 100) == points
    assert [x for x, _ in thin(points, 10)] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99]
    assert thin([], 10) == []


def test_text_for_plotly_and_for_scripts() -> None:
    assert escape('<b>a</b> & "q" \x07') == '&lt;b&gt;a&lt;/b&gt; &amp; "q" \\x07'
    assert escape_json('{"a": "</script>&"}') == '{"a": "\\u003c/script\\u003e\\u0026"}'


def test_a_last_picture_that_stands_alone_fills_its_row() -> None:
    wide, narrow = Picture("w", "{}", wide=True), Picture("n", "{}")
    assert [p.wide for p in Pictures([wide, narrow, narrow, narrow]).arranged] == [True, False, False, True]
    assert [p.wide for p in Pictures([narrow, wide, narrow]).arranged] == [False, True, False]


def test_headers_of_a_table_without_rows() -> None:
    assert [head.text for head in Table(["a_b", "c"], []).heads] == ["a_\u200bb", "c"]


def test_keys_are_short_where_they_can_be() -> None:
    assert shorten_keys(["optim.learning_rate", "a.seed", "b.seed"]) == {
        **{"optim.learning_rate": "learning_rate"},
        **{"a.seed": "a.seed", "b.seed": "b.seed"},
    }


def test_the_study_has_what_the_trials_came_to(tmp_path: Path) -> None:
    trials = load_trials(write_sweep(tmp_path))
    study = build_study(trials)
    assert [trial.state.name for trial in study.trials] == [
        *("PRUNED", "FAIL", "PRUNED", "PRUNED", "COMPLETE", "PRUNED", "PRUNED", "COMPLETE")
    ]
    assert study.best_trial.params == {"learning_rate": 2.07e-3, "gradient_accumulation_steps": "4"}
    assert study.best_value == pytest.approx(1.2542)
    assert study.trials[0].intermediate_values == {125: pytest.approx(2.7399), 250: pytest.approx(2.359)}


def test_a_mixture_of_experts_has_its_balance_drawn() -> None:
    rows = [{"step": step, "train/loss": 2.0 / step, "train/grad_norm": 1.0} for step in range(1, 4)]
    experts = [{**row, "train/aux_loss": 2.1, "moe/expert_load_max": 1.4, "moe/expert_load_min": 0.5} for row in rows]
    drawn = []
    for each in (rows, experts):
        (pictures,) = build_curves(pd.DataFrame(each))
        assert isinstance(pictures, Pictures)
        drawn.append([picture.title for picture in pictures.pictures])
    dense, mixture = drawn
    assert mixture == [*dense, "Auxiliary loss, before its weight", "Tokens of an expert, 1 is an even share"]
    assert '"fullest"' in pictures.pictures[-1].figure and '"emptiest"' in pictures.pictures[-1].figure
