"""Loading the tokenizer of a run, with its chat template settled."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftray.train_fn.chat_template import ensure_template
from sftray.train_fn.config import ModelConfig
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.local_copies import copy_source

ASSETS = Path(__file__).parent / "assets"
SHIPPED = {"quickstart": ASSETS / "quickstart" / "tokenizer"}


@dataclass(frozen=True)
class LoadedTokenizer:
    """`added_tokens`: special tokens that the shipped template needed and the tokenizer lacked."""

    tokenizer: Any  # transformers' PreTrainedTokenizerFast
    added_tokens: tuple[str, ...]

    @property
    def pad_id(self) -> int:
        """What fills the rows of a batch. Any id will do: padding predicts nothing and nothing sees it."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else 0)


def load_tokenizer(model: ModelConfig) -> LoadedTokenizer:
    """Load `model.tokenizer`, or the model's own.

    Raises:
        ConfigError: it cannot be found, is not a fast one, or has no chat template and none is asked for.
    """
    from transformers import AutoTokenizer

    name = model.tokenizer or model.name
    assert name is not None  # the config has one of the two
    key = "model.tokenizer" if model.tokenizer else "model.name"
    try:
        tokenizer = AutoTokenizer.from_pretrained(copy_source(str(SHIPPED.get(name, name))), trust_remote_code=False)
    except Exception as error:  # over broken files it raises anything, Exception itself too; the problem says it
        raise ConfigError(describe_missing(name, key, "tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            Problem(
                f"the tokenizer of {name!r} has no fast version",
                why="targets are found by the places of characters, which only a tokenizer.json gives",
                fix=f"convert it, or set {key} to a folder with a tokenizer.json",
            )
        )
    return LoadedTokenizer(tokenizer, tuple(ensure_template(tokenizer, model.chat_template)))


def explain_foreign(error: BaseException) -> str:
    """What another library's error says, on one line; with its kind where the text alone may say nothing."""
    text = " ".join(str(error).split())[:300]
    if text and isinstance(error, OSError | ValueError):
        return text
    return explain_foreign(error.__cause__) if error.__cause__ else f"{type(error).__name__}: {text}"


def describe_missing(name: str, key: str, what: str, error: Exception) -> Problem:
    """A hub id or folder that could not be loaded, in words; transformers' own text is the reason."""
    return Problem(
        f"{key}: no {what} can be loaded from {name!r}",
        why=explain_foreign(error),
        fix=f"{key}: a folder with the {what}'s files, or a hub id this machine can reach or has cached",
    )


def hash_tokenizer(tokenizer: Any) -> str:
    """A digest of everything that decides the tokens: vocabulary, merges, added tokens, and the template."""
    text = tokenizer.backend_tokenizer.to_str() + "\0" + str(tokenizer.chat_template)
    special = sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())
    return hashlib.sha256(f"{text}\0{special}".encode()).hexdigest()
