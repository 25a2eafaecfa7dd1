"""Model FLOPs utilisation: how much of a GPU's arithmetic a training uses for the model itself."""

# Dense bf16 peak of one GPU, in TFLOP/s, from NVIDIA's data sheets; a longer name stands before one it contains.
_PEAK_TFLOPS = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def compute_mfu(num_parameters: int, tokens_per_second: float, gpu_name: str) -> float | None:
    """Share, 0 to 1, of one GPU's bf16 peak; None for a GPU that is not in the table.

    A token costs 6 operations a parameter, forward and backward (Kaplan et al., 2020, arXiv 2001.08361);
    attention is left out, so long sequences count too low.

    Args:
        tokens_per_second: of this one GPU, padding not counted.
    """
    peak = next((tflops for name, tflops in _PEAK_TFLOPS.items() if name in gpu_name), None)
    return None if peak is None else 6 * num_parameters * tokens_per_second / (peak * 1e12)
