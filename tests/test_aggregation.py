"""What a token counts for in a step's loss, and the advantages that are no group's z-score."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from motet.base.recipe import Algorithm, Correction
from motet.data.pack import Sample, pack
from motet.rl.advantages import advantages, centred, leave_one_out
from motet.rl.aggregation import capped, dealt, domain_shares, weighted
from motet.rl.correction import weigh
from motet.rl.experience import minibatches


def sample(length: int, domain: str = "a", tokens: int = 9) -> Sample:
    return Sample((1,) * (tokens + length), (False,) * tokens + (True,) * length, domain=domain)


def weights(samples: list[Sample], longest: int = 8, **algorithm: object) -> list[float]:
    return [s.weight for s in weighted(samples, Algorithm.model_validate(algorithm), longest)]


TWO = [sample(1, "a"), sample(3, "b")]


def test_the_weights_of_one_token_of_a_domain_and_three_of_another() -> None:
    assert weights(TWO) == pytest.approx([2.0, 2 / 3])
    assert weights(TWO, aggregation="sequences") == pytest.approx([2.0, 2 / 3])
    assert weights(TWO, aggregation="constant") == [4 / 16, 4 / 16]
    assert weights(TWO, aggregation="tokens") == [1.0, 1.0]


def test_a_domains_mean_is_over_all_of_its_tokens() -> None:
    assert weights([sample(1, "a"), sample(3, "a"), sample(4, "b")]) == [1.0, 1.0, 1.0]
    assert weights([sample(1, "a"), sample(1, "a"), sample(6, "b")]) == pytest.approx([2.0, 2.0, 2 / 3])


def test_with_one_domain_a_token_weighs_exactly_one_whatever_the_lengths() -> None:
    assert weights([sample(n) for n in (1, 3, 7, 11)]) == [1.0] * 4


def test_domains_may_weigh_differently() -> None:
    given = weights([sample(2, "a"), sample(2, "b")], domain_weights={"a": 3.0})
    assert given == pytest.approx([1.5, 0.5])


def test_a_domain_without_a_scored_token_takes_no_share() -> None:
    assert weights([sample(2, "a"), Sample((1, 2), (False, False), domain="b")])[0] == 1.0


def test_weights_reach_every_scored_token_of_a_batch() -> None:
    (batch,) = pack(weighted(TWO, Algorithm(), 8), 99)
    assert batch.weights_N.tolist() == pytest.approx([2 / 3] * 3 + [2.0])  # the longest sample first
    assert batch.sequence_N.tolist() == [0, 0, 0, 1] and batch.order == (1, 0)


def test_no_domain_takes_more_than_its_share_of_the_gradient_tokens() -> None:
    samples = [sample(7, "a"), sample(2, "b"), sample(1, "c")]
    algorithm = Algorithm(aggregation="tokens", most_of_a_domain=0.5)
    found = weighted(samples, algorithm, 8)
    assert domain_shares([found], [pack(found, 99)]) == pytest.approx({"a": 0.5, "b": 1 / 3, "c": 1 / 6})
    assert sum(s.weight * n for s, n in zip(found, (7, 2, 1), strict=True)) == pytest.approx(10.0)
    assert weights(samples, aggregation="tokens", most_of_a_domain=0.7) == [1.0, 1.0, 1.0]
    assert weights([sample(7)], aggregation="tokens", most_of_a_domain=0.5) == [1.0]


def test_with_a_bound_on_a_domains_share_each_minibatch_has_some_of_every_domain() -> None:
    """Two domains that take turns: dealt out as they come, each of two minibatches would have one of them alone."""
    live = [[sample(2, domain), sample(2, domain)] for domain in "abababab"]
    plain, bounded = Algorithm(minibatches=2), Algorithm(minibatches=2, most_of_a_domain=0.5)
    domains = [[s.domain for s in part] for part in minibatches(dealt(live, plain), 2)]
    assert domains == [["a"] * 8, ["b"] * 8]
    assert all(sorted(s.domain for s in part) == list("aaaabbbb") for part in minibatches(dealt(live, bounded), 2))


def test_a_domains_share_is_what_the_correction_leaves_of_it() -> None:
    """Equal lengths. The sequence of a, two nats a token away from its engine, is out; b's tokens weigh 1."""
    pair = [replace(sample(2, "a"), logprobs=(-3.0, -3.0)), replace(sample(2, "b"), logprobs=(-1.0, -1.0))]
    (batch,) = pack(pair, 99)
    assert domain_shares([pair], [[batch]]) == {"a": 0.5, "b": 0.5}
    anchor_N = torch.full((4,), -1.0)
    assert domain_shares([pair], [[weigh(batch, anchor_N, Correction()).batch]]) == {"a": 0.0, "b": 1.0}


def test_capped_shares_add_up_to_one_and_none_is_above_the_cap() -> None:
    assert capped({"a": 0.7, "b": 0.2, "c": 0.1}, 0.5) == pytest.approx({"a": 0.5, "b": 1 / 3, "c": 1 / 6})
    # the second reaches the cap only because the first was held there
    assert capped({"a": 0.6, "b": 0.3, "c": 0.1}, 0.4) == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})
    assert capped({"a": 0.9, "b": 0.1}, 0.2) == pytest.approx({"a": 0.5, "b": 0.5})


# ---- advantages


def test_centred_and_leave_one_out_advantages_of_one_success_in_four() -> None:
    assert centred([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]
    assert leave_one_out([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert centred([1.0, None, 0.0]) == [0.5, None, -0.5] and leave_one_out([1.0, None, 0.0]) == [1.0, None, -1.0]
    assert centred([1.0, 1.0]) is None and leave_one_out([0.0, None]) is None


def test_advantages_scaled_by_the_domain_are_centred_by_group_and_know_the_whole_batch() -> None:
    # the rewards of a: 1 0 1 1 have the mean 3/4 and the deviation sqrt(3)/4; those of b: 4 0, deviation 2
    rewards = [[1.0, 0.0], [1.0, 1.0], [4.0, 0.0, None]]
    found = advantages(rewards, ["a", "a", "b"], Algorithm(advantage="domain"))
    assert found[0] == pytest.approx([2 / math.sqrt(3), -2 / math.sqrt(3)])
    assert found[1:] == [None, [1.0, -1.0, None]]
    sample_std = advantages(rewards, ["a", "a", "b"], Algorithm(advantage="domain", advantage_std="sample"))
    assert sample_std[0] == pytest.approx([1.0, -1.0])  # the deviation with n - 1 is 1/2


@pytest.mark.parametrize("kind", ["group", "centred", "leave_one_out", "domain"])
def test_advantages_are_those_of_the_formulas(kind: str) -> None:
    """Against numpy, with whole groups at once."""
    import numpy

    stream = random.Random(kind)
    rewards = [[float(stream.randrange(3)) for _ in range(6)] for _ in range(5)]
    array = numpy.array(rewards)
    centre = array - array.mean(1, keepdims=True)
    wanted = {
        "group": centre / array.std(1, keepdims=True),
        "centred": centre,
        "leave_one_out": array - (array.sum(1, keepdims=True) - array) / 5,
        "domain": centre / array.std(),
    }[kind]
    found = advantages(rewards, ["a"] * 5, Algorithm.model_validate({"advantage": kind}))
    assert all(group is not None for group in found)
    assert numpy.array(found) == pytest.approx(wanted)
