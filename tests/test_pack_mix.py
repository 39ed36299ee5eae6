from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.data.mix import Mixture, Part
from motet.data.pack import Sample, pack


def mixture(*weights: float, size: int = 5, seed: int = 1) -> Mixture[str]:
    """Parts "a", "b", ... with the items "a0", "a1", ..."""
    names = "abcdefgh"[: len(weights)]
    return Mixture([Part(n, [f"{n}{i}" for i in range(size)], w) for n, w in zip(names, weights, strict=True)], seed)


def shares(items: list[str]) -> dict[str, int]:
    return dict(Counter(item[0] for item in items))


def test_weights_3_and_1_with_four_a_step_give_three_and_one_in_every_step() -> None:
    assert [shares(mixture(3, 1).draw(step, 4)) for step in range(5)] == [{"a": 3, "b": 1}] * 5


def test_a_share_below_one_item_a_step_is_owed_and_paid() -> None:
    drawn = [shares(mixture(7, 1).draw(step, 2)).get("b", 0) for step in range(8)]
    assert sum(drawn) == 2 and max(drawn) == 1  # an eighth of 16


@given(
    st.lists(st.sampled_from([0.01, 0.2, 0.3, 0.4, 1.0, 3.0]), min_size=1, max_size=6),
    st.integers(1, 7),
    st.integers(0, 60),
)
def test_every_step_has_its_count_and_no_part_strays_far_from_its_share(
    weights: list[float], count: int, step: int
) -> None:
    mix = mixture(*weights, size=1000)
    assert len(mix.draw(step, count)) == count
    drawn = Counter(item for s in range(step + 1) for item in mix.draw(s, count))
    assert max(drawn.values()) == 1  # no place of an epoch is taken twice
    given = shares(list(drawn))
    for name, weight in zip("abcdef", weights, strict=False):
        assert abs(given.get(name, 0) - weight / sum(weights) * count * (step + 1)) < 2.5


def test_a_draw_is_a_function_of_the_step_alone() -> None:
    fresh, used = mixture(1, 1), mixture(1, 1)
    for step in (7, 2, 0):
        used.draw(step, 3)
    assert used.draw(5, 3) == fresh.draw(5, 3)
    assert fresh.draw(5, 3) != mixture(1, 1, seed=2).draw(5, 3)


def test_every_epoch_is_another_permutation() -> None:
    mix = mixture(1)
    epochs = [[mix.draw(step, 1)[0] for step in range(5 * e, 5 * e + 5)] for e in range(4)]
    assert all(sorted(epoch) == ["a0", "a1", "a2", "a3", "a4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_first_items_have_no_duplicates_even_when_a_part_is_exhausted() -> None:
    assert sorted(mixture(1, 1).first(4)) != sorted(mixture(1, 1, seed=2).first(4))
    asked = mixture(9, 1).first(20)  # 18 of the five "a"
    assert len(set(asked)) == len(asked) and shares(asked) == {"a": 5, "b": 2}


def test_an_empty_part_gives_its_share_to_the_others_and_only_empty_parts_are_refused() -> None:
    full, empty = Part("a", ["a0"], 1.0), Part("b", [], 1.0)
    assert Mixture([full, empty], 1).draw(0, 3) == ["a0"] * 3
    with pytest.raises(ValueError, match="at least one part that is not empty"):
        Mixture([empty], 1)


def sample(*tokens: int, masked: int = 1, **more: float) -> Sample:
    return Sample(tokens, (False,) * masked + (True,) * (len(tokens) - masked), **more)


def test_a_batch_holds_documents_end_to_end_and_predicts_each_scored_token_from_the_one_before() -> None:
    (batch,) = pack([sample(5, 9, 7, 2, masked=2, advantage=0.5), sample(3, 4, advantage=-1.0)], 6)
    assert batch.order == (0, 1)
    assert batch.tokens_T.tolist() == [5, 9, 7, 2, 3, 4]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 1]
    assert (batch.scored_N.tolist(), batch.targets_N.tolist()) == ([1, 2, 4], [7, 2, 4])
    assert batch.advantages_N.tolist() == [0.5, 0.5, -1.0]
    assert batch.behaviour_N.isnan().all() and batch.num_scored == 3


def test_the_first_token_of_a_document_is_never_predicted() -> None:
    (batch,) = pack([Sample((5, 6), (True, True)), Sample((7,), (True,))], 9)
    assert batch.targets_N.tolist() == [6]


def test_behaviour_log_probabilities_lie_beside_their_tokens() -> None:
    given = Sample((5, 6, 7), (False, True, True), logprobs=(-0.25, -0.5))
    (batch,) = pack([sample(1, 2), given], 9)
    assert torch.equal(batch.behaviour_N[:2], torch.tensor([-0.25, -0.5])) and batch.behaviour_N[2].isnan()


def test_samples_go_longest_first_into_the_first_batch_with_room() -> None:
    lengths = [3, 5, 2, 4, 1]
    batches = pack([sample(*range(n)) for n in lengths], 6)
    assert [batch.order for batch in batches] == [(1, 4), (3, 2), (0,)]


def test_a_sample_longer_than_a_batch_is_one_of_its_own() -> None:
    assert [batch.order for batch in pack([sample(1, 2), sample(*range(9)), sample(3, 4)], 4)] == [(1,), (0, 2)]
