"""Talking to a checkpoint: a tiny model with random weights has little to say, but it says it."""

import io
from pathlib import Path
from typing import Any

import pytest
from run_dirs import write_checkpoint, write_run
from tiny import build_model, build_tokenizer

from sftray.platform.chat import Speaker, chat_with_run, choose_checkpoint, load_speaker, read_step
from sftray.train_fn.checkpoint import Checkpoint, Manifest, commit_checkpoint
from sftray.train_fn.errors import CheckpointError, ConfigError
from sftray.train_fn.journal import CHECKPOINTS, Journal

TEMPLATE = (
    "{% for m in messages %}{{ m.role[:1] | replace('u', 'w3') | replace('a', 'w4') }} {{ m.content }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}w4 {% endif %}"
)

Capture = pytest.CaptureFixture[str]


def save_model(journal: Journal, step: int, seed: int = 0) -> Checkpoint:
    """A checkpoint that can talk: 16 tokens of context, two layers."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE

    def write(folder: Path) -> None:
        model = build_model(seed=seed, max_position_embeddings=64)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return commit_checkpoint(journal.folder / CHECKPOINTS, Manifest(step, 1, "c", "d", 1 / step), write)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    journal = write_run(tmp_path_factory.mktemp("store"))
    for step in (10, 20):
        save_model(journal, step, seed=step)
    return journal


def ask(run: Path, capsys: Capture, question: str | None = "w5 w6", **options: Any) -> str:
    settings: dict[str, Any] = {"step": "newest", "max_new_tokens": 5, **options}
    chat_with_run(run, question=question, **settings)
    return capsys.readouterr().out


@pytest.mark.slow
def test_one_answer(journal: Journal, capsys: Capture) -> None:
    said = ask(journal.folder, capsys)
    assert said.endswith("\n")
    assert 1 <= len(said.split()) <= 5
    assert set(said.split()) <= {f"w{number}" for number in range(3, 97)}
    assert ask(journal.folder, capsys) == said  # greedy


def test_another_step_is_another_model(journal: Journal, capsys: Capture) -> None:
    newest, older = (ask(journal.folder, capsys, step=step) for step in ("newest", 10))
    assert newest == ask(journal.folder, capsys, step=20)
    assert newest != older


def test_what_is_streamed_is_the_answer(journal: Journal, capsys: Capture) -> None:
    speaker = load_speaker(choose_checkpoint(journal.folder, "newest"), 5, 0.0)
    answer = speaker.answer("w5")
    assert capsys.readouterr().out.strip() == answer
    assert speaker.history == [{"role": "user", "content": "w5"}, {"role": "assistant", "content": answer}]


def test_the_question_from_standard_input(journal: Journal, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" w5 w6\n"))
    piped = ask(journal.folder, capsys, None)
    assert piped == ask(journal.folder, capsys, "w5 w6")


def test_no_question(journal: Journal, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(ConfigError, match="the question is empty"):
        ask(journal.folder, capsys, None)


def make_speaker(journal: Journal, max_new_tokens: int = 5) -> Speaker:
    return load_speaker(choose_checkpoint(journal.folder, "newest"), max_new_tokens, 0.0)


def test_what_was_said_is_remembered_until_it_does_not_fit(journal: Journal, capsys: Capture) -> None:
    speaker = make_speaker(journal)
    lengths = []
    for number in range(12):
        speaker.answer(f"w{number + 5} w8 w9")
        lengths.append(len(speaker.history))
    assert lengths[:3] == [2, 4, 6]
    assert max(lengths) < 24
    assert speaker.history[-2]["content"] == "w16 w8 w9"  # the newest stays, the oldest goes


def test_a_question_that_is_too_long(journal: Journal) -> None:
    speaker = make_speaker(journal)
    with pytest.raises(ConfigError, match=r"the question has 83 tokens(.|\n)*sees 64 tokens"):
        speaker.answer(" ".join(["w5"] * 80))
    assert speaker.history == []


def test_an_answer_never_outgrows_the_context(journal: Journal, capsys: Capture) -> None:
    speaker = make_speaker(journal, max_new_tokens=1000)
    speaker.answer("w5 w6")
    assert len(capsys.readouterr().out.split()) <= 64 - 5


def test_sampling(journal: Journal, capsys: Capture) -> None:
    answers = {ask(journal.folder, capsys, temperature=5.0, max_new_tokens=20) for _ in range(3)}
    assert len(answers) > 1


def test_a_conversation(journal: Journal, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"w5\n\n{'w6 ' * 80}\n/reset\nw5\n/quit\nw7\n"))
    said = ask(journal.folder, capsys, None)
    assert said.startswith("alpha, step 20. /reset forgets")
    assert "the question has 83 tokens" in said
    first, second = (part.split("\n")[0] for part in said.split("model: ")[1::2])
    assert first == second  # the same question after /reset
    assert said.count("model: ") == 3


def test_the_end_of_input_ends_it(journal: Journal, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert ask(journal.folder, capsys, None).endswith("you: \n")


def test_the_best_step(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0)):
        write_checkpoint(journal, step, loss)
    chosen = {step: choose_checkpoint(journal.folder, read_step(step)).step for step in ("newest", "best", "10")}
    assert chosen == {"newest": 30, "best": 20, "10": 10}


def damage(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "weights").write_bytes(b"\1" * 2048)


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    with pytest.raises(CheckpointError, match="this run has no checkpoint"):
        choose_checkpoint(journal.folder, "newest")
    made = write_checkpoint(journal, 10)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint of step 11(.|\n)*of step 10"):
        choose_checkpoint(journal.folder, 11)
    with pytest.raises(CheckpointError, match="no checkpoint has a validation loss"):
        choose_checkpoint(journal.folder, "best")
    damage(made)
    with pytest.raises(CheckpointError, match=r"step 10 is damaged(.|\n)*weights does not have the hash"):
        choose_checkpoint(journal.folder, 10)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        choose_checkpoint(journal.folder, "newest")


def test_a_checkpoint_that_is_no_model(tmp_path: Path) -> None:
    journal = write_run(tmp_path)
    write_checkpoint(journal, 10)
    with pytest.raises(CheckpointError, match="the checkpoint cannot be loaded"):
        chat_with_run(journal.folder, 10, "hello")
