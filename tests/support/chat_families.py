"""The published chat formats, with small tokenizers that know their special tokens."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken
from toy_chat import CHATML, build_byte_tokenizer, encode_one, read_targets, read_template
from transformers import PreTrainedTokenizerFast

from sftray.train_fn.chat import build_chat_format
from sftray.train_fn.rows import Conversation

LLAMA3 = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
GEMMA = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
MISTRAL = ("<s>", "</s>")
MISTRAL_V3 = (
    *MISTRAL,
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
)
# Phi-3's swallow the whitespace behind them.
PHI3 = (
    "<|endoftext|>",
    *(AddedToken(f"<|{t}|>", rstrip=True) for t in ("system", "user", "assistant", "end")),
)
PHI4 = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")

SYSTEM = {"role": "system", "content": "Be brief."}
WEATHER = [{"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": {}}}]


@dataclass(frozen=True)
class Family:
    """A template with the special tokens it needs."""

    template: str
    special: tuple[Any, ...]
    end: str
    named: dict[str, str] = field(default_factory=dict)

    def build(self) -> PreTrainedTokenizerFast:
        return build_byte_tokenizer(read_template(self.template), self.special, **self.named)


FAMILIES = [
    Family("smollm2", CHATML, "<|im_end|>", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    Family("llama3", LLAMA3, "<|eot_id|>", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    Family("llama3_1", LLAMA3, "<|eot_id|>", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    Family("qwen2_5", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    Family("qwen3", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    Family("gemma2", GEMMA, "<end_of_turn>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    Family("gemma3", GEMMA, "<end_of_turn>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    Family("mistral_v1", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("mistral_v3", MISTRAL_V3, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("phi3", PHI3, "<|end|>", {"eos_token": "<|endoftext|>"}),
    Family("phi4", PHI4, "<|im_end|>", {"eos_token": "<|im_end|>"}),
    Family("minimind_old", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("minimind_new", CHATML, "<|im_end|>", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    Family("deepseek_r1", DEEPSEEK, DEEPSEEK[3], {"bos_token": DEEPSEEK[0], "eos_token": DEEPSEEK[3]}),
    Family("vicuna", MISTRAL, "</s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    Family("generation", CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
]
BY_NAME = {family.template: family for family in FAMILIES}


def train(name: str, conversation: Conversation) -> list[str]:
    tokenizer = BY_NAME[name].build()
    return read_targets(tokenizer, encode_one(build_chat_format(tokenizer), conversation))
