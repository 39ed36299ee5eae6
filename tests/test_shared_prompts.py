"""The completions of a problem behind one copy of its prompt, and one forward pass for anchor and first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import test_rl
from motet.base.run import Timers
from motet.data.pack import Sample, pack
from motet.model.kernels import Documents, reads_shared_prompts
from motet.rl.objectives import policy_loss
from motet.rl.reuse import learn
from motet.train.learner import Learner


def sample(prompt: tuple[int, ...], completion: tuple[int, ...], advantage: float = 1.0) -> Sample:
    mask = (False,) * len(prompt) + (True,) * len(completion)
    return Sample(prompt + completion, mask, advantage, (-0.5,) * len(completion))


def test_a_prompt_lies_once_before_its_completions_and_all_of_them_go_on_from_it() -> None:
    samples = [sample((5, 6, 7), (8, 9)), sample((4,), (3,)), sample((5, 6, 7), (2,), -1.0)]
    (batch,) = pack(samples, 99, share_prompts=True)
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9, 2, 4, 3]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert batch.documents.lengths == (3, 2, 1, 2) and batch.documents.after == (-1, 0, 0, -1)
    assert batch.targets_N.tolist() == [8, 9, 2, 3] and batch.scored_N.tolist() == [2, 3, 2, 6]
    assert batch.advantages_N.tolist() == [1.0, 1.0, -1.0, 1.0] and batch.order == (0, 2, 1)
    assert batch.sequence_N.tolist() == [0, 0, 1, 2]
    (plain,) = pack(samples, 99)
    assert plain.tokens_T.numel() == 11 and plain.documents.after == ()


def test_completions_that_do_not_fit_beside_their_prompt_have_it_again() -> None:
    samples = [sample((5, 6, 7), (8,) * 4) for _ in range(3)]
    batches = pack(samples, 12, share_prompts=True)
    assert [batch.tokens_T.numel() for batch in batches] == [11, 7]
    assert sorted(index for batch in batches for index in batch.order) == [0, 1, 2]


def test_texts_of_one_prompt_are_rows_of_a_bucket_and_the_first_yields_the_prompt() -> None:
    documents = Documents.plan([2, 1, 2], after=(-1, 0, 0))  # the prompt ab, then x and yz
    (bucket,) = (
        documents.buckets if len(documents.buckets) == 1 else Documents.plan([2, 1, 2], "cpu", 2.0, (-1, 0, 0)).buckets
    )
    assert bucket.gather_SL is not None and bucket.valid_N is not None and bucket.target_N is not None
    assert bucket.gather_SL.tolist() == [[0, 1, 3, 4], [0, 1, 2, 0]]
    taken = bucket.gather_SL.flatten()[bucket.valid_N].tolist()
    assert taken == bucket.target_N.tolist() and sorted(taken) == [0, 1, 2, 3, 4]


def test_gpus_in_half_precision_keep_one_prompt_a_completion() -> None:
    assert reads_shared_prompts("cpu", torch.bfloat16) and reads_shared_prompts("cuda", torch.float32)
    assert not reads_shared_prompts("cuda", torch.bfloat16)


def test_log_probabilities_and_gradients_are_those_of_each_text_alone(model_folder: Path) -> None:
    own = test_rl.learner(model_folder)
    prompts = [(5, 6, 7, 9), (4, 8)]
    samples = [sample(p, tuple(range(3, 4 + n)), 1.0 - n) for p in prompts for n in (1, 4, 2, 7)]
    samples = [replace(s, logprobs=()) for s in samples]
    loss = policy_loss(test_rl.stage().algorithm)
    found: list[tuple[list[torch.Tensor], dict[str, torch.Tensor]]] = []
    for shared in (True, False):
        batches = pack(samples, 32, share_prompts=shared)
        anchors = own.logprobs(batches)
        by_sample = [torch.empty(0)] * len(samples)
        for batch, anchor_N in zip(batches, anchors, strict=True):
            for place, index in enumerate(batch.order):
                by_sample[index] = anchor_N[batch.sequence_N == place]
        own.accumulate(batches, loss, [anchor_N - 0.1 for anchor_N in anchors])
        gradients = {n: p.grad.clone() for n, p in own.model.named_parameters() if p.grad is not None}
        own.discard()
        found.append((by_sample, gradients))
    (ours, gradients), (theirs, wanted) = found
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4, msg=name)


# ---- the anchor


class Counted(Learner):
    passes = 0

    def logprobs(self, batches: Any, temperature: float = 1.0) -> list[torch.Tensor]:
        self.passes += 1
        return super().logprobs(batches, temperature)


def counted(folder: Path) -> Counted:
    own = test_rl.learner(folder)
    own.__class__ = Counted
    assert isinstance(own, Counted)
    return own


def told(folder: Path, away: float) -> list[list[Sample]]:
    """Groups whose engine told the learner's own log-probabilities, `away` from them."""
    own = test_rl.learner(folder)
    return [
        [replace(s, logprobs=tuple(v + away for v in own.logprobs(pack([s], 99))[0].tolist())) for s in group]
        for group in test_rl.live_groups()
    ]


def same_weights(one: Learner, other: Learner, atol: float) -> None:
    for (name, tensor), (_, wanted) in zip(one.weights(), other.weights(), strict=True):
        torch.testing.assert_close(tensor, wanted, atol=atol, rtol=0, msg=name)


def test_the_first_forward_pass_is_the_anchor_too(model_folder: Path) -> None:
    once = counted(model_folder)
    metrics = learn(once, told(model_folder, 0.0), test_rl.stage(passes=2, minibatches=1), Timers())
    assert once.passes == 0 and metrics["policy/ratio_std/1"] == 0.0 < metrics["policy/ratio_std/2"]
    halves = counted(model_folder)
    learn(halves, told(model_folder, 0.0), test_rl.stage(passes=2, minibatches=2), Timers())
    assert halves.passes == 1


@pytest.mark.parametrize(("away", "passes"), [(1e-6, 0), (2e-4, 3)])
def test_an_engine_of_the_learners_own_numbers_gives_the_anchor_unless_it_shows_others(
    model_folder: Path, away: float, passes: int
) -> None:
    live, config = told(model_folder, away), test_rl.stage(passes=1, minibatches=4)
    trusting, plain = counted(model_folder), counted(model_folder)
    metrics = learn(trusting, live, config, Timers(), own_numbers=True)
    learn(plain, live, config, Timers())
    assert (trusting.passes, plain.passes) == (passes, 3)
    assert metrics["engine/logprob_diff_max"] == pytest.approx(away, abs=1e-6)
    same_weights(trusting, plain, 1e-5)


def test_tokens_that_the_engine_told_nothing_of_have_the_learners_anchor(model_folder: Path) -> None:
    live = told(model_folder, 0.0)
    live[3] = [replace(s, logprobs=()) for s in live[3]]
    own = counted(model_folder)
    learn(own, live, test_rl.stage(passes=1, minibatches=4), Timers(), own_numbers=True)
    assert own.passes == 3
