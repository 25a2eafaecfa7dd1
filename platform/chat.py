"""Talking to a checkpoint of a run, in the chat template it was trained with."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging

from sftray.platform.terminal import show_controls
from sftray.train_fn.chat_render import Template
from sftray.train_fn.checkpoint import (
    Checkpoint,
    find_best,
    find_newest,
    list_checkpoints,
    open_place,
    verify_checkpoint,
)
from sftray.train_fn.errors import CheckpointError, ConfigError, Problem
from sftray.train_fn.journal import CHECKPOINTS
from sftray.train_fn.places import spell

Step = int | Literal["best", "newest"]

_HELP = "/reset forgets the conversation, /quit ends it, Ctrl-C stops an answer"


@dataclass
class Speaker:
    """A loaded checkpoint and what was said so far. `temperature` 0 takes the likeliest token each time."""

    model: Any
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    history: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str) -> str:
        """Answer, writing the words to standard output as they come. An answer that is stopped leaves no trace.

        Raises:
            ConfigError: the question alone is longer than what the model can see.
        """
        messages = self._fit([*self.history, {"role": "user", "content": question}])
        ids = self._encode(messages)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(self.max_new_tokens, self._limit - ids.shape[1]),
            streamer=_PlainStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **sampling,
        )
        text = str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()
        self.history = [*messages, {"role": "assistant", "content": text}]
        return text

    @property
    def _limit(self) -> int:
        """Tokens that the model can see at once."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit or sys.maxsize  # some have no limit

    def _encode(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Token ids [1, num_tokens], up to where the answer begins."""
        # As in training, and so not by apply_chat_template, which would write today's date where a template has one.
        text = Template(self.tokenizer, self.tokenizer.get_chat_template()).render(messages, None, prompt=True)
        encoded = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids: torch.Tensor = encoded["input_ids"].to(self.model.device)
        return ids

    def _fit(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The messages without the oldest question and answer pairs that leave no room for a new answer."""
        while (length := self._encode(messages).shape[1]) + self.max_new_tokens > self._limit and len(messages) > 1:
            messages = messages[2:]
        if length >= self._limit:
            raise ConfigError(
                Problem(
                    f"the question has {length} tokens with its chat template",
                    why=f"the model sees {self._limit} tokens at once, the answer among them",
                    fix="ask something shorter",
                )
            )
        return messages


class _PlainStreamer(TextStreamer):  # type: ignore[misc]  # transformers is not annotated
    """Words to standard output; control characters that a model makes up do nothing to the terminal."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(show_controls(text), end="\n" if stream_end else "", flush=True)


def chat_with_run(
    run: Path, step: Step, question: str | None, max_new_tokens: int = 256, temperature: float = 0.0
) -> None:
    """Answer `question`, or what standard input holds, or else talk on the terminal until the person ends it.

    Raises:
        CheckpointError: the run has no such checkpoint, or it is damaged.
        ConfigError: there is no question, or it is too long.
    """
    checkpoint = choose_checkpoint(run, step)
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise ConfigError(Problem("the question is empty", fix='--ask "TEXT", or text on standard input'))
    speaker = load_speaker(checkpoint, max_new_tokens, temperature)
    if question is not None:
        speaker.answer(question.strip())
    else:
        print(f"{run.name}, step {checkpoint.step}. {_HELP}.")
        _talk(speaker)


def read_step(text: str) -> Step:
    """`newest`, `best` or a number. Raises ConfigError for anything else."""
    match text:
        case "newest" | "best":
            return text
        case _ if text.isascii() and text.isdigit():
            return int(text)
    raise ConfigError(Problem(f"--step {text} is no step", fix="--step: newest, best, or a number such as 120"))


def choose_checkpoint(run: Path, step: Step) -> Checkpoint:
    """The whole checkpoint of `run` that `step` names. Raises CheckpointError where there is none."""
    root = run / CHECKPOINTS
    found = list_checkpoints(root)
    if not found:
        raise CheckpointError(
            Problem(
                "this run has no checkpoint",
                where=str(run),
                why="one is written every train.save_every steps, and at the end of a run",
                fix=f"sftray runs show {spell(run)} says how far it came",
            )
        )
    steps = ", ".join(str(checkpoint.step) for checkpoint in found)
    if step == "newest":
        chosen = find_newest(root)
    elif step == "best":
        chosen = find_best(root)
    else:
        chosen = next((checkpoint for checkpoint in found if checkpoint.step == step), None)
    if chosen is None:
        what = {"newest": "no checkpoint is whole", "best": "no checkpoint has a validation loss"}
        raise CheckpointError(
            Problem(
                what.get(str(step), f"there is no checkpoint of step {step}"),
                where=str(root),
                why=f"checkpoints here are of step {steps}",
                fix="--step newest, or one of these",
            )
        )
    chosen = replace(chosen, folder=open_place(root).fetch(f"{CHECKPOINTS}/{chosen.name}", chosen.manifest.files))
    if wrong := verify_checkpoint(chosen):
        raise CheckpointError(
            Problem(
                f"the checkpoint of step {chosen.step} is damaged",
                where=str(chosen.folder),
                why="; ".join(wrong),
                fix=f"--step: another of {steps}",
            )
        )
    return chosen


def load_speaker(checkpoint: Checkpoint, max_new_tokens: int, temperature: float) -> Speaker:
    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            Problem(
                "the checkpoint cannot be loaded",
                where=str(folder),
                why=reason,
                fix="install the version of transformers that wrote it",
            )
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Speaker(model.to(device).eval(), tokenizer, max_new_tokens, temperature)


def _talk(speaker: Speaker) -> None:
    """Question and answer, until the end of the input or /quit."""
    while True:
        try:
            question = input("\nyou: ").strip()
        except EOFError:
            print()
            return
        if question == "/quit":
            return
        if question == "/reset":
            speaker.history = []
            print("forgotten")
        elif question:
            _answer_stoppable(speaker, question)


def _answer_stoppable(speaker: Speaker, question: str) -> None:
    print("\nmodel: ", end="", flush=True)
    try:
        speaker.answer(question)
    except KeyboardInterrupt:
        print(" …")
    except ConfigError as error:  # too long a question ends no conversation
        print(error)
