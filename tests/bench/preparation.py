"""Speed and memory of preparing tokens.

    python tests/bench/preparation.py [--rows 100000] [--data chats.jsonl --tokenizer FOLDER]

Writes `--rows` conversations (made ones, or those of `--data` over and over, each a little different), prepares
them from nothing as a run would, and prints rows per second and the peak memory of the driver and of the
largest worker process. Then opens the store as a training worker does.
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftray.train_fn.config import DataConfig, ModelConfig
from sftray.train_fn.prepare import prepare_tokens
from sftray.train_fn.token_store import TokenStore
from sftray.train_fn.tokenizer import load_tokenizer


def make_rows() -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        a, b = number % 997, number // 997
        question = {"role": "user", "content": f"Please add {a} and {b}, and say how it is done."}
        answer = {"role": "assistant", "content": f"{a} and {b} together are {a + b}; " * (1 + number % 5)}
        yield {"messages": [question, answer]}


def repeat_rows(path: Path) -> Iterator[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number in itertools.count():
        row = rows[number % len(rows)]
        first = {**row["messages"][0], "content": f"({number}) {row['messages'][0]['content']}"}
        yield {"messages": [first, *row["messages"][1:]]}


def write_rows(rows: Iterator[dict[str, Any]], count: int, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in itertools.islice(rows, count):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default="quickstart")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "rows.jsonl")
        write_rows(repeat_rows(args.data) if args.data else make_rows(), args.rows, path)
        measure(path, args.tokenizer, Path(tmp, "tokens"))


def measure(path: Path, tokenizer: str, store: Path) -> None:
    model = ModelConfig(name="none", tokenizer=tokenizer)
    loaded = load_tokenizer(model)
    prepared = prepare_tokens(model, DataConfig(train=str(path), max_seq_len=4096), store, loaded)
    cost, counts = prepared.receipt["preparation"], prepared.receipt["splits"]["train"]
    per_process = cost["rows_per_second"] / cost["processes"]
    print(
        f"{counts['rows']:,} rows, {counts['tokens'] / counts['kept']:.0f} tokens a row, "
        f"{path.stat().st_size / 2**20:,.0f} MB: {cost['seconds']:.1f} s, {cost['rows_per_second']:,.0f} rows/s "
        f"({per_process:,.0f} for each of {cost['processes']} processes)"
    )
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {driver:,.0f} MB of the driver, {cost['peak_memory_mb']:,.0f} MB of a worker process")
    started = time.perf_counter()
    tokens = TokenStore(prepared.folder, "train")
    total = sum(len(tokens[i].input_ids) for i in range(0, len(tokens), 97))
    print(f"opened and read {len(range(0, len(tokens), 97)):,} examples ({total:,} tokens) in "
          f"{time.perf_counter() - started:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
