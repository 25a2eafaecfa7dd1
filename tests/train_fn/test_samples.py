"""Fixed prompts: where they end, and that answering them together is answering them one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model, build_tokenizer, example, write_store

from sftray.train_fn.loss import TargetHead
from sftray.train_fn.samples import Prompt, answer_prompts, choose_prompts

EOS = 2
TOKENIZER = build_tokenizer()


def choose(folder: Path, *examples: tuple[Sequence[int], Sequence[int]], parameters: int = 10**4) -> Any:
    return choose_prompts(write_store(folder, [example(*each) for each in examples]), TOKENIZER, parameters)


@pytest.mark.parametrize(
    ("ids", "mask", "prompt", "text", "reference"),
    [
        pytest.param([5, 6, 7, 8, EOS], [0, 0, 1, 1, 1], [5, 6], "w5 w6", "w7 w8", id="one answer"),
        pytest.param(
            [5, 7, EOS, 6, 8, 9, EOS],
            [0, 1, 1, 0, 1, 1, 1],
            [5, 7, EOS, 6],
            "w5 w7 w6",
            "w8 w9",
            id="the last of two",
        ),
        pytest.param([5, 7, EOS, 6], [0, 1, 1, 0], [5], "w5", "w7", id="something after the answer"),
        pytest.param([5, 6, 7, 8], [0, 0, 1, 1], [5, 6], "w5 w6", "w7 w8", id="cut before its end"),
        pytest.param([5, 6, EOS], [0, 0, 1], [5, 6], "w5 w6", "", id="an empty answer"),
        pytest.param([1, 5, 6, EOS], [0, 0, 1, 1], [1, 5], "w5", "w6", id="a special token before"),
    ],
)
def test_a_prompt_ends_where_its_last_answer_begins(
    ids: list[int], mask: list[int], prompt: list[int], text: str, reference: str, tmp_path: Path
) -> None:
    prompts, new_tokens = choose(tmp_path, (ids, mask))
    assert prompts == [Prompt(0, prompt, text, reference)]
    assert new_tokens == len(reference.split()) + 8


@pytest.mark.parametrize(
    ("count", "answer_length", "parameters", "chosen", "new_tokens"),
    [
        pytest.param(3, 2, 10**6, 3, 10, id="all of few"),
        pytest.param(120, 2, 10**6, 100, 10, id="a hundred of many"),
        pytest.param(120, 2, 10**8, 30, 10, id="fewer of a large model"),
        pytest.param(120, 2, 10**11, 4, 10, id="four of a huge one"),
        pytest.param(5, 300, 10**6, 5, 128, id="long answers are cut"),
    ],
)
def test_prompts_are_as_many_as_the_model_can_answer(
    count: int, answer_length: int, parameters: int, chosen: int, new_tokens: int, tmp_path: Path
) -> None:
    one = ([5, *[7] * answer_length, EOS], [0, *[1] * (answer_length + 1)])
    prompts, tokens = choose(tmp_path, *[one] * count, parameters=parameters)
    assert [prompt.index for prompt in prompts] == list(range(chosen)) and tokens == new_tokens


def build_prompts() -> list[Prompt]:
    """Of 1 to 23 tokens, so that most of a batch is padding on the left."""
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 23, 2, 9, 17, 4, 1)
    ids = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(i, each, TOKENIZER.decode(each), "") for i, each in enumerate(ids)]


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Any:
    """Sharpened, so that no two words are equally likely to the last digit, and answers differ."""
    built = build_model(request.param)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    return built


def answer_alone(model: Any, prompt: Prompt, new_tokens: int) -> str:
    """By plain generation from the prompt as it is, without a mask or padding."""
    model.eval()
    ids = torch.tensor([prompt.input_ids])
    output = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    model.train()
    text: str = TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_answers_of_a_batch_are_those_of_its_prompts_alone(model: Any, at_once: int) -> None:
    TargetHead(model)  # as in training
    prompts = build_prompts()
    answers = answer_prompts(model, TOKENIZER, prompts, new_tokens=6, at_once=at_once)
    assert model.training
    assert answers == [answer_alone(model, prompt, 6) for prompt in prompts]
    assert len(set(answers)) > 4, "answers that hang on their prompts"


def test_an_answer_ends_at_the_end_token() -> None:
    model = build_model("llama")
    prompt = build_prompts()[1]
    words = answer_prompts(model, TOKENIZER, [prompt], new_tokens=6)[0].split()
    model.generation_config.eos_token_id = [TOKENIZER.convert_tokens_to_ids(words[1])]
    shorter = answer_prompts(model, TOKENIZER, [prompt], new_tokens=6)[0].split()
    assert shorter == words[: words.index(words[1]) + 1] and len(words) == 6


def test_no_prompts_have_no_answers() -> None:
    """A worker that got none of the prompts."""
    assert answer_prompts(build_model("llama"), TOKENIZER, [], new_tokens=6) == []
