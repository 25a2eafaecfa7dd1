"""Preparing tokens over a whole cluster, with Ray Data, where the input is large and in several files."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

from sftray.train_fn.places import as_path
from sftray.train_fn.prepare import MapChunks, map_on_cores
from sftray.train_fn.prepare_chunk import ChunkTask, prepare_chunk
from sftray.train_fn.receipt import ChunkReceipt

# Below this the driver's own cores are done before the tasks have been spread.
_SPREAD_ABOVE_BYTES = 256 << 20


def choose_map(num_nodes: int) -> MapChunks | None:
    """Ray Data's map where there are nodes to spread over; None: the driver's cores."""
    return spread_if_large if num_nodes > 1 else None


def spread_if_large(tasks: Sequence[ChunkTask]) -> Iterable[ChunkReceipt]:
    files = {task.chunk.file for task in tasks}
    num_bytes = sum(as_path(name).stat().st_size for name in files)
    if len(files) < 2 or num_bytes < _SPREAD_ABOVE_BYTES:
        return map_on_cores(tasks)
    return spread_over_cluster(tasks)


def spread_over_cluster(tasks: Sequence[ChunkTask]) -> Iterable[ChunkReceipt]:
    """Run the tasks as Ray Data blocks of one task each. All nodes must reach the files and the store."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_prepare_row)
    return [pickle.loads(row["receipt"]) for row in done.iter_rows()]


def _prepare_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"receipt": pickle.dumps(prepare_chunk(pickle.loads(row["task"])))}
