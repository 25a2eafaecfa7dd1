"""Preparing one chunk: render, tokenise, mask, cut, count, write. What one process does alone."""

import os
import resource
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from sftray.train_fn.batch import count_target_tokens
from sftray.train_fn.chat import ChatFormat, Encoded, build_chat_format
from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.errors import Problem
from sftray.train_fn.files import Chunk
from sftray.train_fn.local_copies import upload_folder
from sftray.train_fn.places import as_path, find_bucket
from sftray.train_fn.receipt import ChunkReceipt, SplitReceipt
from sftray.train_fn.rows import Conversation, read_chunk
from sftray.train_fn.token_store import SCHEMA, Split, SplitWriter
from sftray.train_fn.tokenizer import load_tokenizer

_ROWS_AT_ONCE = 256
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere


@dataclass(frozen=True)
class ChunkTask:
    """All that a process needs to prepare one chunk; picklable."""

    chunk: Chunk
    file_index: int
    index: int
    folder: str
    split: Split
    model: ModelConfig
    data: DataConfig
    key: str  # of the store


@lru_cache(maxsize=2)
def _load_format(model_json: str, train_on: Literal["all", "last"], key: str) -> ChatFormat:
    """Once per store and process: the files of a tokenizer may change between two stores, and with them its key."""
    model = ModelConfig.model_validate_json(model_json)
    return build_chat_format(load_tokenizer(model).tokenizer, train_on=train_on)


def prepare_chunk(task: ChunkTask) -> ChunkReceipt:
    """Prepare one chunk: write its Arrow files into the task's folder; count bad rows, raise for none."""
    target = find_bucket(as_path(task.folder))
    if target is None:
        return _prepare_into(Path(task.folder), task)
    with tempfile.TemporaryDirectory(prefix="sftray-") as folder:
        receipt = _prepare_into(Path(folder), task)
        upload_folder(Path(folder), target)
    return receipt


def _prepare_into(folder: Path, task: ChunkTask) -> ChunkReceipt:
    chat_format = _load_format(task.model.model_dump_json(), task.data.train_on, task.key)
    receipt = ChunkReceipt(order=(task.split, task.index), process_id=os.getpid())
    names: list[Split] = ["train", "validation"] if isinstance(task.data.validation, float) else [task.split]
    receipt.splits = {name: SplitReceipt() for name in names}
    writers = {name: SplitWriter(folder / f"{name}-{task.index:05d}.arrow") for name in names}
    for conversations, results in _encode_ahead(chat_format, _read_batches(task.chunk, receipt)):
        columns: dict[Split, dict[str, list[Any]]] = {name: {field: [] for field in SCHEMA.names} for name in names}
        for conversation, encoded in zip(conversations, results, strict=True):
            if isinstance(encoded, Problem):
                receipt.add_problem(encoded)
                continue
            split = _choose_split(conversation, task)
            _keep_row(conversation, encoded, task, receipt, receipt.splits[split], columns[split])
        for name in names:
            writers[name].write(columns[name])
    for writer in writers.values():
        writer.close()
    receipt.cross_check = chat_format.take_counts()
    receipt.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    return receipt


def _read_batches(chunk: Chunk, receipt: ChunkReceipt) -> Iterator[list[Conversation]]:
    rows = read_chunk(chunk)
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        good = [row for row in batch if not isinstance(row, Problem)]
        for row in batch:
            if isinstance(row, Problem):
                receipt.add_problem(row)
        yield good


def _encode_ahead(
    chat_format: ChatFormat, batches: Iterator[list[Conversation]]
) -> Iterator[tuple[list[Conversation], list[Encoded | Problem]]]:
    """Batches with their tokens, in order. Two are under way at a time: the tokenizer runs without Python's lock,
    so one is rendered while another is tokenised."""
    with ThreadPoolExecutor(2) as pool:
        ahead: deque[tuple[list[Conversation], Future[list[Encoded | Problem]]]] = deque()
        for conversations in batches:
            ahead.append((conversations, pool.submit(chat_format.encode, conversations)))
            if len(ahead) > 2:
                done, encoded = ahead.popleft()
                yield done, encoded.result()
        for done, encoded in ahead:
            yield done, encoded.result()


def _choose_split(conversation: Conversation, task: ChunkTask) -> Split:
    """By the conversation's own digest where validation is a fraction, so equal rows never part."""
    fraction = task.data.validation
    if not isinstance(fraction, float):
        return task.split
    return "validation" if int.from_bytes(conversation.digest, "big") < fraction * 2**64 else "train"


def _keep_row(
    conversation: Conversation,
    encoded: Encoded,
    task: ChunkTask,
    receipt: ChunkReceipt,
    split: SplitReceipt,
    columns: dict[str, list[Any]],
) -> None:
    """Decide the fate of one row, count it, and append what is kept."""
    split.counts["rows"] += 1
    split.counts["typed_markers"] += encoded.typed_markers
    targets = count_target_tokens(encoded.loss_mask)
    stop = cut_overlong(encoded, task.data)
    kept = count_target_tokens(encoded.loss_mask[:stop])
    if stop < len(encoded.input_ids) and task.data.overlong == "error":
        receipt.add_problem(_describe_overlong(conversation, encoded, task.data))
        return
    split.counts["target_tokens_lost"] += targets - kept
    if not kept:
        split.add("dropped_overlong" if targets else "without_target", conversation.place)
        return
    if stop < len(encoded.input_ids):
        split.add("cut", conversation.place)
    split.counts.update(kept=1, tokens=stop, target_tokens=kept)
    digest = int.from_bytes(conversation.digest, "big")
    ids, mask = encoded.input_ids[:stop], encoded.loss_mask[:stop]
    row = (ids, mask, kept, task.file_index, conversation.row, digest)
    for name, value in zip(SCHEMA.names, row, strict=True):
        columns[name].append(value)


def cut_overlong(encoded: Encoded, data: DataConfig) -> int:
    """How many leading tokens of a conversation stay: all if they fit, else by `data.overlong`; 0 is none."""
    if len(encoded.input_ids) <= data.max_seq_len:
        return len(encoded.input_ids)
    if data.overlong == "truncate":
        return data.max_seq_len
    if data.overlong == "turns":
        return max((end for end in encoded.turn_ends if end <= data.max_seq_len), default=0)
    return 0


def _describe_overlong(conversation: Conversation, encoded: Encoded, data: DataConfig) -> Problem:
    return Problem(
        f"the row has {len(encoded.input_ids)} tokens, {data.max_seq_len} are allowed",
        where=conversation.place,
        why="data.overlong is error",
        fix="raise data.max_seq_len, or set data.overlong to turns, truncate or drop",
    )
