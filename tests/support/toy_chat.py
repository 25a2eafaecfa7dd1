"""Small tokenizers of each kind, chats, and what a mask trains as text."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sftray.train_fn.chat import ChatFormat, Encoded, build_chat_format
from sftray.train_fn.errors import Problem
from sftray.train_fn.rows import Conversation

TEMPLATES = Path(__file__).parent.parent / "train_fn" / "templates"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
TOOLS = [{"type": "function", "function": {"name": "add"}}]
LATE_ROW = 101  # neither among the first rows of a file nor a hundredth one: checked only if it is unusual

# Like the shipped one, without tools and reasoning.
SIMPLE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def build_byte_tokenizer(
    template: str | None,
    special: Sequence[str | AddedToken] = CHATML,
    *,
    merges: Sequence[tuple[str, str]] = (("Ġ", "e"), ("a", "s"), ("as", "s")),
    **named: str,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, a token a byte but for a few merges; its post-processor trims places, as usual.

    `named` gives special tokens their roles, such as eos_token="</s>".
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[*merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    return finish_tokenizer(backend, template, special, **named)


def build_metaspace_tokenizer(
    template: str | None,
    scheme: Literal["first", "always"],
    special: Sequence[str | AddedToken],
    **named: str,
) -> PreTrainedTokenizerFast:
    """SentencePiece's way: spaces are `▁`, one is put before the text, and other bytes have tokens of their own."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += [chr(code) for code in range(33, 127)] + ["▁o", "▁ok", "<s", "/s>"]
    # A converted vocabulary has merges even into its special tokens.
    merges = [("▁", "o"), ("▁o", "k"), ("<", "s"), ("<s", ">")]
    vocab = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finish_tokenizer(backend, template, ("<unk>", "<s>", "</s>", *special), **named)


def build_unigram_tokenizer(template: str | None, special: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Pieces with scores, the special tokens among them."""
    words = ["<unk>", *special, "▁", *(chr(code) for code in range(33, 127)), "\n"]
    backend = Tokenizer(models.Unigram([(word, -float(number)) for number, word in enumerate(words)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return finish_tokenizer(backend, template, ("<unk>", *special), **named)


def finish_tokenizer(
    backend: Tokenizer, template: str | None, special: Sequence[str | AddedToken], **named: str
) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.chat_template = template
    return tokenizer


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}}


def say(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def chat(*messages: dict[str, Any] | str, tools: list[Any] | None = None, row: int = LATE_ROW) -> Conversation:
    """A conversation; texts are of user and assistant in turn, beginning with the user."""
    full = [
        m if isinstance(m, dict) else {"role": ("user", "assistant")[number % 2], "content": m}
        for number, m in enumerate(messages)
    ]
    return Conversation(full, tools, "chats.jsonl", row, b"")


def encode_one(chat_format: ChatFormat, conversation: Conversation) -> Encoded:
    (encoded,) = chat_format.encode([conversation])
    assert isinstance(encoded, Encoded), encoded
    return encoded


def refuse_one(chat_format: ChatFormat, conversation: Conversation) -> Problem:
    (problem,) = chat_format.encode([conversation])
    assert isinstance(problem, Problem), problem
    assert problem.where == conversation.place
    return problem


def read_targets(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of each run of target tokens."""
    runs = groupby(zip(encoded.loss_mask.tolist(), encoded.input_ids.tolist(), strict=True), key=lambda pair: pair[0])
    return [
        tokenizer.backend_tokenizer.decode([number for _, number in run], skip_special_tokens=False)
        for is_target, run in runs
        if is_target
    ]


def train_text(tokenizer: Any, conversation: Conversation, **settings: Any) -> list[str]:
    """What training on this conversation teaches, answer by answer."""
    return read_targets(tokenizer, encode_one(build_chat_format(tokenizer, **settings), conversation))
