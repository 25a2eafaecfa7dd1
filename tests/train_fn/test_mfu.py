import pytest

from sftray.train_fn.mfu import compute_mfu


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 6e9 * 50_000 / 989e12),
        ("NVIDIA H100 PCIe", 6e9 * 50_000 / 756e12),
        ("NVIDIA L40S", 6e9 * 50_000 / 362e12),
        ("NVIDIA L4", 6e9 * 50_000 / 121e12),
        ("a GPU of next year", None),
    ],
)
def test_utilisation_is_six_operations_a_parameter_and_token(gpu: str, expected: float | None) -> None:
    assert compute_mfu(10**9, 50_000, gpu) == (None if expected is None else pytest.approx(expected))
