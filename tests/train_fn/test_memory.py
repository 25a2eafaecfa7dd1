"""The peak of a run is its own: it rises with what is held and begins anew at a reset."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sftray.train_fn import memory
from sftray.train_fn.memory import measure_peak, reset_peak

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
MB = 2**20


def test_the_peak_rises_with_what_is_held_and_falls_at_a_reset() -> None:
    reset_peak(CPU)
    before = measure_peak(CPU)
    held = torch.ones(200 * MB // 4)
    assert measure_peak(CPU) >= before + 190 * MB
    del held
    assert measure_peak(CPU) >= before + 190 * MB, "what was held once counts until the reset"
    reset_peak(CPU)
    assert measure_peak(CPU) <= before + 50 * MB


def test_what_refers_to_itself_is_freed_by_a_reset() -> None:
    knot: list[object] = [torch.ones(200 * MB // 4)]
    knot.append(knot)
    reset_peak(CPU)
    held = measure_peak(CPU)
    del knot
    reset_peak(CPU)
    assert measure_peak(CPU) <= held - 150 * MB


def test_without_proc_the_peak_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "clear_refs")
    reset_peak(CPU)
    assert 50 * MB < measure_peak(CPU) < 2**40


def test_code_that_was_compiled_before_a_reset_is_compiled_anew_after_it() -> None:
    """Else a model would run what was compiled for another one's shapes or, after eight of them, nothing compiled."""
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    double = torch.compile(lambda x: x * 2, backend=count)
    for runs in (1, 2):
        reset_peak(CPU)
        assert [double(torch.ones(2)).sum().item() for _ in range(3)] == [4.0] * 3
        assert len(compiled) == runs
