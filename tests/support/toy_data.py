"""Small data files, and a tokenizer of a token a byte, so that every count can be done by hand.

A user's message of n characters is 8 + n tokens (`<|im_start|>user\\n…<|im_end|>\\n`), an assistant's 13 + n, of
which n + 1 are targets; its turn ends one token earlier, before the line end.
"""

import json
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from toy_chat import CHATML, SIMPLE, build_byte_tokenizer, chat

from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.prepare import Prepared, prepare_tokens
from sftray.train_fn.prepare_chunk import ChunkTask, prepare_chunk
from sftray.train_fn.receipt import ChunkReceipt
from sftray.train_fn.tokenizer import load_tokenizer

Row = Sequence[str]


def write_chats(path: Path, rows: Sequence[Row | str]) -> Path:
    """A row of texts, of user and assistant in turn, is a line; a text stands there as it is."""
    lines = [row if isinstance(row, str) else json.dumps({"messages": chat(*row).messages}) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def save_byte_tokenizer(folder: Path, template: str | None = SIMPLE, special: Sequence[str] = CHATML) -> ModelConfig:
    """The config of an untrained model with this tokenizer."""
    build_byte_tokenizer(template, special, merges=()).save_pretrained(folder)
    return ModelConfig(scratch={"architecture": "llama"}, tokenizer=str(folder))


def prepare(model: ModelConfig, root: Path, train: Path | Sequence[Path], **settings: Any) -> Prepared:
    paths = str(train) if isinstance(train, Path) else [str(path) for path in train]
    return prepare_tokens(model, DataConfig(train=paths, **settings), root, load_tokenizer(model))


_others: list[Barrier] = []  # of this process, if it is one of several


def join_others(barrier: Barrier) -> None:
    _others.append(barrier)


def prepare_at_once(model: ModelConfig, data: DataConfig, root: Path) -> tuple[str, bool]:
    """What one of several processes does: prepare, and publish when all of them are about to."""
    prepared = prepare_tokens(model, data, root, load_tokenizer(model), _prepare_and_wait)
    return str(prepared.folder), prepared.reused


def _prepare_and_wait(tasks: Sequence[ChunkTask]) -> list[ChunkReceipt]:
    done = [prepare_chunk(task) for task in tasks]
    _others[0].wait(120)
    return done
