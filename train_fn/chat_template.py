"""Which chat template a run uses: the tokenizer's own, one that ships, or a file."""

import difflib
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import AddedToken
from transformers.utils.chat_template_utils import render_jinja_template

from sftray.train_fn.chat_render import RENDER_ERRORS
from sftray.train_fn.errors import ConfigError, Problem
from sftray.train_fn.local_copies import copy_source

_FOLDER = Path(__file__).parent / "assets" / "templates"
_SHIPPED_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>"), "minimind": ("<s>", "</s>")}
_KEY = "model.chat_template"


def ensure_template(tokenizer: Any, chat_template: str | None) -> list[str]:
    """Set the tokenizer's chat template, and see that it has one.

    Args:
        chat_template: None keeps the tokenizer's own; else the name of a shipped template, or a .jinja file.

    Returns:
        The special tokens that a shipped template needs and the vocabulary lacked. They are added; the caller
        must resize the model's embeddings.

    Raises:
        ConfigError: there is no template, no such file or name, or it is not well-formed (with file and line).
    """
    if chat_template is None:
        _check_own(tokenizer)
        return []
    path = _find_template(chat_template)
    source = _read_template(path)
    _check_syntax(source, str(path))
    tokenizer.chat_template = source
    return _add_tokens(tokenizer, _SHIPPED_TOKENS.get(chat_template, ()))


def _check_own(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ConfigError(
            Problem(
                "the tokenizer has no chat template",
                why="base models often have none; it says how a chat becomes one text",
                fix=f"{_KEY}=chatml, which ships, or {_KEY}=FILE.jinja",
            )
        )
    own = tokenizer.chat_template
    for source in own.values() if isinstance(own, dict) else [own]:
        _check_syntax(source, "the tokenizer's chat template")


def _find_template(name: str) -> Path:
    shipped = _FOLDER / f"{name}.jinja"
    if name in _list_shipped():
        return shipped
    path = Path(copy_source(name)).expanduser()
    if path.is_file():
        return path
    siblings = sorted(str(other) for other in path.parent.glob("*.jinja")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(name, [*_list_shipped(), *siblings], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        Problem(
            f"{_KEY}: {name} is neither a file nor a shipped template.{hint}",
            why=f"templates that ship: {', '.join(_list_shipped())}",
            fix=f"{_KEY}={near[0] if near else 'chatml'}",
        )
    )


def _list_shipped() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(f"{_KEY}: the file cannot be read", str(path), str(error), "give a text file in UTF-8")
        raise ConfigError(problem) from error


def _check_syntax(source: str, name: str) -> None:
    """Refuse what is no template at all; whether it suits chats is found out when it is probed."""
    try:
        render_jinja_template([[{"role": "user", "content": ""}]], chat_template=source)
    except TemplateSyntaxError as error:
        line = source.splitlines()[error.lineno - 1].strip() if source else ""
        raise ConfigError(
            Problem(f"{error.message}", f"{name}:{error.lineno}", f"the line is {line!r}", "correct the template")
        ) from error
    except RENDER_ERRORS:
        return


def _add_tokens(tokenizer: Any, tokens: tuple[str, ...]) -> list[str]:
    known = tokenizer.get_vocab()
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(special, special_tokens=True)
    return [token for token in tokens if token not in known]
