"""From chat files to a token store: scan, prepare in chunks, count, publish.

Files are taken in chunks. One chunk is prepared by one process alone and gives one Arrow file and one
receipt, so the result does not depend on how many processes there are.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.errors import ClusterError, DataError, Problem, StoreError
from sftray.train_fn.files import Chunk, find_files, scan_files
from sftray.train_fn.places import as_path, write_whole
from sftray.train_fn.prepare_chunk import ChunkTask, prepare_chunk
from sftray.train_fn.receipt import ChunkReceipt, SplitReceipt
from sftray.train_fn.token_store import RECEIPT, Split, find_overlap, open_draft, publish_draft, read_receipt
from sftray.train_fn.tokenizer import LoadedTokenizer, hash_tokenizer

# Starting a process costs its import of transformers, some 5 s: below this many bytes one process is faster.
_POOL_ABOVE_BYTES = 48 << 20
# Modules whose text is part of a store's key: a change in any of them prepares anew.
_CODE = (
    *("batch", "chat", "chat_check", "chat_faults", "chat_frame", "chat_marks", "chat_render", "chat_spans"),
    *("chat_template", "chat_tokens", "file_kinds", "files", "json_lines", "json_text", "messages"),
    *("prepare", "prepare_chunk", "raw_rows", "receipt", "rows", "token_store", "tokenizer"),
)


@dataclass(frozen=True)
class Prepared:
    folder: Path
    receipt: dict[str, Any]
    reused: bool


MapChunks = Callable[[Sequence[ChunkTask]], Iterable[ChunkReceipt]]


def prepare_tokens(
    model: ModelConfig,
    data: DataConfig,
    root: Path,
    loaded: LoadedTokenizer,
    map_chunks: MapChunks | None = None,
) -> Prepared:
    """Find the token store of this data under `root`, or make it.

    Args:
        root: folder of all token stores.
        loaded: the run's tokenizer, as `load_tokenizer(model)` gives it.
        map_chunks: runs `prepare_chunk` over the tasks, in any order; default: here, over the cores when the
            data is large.

    Raises:
        DataError: files are missing, rows are bad (the first ones are listed), or nothing is left to train.
        StoreError: the store cannot be written.
    """
    started = time.monotonic()
    chunks, scan = _scan_splits(data)
    key = _compute_key(scan, loaded, data)
    if (root / key / RECEIPT).exists():
        return Prepared(root / key, read_receipt(root / key), reused=True)
    try:
        with open_draft(root, key) as draft:
            tasks = [
                ChunkTask(chunk, scan["files"].index(chunk.file), index, str(draft), split, model, data, key)
                for split, split_chunks in chunks.items()
                for index, chunk in enumerate(split_chunks)
            ]
            done = sorted((map_chunks or map_on_cores)(tasks), key=lambda receipt: receipt.order)
            total = _merge(done)
            _refuse_bad(total, data)
            receipt = {
                **scan,
                "key": key,
                **total.to_json(),
                "overlap": find_overlap(draft, scan["files"]),
                "preparation": _measure(done, total, started),
            }
            write_whole(draft / RECEIPT, json.dumps(receipt, ensure_ascii=False, indent=2))
            return Prepared(publish_draft(draft, root, key), receipt, reused=False)
    except StoreError:  # a bucket's, which says it itself
        raise
    except OSError as error:  # the readers have their own errors for the input: this one is the store's
        raise StoreError(_describe_refusal(root / key, error)) from error


def _describe_refusal(folder: Path, error: OSError) -> Problem:
    return Problem(
        f"prepared tokens cannot be written to the store: {error.strerror or error}",
        where=str(error.filename2 or error.filename or folder),
        why="store.path holds them beside the runs, in tokens/",
        fix="free space, mend the rights, or remove what stands in the way; or another store.path",
    )


def _scan_splits(data: DataConfig) -> tuple[dict[Split, list[Chunk]], dict[str, Any]]:
    """The chunks of each split, and the names and fingerprints of the input."""
    sources: dict[Split, Any] = {"train": data.train}
    if isinstance(data.validation, str | list):
        sources["validation"] = data.validation
    chunks: dict[Split, list[Chunk]] = {}
    files: list[str] = []
    fingerprints: dict[str, str] = {}
    num_bytes = 0
    problems: list[Problem] = []
    for split, paths in sources.items():
        try:
            scanned = scan_files(find_files(paths, f"data.{split}"))
        except DataError as error:
            problems += error.problems
            continue
        chunks[split] = scanned.chunks
        fingerprints[split] = scanned.fingerprint
        num_bytes += scanned.num_bytes
        files.extend(name for name in dict.fromkeys(c.file for c in scanned.chunks) if name not in files)
    if problems:
        raise DataError(*problems)
    return chunks, {"files": files, "num_bytes": num_bytes, "fingerprints": fingerprints}


def _compute_key(scan: dict[str, Any], loaded: LoadedTokenizer, data: DataConfig) -> str:
    """Content address: equal keys mean equal tokens. The preparing code is part of it, file names are not."""
    here = Path(__file__).parent
    facts = {
        "data": scan["fingerprints"],
        "tokenizer": hash_tokenizer(loaded.tokenizer),
        "settings": {
            "max_seq_len": data.max_seq_len,
            "overlong": data.overlong,
            "train_on": data.train_on,
            "validation_fraction": data.validation if isinstance(data.validation, float) else None,
        },
        "code": {name: hashlib.sha256((here / f"{name}.py").read_bytes()).hexdigest() for name in _CODE},
        "libraries": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _merge(receipts: Sequence[ChunkReceipt]) -> ChunkReceipt:
    total = ChunkReceipt()
    for receipt in receipts:
        total.merge(receipt)
    return total


def _measure(receipts: Sequence[ChunkReceipt], total: ChunkReceipt, started: float) -> dict[str, Any]:
    seconds = time.monotonic() - started
    rows = sum(split.counts["rows"] for split in total.splits.values())
    return {
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1),
        "processes": len({receipt.process_id for receipt in receipts}),
        "peak_memory_mb": round(total.peak_memory_bytes / 2**20, 1),
    }


def _refuse_bad(total: ChunkReceipt, data: DataConfig) -> None:
    if total.num_problems:
        more = total.num_problems - len(total.problems)
        rest = [Problem(f"{more} more rows are bad; the first ones are above")] if more else []
        raise DataError(*total.problems, *rest)
    train = total.splits.get("train", SplitReceipt())
    if train.counts["kept"]:
        return
    raise DataError(_describe_nothing(train, total.splits.get("validation", SplitReceipt()), data))


def _describe_nothing(train: SplitReceipt, validation: SplitReceipt, data: DataConfig) -> Problem:
    counts, what = train.counts, "data.train: nothing is left to train"
    if isinstance(data.validation, float) and not counts["rows"]:
        return Problem(
            what,
            why=f"the share of {data.validation} for validation took all {validation.counts['rows']} rows",
            fix="data.validation: a smaller share, or a file; or more rows",
        )
    return Problem(
        what,
        why=f"of {counts['rows']} rows, {counts['dropped_overlong']} have no answer that fits in "
        f"{data.max_seq_len} tokens and {counts['without_target']} have no target token",
        fix="raise data.max_seq_len, or give rows with an assistant message",
    )


def map_on_cores(tasks: Sequence[ChunkTask]) -> Iterable[ChunkReceipt]:
    """Run the tasks here, in processes of their own where the data is large enough to pay for them."""
    num_bytes = sum(as_path(name).stat().st_size for name in {task.chunk.file for task in tasks})
    processes = min(len(tasks), len(os.sched_getaffinity(0)))
    if processes < 2 or num_bytes < _POOL_ABOVE_BYTES:
        return [prepare_chunk(task) for task in tasks]
    # spawn: a forked child would inherit the locks of Ray's and the tokenizer's threads.
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_use_one_thread) as pool:
            try:
                return list(pool.map(prepare_chunk, tasks))
            except KeyboardInterrupt:  # else those that have not begun were all done before it is heard
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise ClusterError(
            Problem(
                "a process that prepared tokens was killed",
                why="from outside; mostly it is the system, when memory runs out",
                fix="free memory, or prepare on a machine with more of it; nothing is left half done",
            )
        ) from error


def _use_one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
