"""The peak memory of a run: counted from its own start, for several may run in one process one after another."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "VmHWM:"  # the high-water mark of resident memory, in KiB
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def reset_peak(device: torch.device) -> None:
    """Begin to measure anew: the peak is what is held now. What a run before has left is freed first.

    Where Linux's /proc is missing or may not be written, the peak stays that of the whole process.
    """
    if "torch._dynamo" in sys.modules:  # code compiled for a model before this one would be taken for this one too
        torch.compiler.reset()
    free_memory()
    if device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's has no types
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def free_memory() -> None:
    """What a run has held goes back to the system, before another one begins in this process."""
    gc.collect()  # models and their hooks refer to each other
    # Before CUDA is initialised there is nothing to give back, and torch would refuse to reset a peak.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's has no types
        torch.cuda.empty_cache()
    # glibc keeps what other threads than the main one have freed, such as the one that writes checkpoints.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def measure_peak(device: torch.device) -> int:
    """Bytes held at most since the last reset: by the GPU's allocator there, by this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
