"""What every engine must do (`engine/protocol.py`), and what the embedded one does besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.base.errors import UserError
from motet.base.recipe import Chat, Model, Optimizer
from motet.base.records import Completion
from motet.data.chat import ChatFormat
from motet.data.pack import Sample, pack
from motet.engine.protocol import Engine, Request, SamplingParams
from motet.engine.scripted import ScriptedEngine
from motet.engine.transformers import TransformersEngine, draw
from motet.model.load import load_model
from motet.train.learner import Learner
from motet.train.losses import cross_entropy

WARM = SamplingParams(temperature=0.8, top_p=1.0, max_tokens=24)
GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_tokens=8)
PROMPTS = ("1", "12 + 7 = ?", "What is 3?", "W")


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, Chat())


Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def embedded(model_folder: Path, chat: ChatFormat) -> Callable[..., TransformersEngine]:
    def make(batch_size: int = 64) -> TransformersEngine:
        return TransformersEngine(model_folder, Model(path=str(model_folder), device="cpu"), chat, batch_size)

    return make


@pytest.fixture(params=["transformers", "scripted"])
def make(request: pytest.FixtureRequest, embedded: Make, chat: ChatFormat) -> Make:
    if request.param == "transformers":
        return embedded
    replies = {prompt: [prompt, "3+4=07", "x" * 40] for prompt in PROMPTS}
    return lambda batch_size=64: ScriptedEngine(replies, chat.encode, chat.end_token)


def requests(chat: ChatFormat, prompts: Sequence[str] = PROMPTS, seeds: int = 3) -> list[Request]:
    conversations = [({"role": "user", "content": prompt},) for prompt in prompts]
    return [Request(chat.prompt(c), c, 100 * i + s) for i, c in enumerate(conversations) for s in range(seeds)]


def sample(engine: Engine, asked: Sequence[Request], sampling: SamplingParams = WARM) -> list[Completion]:
    found = dict(engine.generate(asked, sampling))
    assert sorted(found) == list(range(len(asked)))
    return [found[index] for index in range(len(asked))]


def words(completions: Sequence[Completion]) -> list[tuple[Any, ...]]:
    return [(c.text, c.tokens, c.stop) for c in completions]


def test_every_request_is_answered_once(make: Make, chat: ChatFormat) -> None:
    indices = [index for index, _ in make(batch_size=5).generate(requests(chat), WARM)]
    assert sorted(indices) == list(range(12))
    assert list(make().generate([], WARM)) == []


def test_a_completion_is_a_function_of_prompt_and_seed_whatever_is_beside_it(make: Make, chat: ChatFormat) -> None:
    asked = requests(chat)
    reference = sample(make(batch_size=64), asked)
    assert len(set(words(reference))) > 5  # the seeds differ, and so do many completions
    for batch_size in (1, 3):
        assert words(sample(make(batch_size=batch_size), asked)) == words(reference)
    assert words(sample(make(batch_size=5), asked[::-1])[::-1]) == words(reference)
    assert words(sample(make(), asked[4:6])) == words(reference[4:6])


def test_an_ended_completion_holds_its_end_token_and_a_cut_one_has_the_full_length(
    make: Make, chat: ChatFormat
) -> None:
    completions = sample(make(), requests(chat, seeds=8))
    assert {c.stop for c in completions} == {"end", "length"}
    for completion in completions:
        assert len(completion.logprobs) == len(completion.tokens) <= WARM.max_tokens
        ends = [i for i, token in enumerate(completion.tokens) if token in chat.stop_tokens]
        assert ends == ([len(completion.tokens) - 1] if completion.stop == "end" else [])
        assert completion.text == chat.decode(completion.tokens)
        assert completion.stop == "end" or len(completion.tokens) == WARM.max_tokens


def test_completions_carry_the_version_of_the_weights(make: Make, chat: ChatFormat, embedded: Make) -> None:
    engine = make()
    assert engine.version == 0 and {c.version for c in sample(engine, requests(chat))} == {0}
    weights = embedded().model.state_dict().items()  # type: ignore[attr-defined]
    engine.load(weights, 7)
    assert engine.version == 7 and {c.version for c in sample(engine, requests(chat))} == {7}


def test_greedy_is_the_largest_logit_of_the_full_forward_pass(
    embedded: Make, chat: ChatFormat, model_folder: Path
) -> None:
    model = load_model(model_folder, "sdpa", torch.device("cpu"), torch.float32)
    for request, completion in zip(
        requests(chat, seeds=1), sample(embedded(), requests(chat, seeds=1), GREEDY), strict=True
    ):
        tokens = list(request.prompt_tokens)
        while len(tokens) < len(request.prompt_tokens) + GREEDY.max_tokens and tokens[-1] not in chat.stop_tokens:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert completion.tokens == tuple(tokens[len(request.prompt_tokens) :])


def as_samples(asked: Sequence[Request], completions: Sequence[Completion]) -> list[Sample]:
    return [
        Sample(
            r.prompt_tokens + c.tokens,
            (False,) * len(r.prompt_tokens) + (True,) * len(c.tokens),
            logprobs=c.logprobs,
        )
        for r, c in zip(asked, completions, strict=True)
    ]


def largest_difference(learner: Learner, samples: Sequence[Sample], temperature: float) -> float:
    batches = pack(samples, 64)
    found = zip(batches, learner.logprobs(batches, temperature), strict=True)
    return max(float((batch.behaviour_N - logprobs_N).abs().max()) for batch, logprobs_N in found)


def trained(model_folder: Path, chat: ChatFormat) -> Learner:
    config = Optimizer(learning_rate=0.02, warmup_steps=0, schedule="constant")
    learner = Learner(model_folder, Model(path=str(model_folder), device="cpu"), config, 40)
    prompt = chat.prompt([{"role": "user", "content": "1"}])
    answer = chat.completion({"role": "assistant", "content": "x", "reasoning_content": "3"})
    text = Sample(prompt + answer, (False,) * len(prompt) + (True,) * len(answer))
    for _ in range(40):
        learner.accumulate(pack([text], 64), cross_entropy)
        learner.update()
    return learner


def test_log_probabilities_are_the_learners_and_new_weights_take_effect(
    embedded: Make, chat: ChatFormat, model_folder: Path
) -> None:
    learner, engine, asked = trained(model_folder, chat), embedded(batch_size=7), requests(chat)
    before = as_samples(asked, sample(engine, asked))
    assert largest_difference(learner, before, WARM.temperature) > 0.1  # the learner has moved away
    engine.load(learner.weights(), learner.version)
    after = as_samples(asked, sample(engine, asked))
    assert largest_difference(learner, after, WARM.temperature) < 1e-4
    (greedy,) = sample(engine, asked[:1], GREEDY)
    assert (greedy.text, greedy.stop, greedy.version) == ("<think>3</think>x", "end", 40)


def test_a_left_padded_batch_generates_what_single_prompts_do(embedded: Make, chat: ChatFormat) -> None:
    asked = requests(chat, ("1", "What is 12 + 7 = ? " * 3), seeds=2)  # lengths far apart: much padding
    together, alone = sample(embedded(), asked), [sample(embedded(), [request])[0] for request in asked]
    assert words(together) == words(alone)
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_weights_that_do_not_fit_or_are_not_all_there_are_refused(embedded: Make) -> None:
    engine = embedded()
    weights = dict(engine.model.state_dict())  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="new weights do not fit the engine's model: extra of shape"):
        engine.load([*weights.items(), ("extra", torch.zeros(3))], 1)
    with pytest.raises(UserError, match=r"do not fit the engine's model: model\.norm\.weight of shape \(3,\)"):
        engine.load((weights | {"model.norm.weight": torch.zeros(3)}).items(), 1)
    del weights["model.norm.weight"]
    with pytest.raises(UserError, match=r"incomplete: \['model\.norm\.weight'\] are missing"):
        engine.load(weights.items(), 1)
    assert engine.version == 0


def test_a_prompt_that_leaves_no_room_for_the_completion_is_refused_with_the_numbers(
    embedded: Make, chat: ChatFormat
) -> None:
    (short,) = requests(chat, ("1",), 1)  # 3 tokens; the model has 96 positions
    assert sample(embedded(), [short], SamplingParams(1.0, 1.0, 93))
    with pytest.raises(UserError, match=r"prompt of 3 tokens and sampling\.max_tokens = 94 are 97 positions.* 96;"):
        sample(embedded(), [short], SamplingParams(1.0, 1.0, 94))


def probabilities(*values: float) -> torch.Tensor:
    return torch.tensor([values]).log()


@pytest.mark.parametrize(
    ("uniform", "top_p", "token"),
    [
        (0.0, 1.0, 0), (0.09, 1.0, 0), (0.11, 1.0, 1), (0.69, 1.0, 1), (0.71, 1.0, 2), (0.999, 1.0, 2),
        # the nucleus of 0.85 is the tokens 1 (0.6) and 2 (0.3), in the proportion 2 to 1
        (0.0, 0.85, 1), (0.66, 0.85, 1), (0.67, 0.85, 2), (0.999, 0.85, 2),
        (0.999, 0.6, 1), (0.999, 0.61, 2), (0.0, 0.01, 1),
    ],
)  # fmt: skip
def test_a_token_is_drawn_by_inverting_the_cumulative_distribution_of_the_nucleus(
    uniform: float, top_p: float, token: int
) -> None:
    sampling = SamplingParams(1.0, top_p, 1)
    tokens, logprobs = draw(probabilities(0.1, 0.6, 0.3), torch.tensor([uniform]), sampling)
    assert tokens.tolist() == [token]
    assert logprobs.tolist() == pytest.approx([math.log((0.1, 0.6, 0.3)[token])])  # of the whole distribution


def test_the_temperature_sharpens_what_is_drawn_and_what_is_reported() -> None:
    logits = probabilities(0.2, 0.8)  # squared and scaled to 1: 1/17 and 16/17
    tokens, logprobs = draw(logits, torch.tensor([0.06]), SamplingParams(0.5, 1.0, 1))
    assert tokens.tolist() == [1] and logprobs.tolist() == pytest.approx([math.log(16 / 17)])
    tokens, logprobs = draw(logits, torch.tensor([0.06]), SamplingParams(0.0, 1.0, 1))
    assert tokens.tolist() == [1] and logprobs.tolist() == pytest.approx([math.log(0.8)])


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    count = 20_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1))
    tokens, _ = draw(probabilities(0.1, 0.6, 0.3).expand(count, 3), uniform, SamplingParams(1.0, 1.0, 1))
    # five standard deviations of a share are at most 0.018
    assert (torch.bincount(tokens) / count).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.018)
