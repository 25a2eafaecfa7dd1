"""Settings of every test: no network, no telemetry, one thread per process, and `tests/support` importable."""

import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower on several
sys.path.insert(0, str(Path(__file__).parent / "support"))  # spawned processes inherit it
