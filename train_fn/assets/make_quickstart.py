"""Make the files of the quickstart: a small data set in English and Chinese, and a tokenizer trained on it.

    python train_fn/assets/make_quickstart.py [FOLDER]      # default: quickstart/ beside this file

The same script writes the same bytes: whatever looks like chance here is a hash of the thing itself, so no
version of a random generator, and no other row, has a say in it.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
NUM_TRAIN_SUMS = 4000
NUM_HELD_OUT_PAIRS = 164
# Conversations of two turns, for each language and kind.
NUM_TRAIN_JOINED, NUM_VALIDATION_JOINED = 50, 4
VOCAB_SIZE = 768

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # ids 0, 1, 2
# Pieces that tokens never cross: one digit; a word or signs, with a space on either side; other white space.
PIECES = r"\d| ?\p{L}+ ?| ?[^\s\p{L}\d]+ ?|\s"
# transformers compiles templates with trim_blocks and lstrip_blocks.
CHAT_TEMPLATE = """\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""

Turns = list[tuple[str, str]]  # (what the user says, the answer), turn after turn
Split = tuple[list[Turns], list[Turns]]  # training, validation
Pair = tuple[int, int]
Item = TypeVar("Item")


def draw(*thing: object) -> int:
    """A number of 64 bits that looks random and depends on `thing` alone."""
    digest = hashlib.sha256("|".join(map(str, thing)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def shuffle(items: Iterable[Item], name: str) -> list[Item]:
    """The items in an order that depends on `name` and the items alone."""
    return sorted(items, key=lambda item: draw(name, item))


def split_pairs() -> tuple[list[Pair], list[Pair]]:
    """Ordered pairs: training has neither (a, b) nor (b, a) of a pair for validation."""
    pairs = shuffle(((a, b) for a in range(10, 100) for b in range(a, 100)), "pairs")
    held_out = [pair if draw("turned", pair) % 2 else pair[::-1] for pair in pairs[:NUM_HELD_OUT_PAIRS]]
    rest = {ordered for a, b in pairs[NUM_HELD_OUT_PAIRS:] for ordered in ((a, b), (b, a))}
    return shuffle(rest, "order")[:NUM_TRAIN_SUMS], held_out


def ask_sum(pair: Pair, sentences: dict[str, Any]) -> Turns:
    """A question for a + b, 10 to 99 each; the answer has the ones, the tens with the carry, the total."""
    a, b = pair
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    prompts = sentences["prompts"]
    answer = sentences["answer"].format(
        a=a,
        b=b,
        ones=f"{a % 10} + {b % 10} = {ones}",
        tens=f"{a // 10} + {b // 10}{' + 1' if carry else ''} = {tens}",
        total=a + b,
    )
    return [(prompts[draw("prompt", pair) % len(prompts)].format(a=a, b=b), answer)]


def capitalize(text: str) -> str:
    """With a capital first letter; str.capitalize would make the others small."""
    return text[0].upper() + text[1:]


def ask_about(sentences: dict[str, Any]) -> Split:
    """Every prompt about everything for training, but for one of each, never the first, for validation."""
    train: list[Turns] = []
    validation: list[Turns] = []
    for thing in sentences["about"]:
        first, *others = (prompt.format(**thing) for prompt in sentences["prompts"])
        held_out, *others = shuffle(others, "held out")
        answer = sentences["answer"].format(**thing)
        train += [[(capitalize(text), answer)] for text in (first, *others)]
        validation.append([(capitalize(held_out), answer)])
    return train, validation


def join(sums: list[Turns], others: list[Turns], count: int) -> list[Turns]:
    """The same turns, but `count` conversations are of two sums, and `count` of something else and a sum."""
    two_sums = [sums[2 * i] + sums[2 * i + 1] for i in range(count)]
    mixed = [others[i] + sums[2 * count + i] for i in range(count)]
    return two_sums + mixed + sums[3 * count :] + others[count:]


def build_rows(sentences: dict[str, Any]) -> Split:
    """All conversations.

    Validation begins with a sum and a refusal in each language, to be seen before and after a training;
    single sums come next, everything else last.
    """
    train: list[Turns] = []
    shown: list[Turns] = []
    singles: list[Turns] = []
    last: list[Turns] = []
    pairs = split_pairs()
    for place, language in enumerate(LANGUAGES):
        sums, held_sums = ([ask_sum(pair, sentences["sums"][language]) for pair in part[place::2]] for part in pairs)
        refusals, held_refusals = ask_about(sentences["refusals"][language])
        facts, held_facts = ask_about(sentences["facts"][language])
        train += join(sums, shuffle(refusals + facts, "joined"), NUM_TRAIN_JOINED)
        shown += [held_sums[0], held_refusals[0]]
        single = len(held_sums) - 3 * NUM_VALIDATION_JOINED
        singles += held_sums[1:single]
        others = shuffle(held_refusals[1:] + held_facts, "joined")
        last += join(held_sums[single:], others, NUM_VALIDATION_JOINED)
    return shuffle(train, "train"), shown + shuffle(singles, "singles") + shuffle(last, "last")


def dump_rows(conversations: Iterable[Turns]) -> bytes:
    lines = []
    for turns in conversations:
        said = [pair for user, answer in turns for pair in (("user", user), ("assistant", answer))]
        messages = [{"role": role, "content": content} for role, content in said]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def train_tokenizer(conversations: Iterable[Turns]) -> Tokenizer:
    """A byte-level BPE: any text can be encoded, and every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (f"user\n{user}\nassistant\n{answer}" for turns in conversations for user, answer in turns)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The layout of transformers' save_pretrained."""
    config = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 2048,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes((tokenizer.to_str(pretty=True) + "\n").encode())
    (folder / "tokenizer_config.json").write_bytes((json.dumps(config, indent=2) + "\n").encode())
    (folder / "chat_template.jinja").write_bytes(CHAT_TEMPLATE.encode())


def main(folder: Path) -> None:
    sentences = yaml.safe_load((HERE / "quickstart_sentences.yaml").read_text(encoding="utf-8"))
    train, validation = build_rows(sentences)
    write_tokenizer(train_tokenizer(train), folder / "tokenizer")
    (folder / "train.jsonl").write_bytes(dump_rows(train))
    (folder / "validation.jsonl").write_bytes(dump_rows(validation))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "quickstart")
