"""Fixed prompts answered greedily before and after training: the proof a person can read.

Prompts are the last assistant turns of the first validation examples (of the training ones, if there are no
others): all that stands before the answer is the prompt, the answer itself the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sftray.train_fn.batch import Example
from sftray.train_fn.token_store import TokenStore

_MOST, _FEWEST = 100, 4
_MOST_NEW_TOKENS = 128
# Parameters × prompts × new tokens of one round: a hundred short answers of a model of a million parameters,
# four of a hundred million; larger models have a GPU.
_WORK = 3e10


@dataclass(frozen=True)
class Prompt:
    """`input_ids` end where the answer begins; `reference` is the answer's text, without its end token."""

    index: int
    input_ids: list[int]
    text: str
    reference: str


def choose_prompts(store: TokenStore, tokenizer: Any, num_parameters: int) -> tuple[list[Prompt], int]:
    """The prompts, and how many new tokens an answer may have. The same for every worker count."""
    prompts = [_split_last_answer(store[i], i, tokenizer) for i in range(min(len(store), _MOST))]
    longest = max(len(tokenizer(p.reference, add_special_tokens=False)["input_ids"]) for p in prompts)
    new_tokens = min(longest + 8, _MOST_NEW_TOKENS)
    affordable = int(_WORK / (num_parameters * new_tokens))
    return prompts[: max(_FEWEST, min(_MOST, affordable))], new_tokens


def _split_last_answer(example: Example, index: int, tokenizer: Any) -> Prompt:
    targets = np.flatnonzero(example.loss_mask)
    stop = int(targets[-1]) + 1  # behind the end-of-turn token, or a word where the example was cut
    before = np.flatnonzero(~example.loss_mask[:stop])
    start = int(before[-1]) + 1 if before.size else 0
    ids = example.input_ids.tolist()
    return Prompt(
        index=index,
        input_ids=ids[:start],
        text=tokenizer.decode(ids[:start], skip_special_tokens=True).strip(),
        reference=tokenizer.decode(ids[start:stop], skip_special_tokens=True).strip(),
    )


@torch.no_grad()
def answer_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], new_tokens: int, at_once: int = 32
) -> list[str]:
    """Greedy answers, in the order of the prompts. The model is left in training mode."""
    answers: list[str] = []
    device = model.get_input_embeddings().weight.device
    model.eval()
    try:
        for start in range(0, len(prompts), at_once):
            batch = prompts[start : start + at_once]
            width = max(len(p.input_ids) for p in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(batch):  # padded on the left, so that every answer starts at `width`
                ids[row, width - len(prompt.input_ids) :] = torch.tensor(prompt.input_ids)
                mask[row, width - len(prompt.input_ids) :] = 1
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=new_tokens,
                do_sample=False,
            )
            texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
            answers.extend(text.strip() for text in texts)
    finally:
        model.train()
    return answers
