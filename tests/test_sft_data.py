"""What an SFT stage trains on: rows rendered into a store, drawn by weights that change and by length."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import micro
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import built
from motet.base.recipe import Chat, LengthBand, Recipe, SftStage
from motet.base.run import Run
from motet.data.chat import ChatFormat
from motet.data.conversations import Conversation
from motet.data.lengths import edges, parts_of, places_by_band
from motet.data.mix import Mixture, Part, Schedule, weight_of
from motet.data.pack import Sample
from motet.data.prepare import Limits, is_held_out, write_source
from motet.data.store import Store, StoreWriter, description
from motet.stages import sft
from motet.stages.context import Context

# ---- weights that change over the steps


def mixture(*weights: Any, size: int = 1000, seed: int = 1) -> Mixture[str]:
    names = "abcdefgh"[: len(weights)]
    parts = [Part(n, [f"{n}{i}" for i in range(size)], weight_of(w)) for n, w in zip(names, weights, strict=True)]
    return Mixture(parts, seed)


def shares(items: list[str]) -> dict[str, int]:
    return dict(Counter(item[0] for item in items))


def test_a_schedule_is_straight_between_its_points_and_constant_outside() -> None:
    falling = Schedule(((10, 3.0), (20, 1.0)))
    assert [falling.at(step) for step in (0, 10, 15, 20, 99)] == [3.0, 3.0, 2.0, 1.0, 1.0]
    jump = Schedule(((0, 3.0), (5, 3.0), (5, 1.0)))
    assert [jump.at(step) for step in (0, 4, 5, 6)] == [3.0, 3.0, 1.0, 1.0]


def test_a_mixture_follows_its_weights_in_exact_counts() -> None:
    mix = mixture([[0, 3.0], [2, 3.0], [2, 1.0]], [[0, 1.0], [2, 1.0], [2, 3.0]])
    assert [shares(mix.draw(step, 4)) for step in range(4)] == [{"a": 3, "b": 1}] * 2 + [{"a": 1, "b": 3}] * 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.1, 1.0, 4.0])), min_size=1, max_size=4)
        .map(lambda points: sorted(points, key=lambda point: point[0])),
        min_size=1, max_size=5,
    ),
    st.integers(1, 7),
)  # fmt: skip
def test_changing_weights_give_each_step_its_count_and_no_part_strays_far_from_its_share(
    points: list[list[tuple[int, float]]], count: int
) -> None:
    mix = mixture(1.0, *points)
    taken: Counter[str] = Counter()
    owed: Counter[str] = Counter()
    for step in range(30):
        drawn = mix.draw(step, count)
        assert len(drawn) == count
        taken.update(item[0] for item in drawn)
        for part, share in zip(mix.parts, mix.shares(step), strict=True):
            owed[part.name] += count * share
            assert abs(taken[part.name] - owed[part.name]) < len(mix.parts)
    assert len({item for step in range(30) for item in mix.draw(step, count)}) == 30 * count  # no place taken twice


def test_a_draw_with_changing_weights_is_a_function_of_the_step_alone() -> None:
    weights = [[0, 3.0], [9, 0.5]], 1.0
    fresh, used = mixture(*weights), mixture(*weights)
    for step in (7, 2, 0):
        used.draw(step, 3)
    assert used.draw(5, 3) == fresh.draw(5, 3) != mixture(*weights, seed=2).draw(5, 3)


def test_weights_that_do_not_change_draw_what_plain_numbers_draw() -> None:
    plain, points = mixture(3.0, 1.0), mixture([[0, 3.0]], 1.0)
    assert points.is_constant and [plain.draw(s, 3) for s in range(6)] == [points.draw(s, 3) for s in range(6)]


def test_a_mixture_frozen_at_a_step_keeps_that_steps_weights() -> None:
    mix = mixture([[0, 3.0], [10, 1.0]], [[0, 1.0], [10, 3.0]])
    assert shares(mix.at(10).draw(0, 4)) == {"a": 1, "b": 3} and mix.at(0).is_constant


def test_a_step_at_which_every_weight_is_0_is_refused() -> None:
    with pytest.raises(ValueError, match="at step 10 the weight of every part that is not empty is 0"):
        mixture([[0, 1.0], [10, 0.0]], [[0, 1.0], [5, 0.0]])


def test_parts_of_a_group_share_its_weight_and_an_empty_one_leaves_its_share_to_them() -> None:
    def part(name: str, size: int, within: float) -> Part[str]:
        return Part(name, [f"{name}{i}" for i in range(size)], 1.0, "g", within)

    other = Part("b", ["b0"], 1.0)
    assert Mixture([part("s", 5, 1.0), part("l", 5, 3.0), other], 1).shares(0) == [0.125, 0.375, 0.5]
    assert Mixture([part("s", 0, 1.0), part("l", 5, 3.0), other], 1).shares(0) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("weight", "message"),
    [("0", "a weight must be positive"), ("[[5, 1.0], [0, 2.0]]", "in order of steps"), ("[[0, -1]]", "in order"),
     ("[[0, 0.0]]", "a weight is"), ("[]", "a weight is"), ("true", "a weight is"),
     ("[[0, 1, 2]]", r"got \[0, 1, 2\]")],
)  # fmt: skip
def test_a_weight_that_is_none_is_refused_by_its_key(weight: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"stage\.sft\.data\.0\.weight: .*{message}"):
        stage(f'stage.sft.data=[{{ path = "a", weight = {weight} }}]')


def test_a_stage_without_steps_refuses_weights_that_change(micro_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"stage\.filter\.problems\[0\]\.weight: a filter stage has no steps"):
        micro.recipe(micro_recipe, "stage.filter.problems=[{ problems = 'numbers', weight = [[0, 1.0], [5, 2.0]] }]")
    changed = micro.recipe(micro_recipe, "stage.rl.problems=[{ stage = 'filter', weight = [[0, 1.0], [5, 2.0]] }]")
    assert changed.stage["rl"].problems[0].weight == ((0, 1.0), (5, 2.0))  # type: ignore[union-attr]


# ---- lengths


def stage(*overrides: str) -> SftStage:
    tree = {"stages": ["sft"], "model": {"path": "m"}, "stage": {"sft": {"kind": "sft", "data": [{"path": "a"}]}}}
    found = built(tree, list(overrides), "test").stage["sft"]
    assert isinstance(found, SftStage)
    return found


def test_the_loss_is_told_apart_by_the_last_octaves_or_by_the_stages_own_bands() -> None:
    assert edges(65536) == [8192, 16384, 32768, 65536] and edges(6) == [1, 3, 6]
    assert edges(96, [LengthBand(up_to=20), LengthBand(up_to=200)]) == [12, 20, 24, 48, 96]


def test_a_length_equal_to_an_end_is_in_the_band_that_it_ends() -> None:
    assert [list(band) for band in places_by_band([3, 4, 5, 8, 9], [4, 8])] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("override", "message"),
    [("stage.sft.lengths=[{ up_to = 8 }, { up_to = 8 }]", "must rise from band to band"),
     ("stage.sft.lengths=[{ up_to = 20000 }, { up_to = 30000 }]", "no conversation is longer than context"),
     ("stage.sft.min_tokens=20000", r"min_tokens \(20000\) is more than the longest"),
     ("stage.sft.probe_every=5", "probe_every needs heldout")],
)  # fmt: skip
def test_lengths_that_contradict_each_other_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stage(override)


# ---- the store


def write(folder: Path, *rows: tuple[tuple[int, ...], tuple[bool, ...]]) -> Store:
    with StoreWriter(folder) as writer:
        for tokens, mask in rows:
            writer.add(tokens, mask)
        writer.close({"rows": len(rows)})
    return Store(folder)


def test_what_is_stored_is_read_back_in_any_order(tmp_path: Path) -> None:
    rows = [((5, 0, 7, 2), (False, False, True, True)), ((0,), (True,)), ((219_519, 3), (False, True))]
    store = write(tmp_path / "s", *rows)
    assert store.lengths.tolist() == [4, 1, 2] and len(store) == 3
    assert store[2] == Sample((219_519, 3), (False, True)) == store[-1]
    assert list(store) == [Sample(*row) for row in rows] == store[0:3]
    with pytest.raises(IndexError):
        store[3]


def test_a_store_that_was_not_closed_is_none(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.add((1, 2), (False, True))
    assert description(tmp_path) is None
    write(tmp_path)
    assert description(tmp_path) == {"rows": 0} and len(Store(tmp_path)) == 0


def test_bands_of_a_source_share_its_weight(tmp_path: Path) -> None:
    store = write(tmp_path, *[(tuple(range(n)), (False,) * (n - 1) + (True,)) for n in (3, 4, 5, 8)])
    bands = [LengthBand(up_to=4), LengthBand(up_to=8, weight=3.0)]
    mix = Mixture(parts_of("p", "0", store, 1.0, bands), 1)
    drawn = [len(sample.tokens) for step in range(4) for sample in mix.draw(step, 4)]
    assert Counter(length > 4 for length in drawn) == {True: 12, False: 4}
    assert [part.items for part in parts_of("p", "0", store, 1.0, [])] == [store]


# ---- one source


@pytest.fixture
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, Chat())


def talk(number: int, reasoning: str = "3+4") -> Conversation:
    question = {"role": "user", "content": f"What is {number}"}
    answer = {"role": "assistant", "content": "\\boxed{7}", "reasoning_content": reasoning}
    return Conversation((question, answer), f"c{number}", "talk", place=f"talk.jsonl, line {number}")


def bad(number: int) -> Conversation:
    return Conversation((talk(number).messages[0], {"role": "assistant", "content": "7"}), "x", "talk", place="line 9")


def test_a_source_is_rendered_chosen_by_length_and_counted(chat: ChatFormat, tmp_path: Path) -> None:
    length = len(chat.render(talk(1).messages)[0].tokens)
    items = [talk(1), talk(2, "3+4" * 9), talk(3, "3"), bad(4), UserError("line 5: no")]
    limits = Limits(shortest=length, longest=length + 5)
    with pytest.raises(
        UserError, match=r"^line 9, conversation x, field 'messages': check 'think': turn 2: 0 x <think>"
    ):
        write_source(tmp_path / "s", items, chat, limits, drop_bad=False)
    assert description(tmp_path / "s" / "train") is None
    found = write_source(tmp_path / "s", items, chat, limits, drop_bad=True)
    dropped = {"longer than the context": 1, "shorter than min_tokens": 1, "check: think": 1, "bad row": 1}
    assert (found["rows"], found["kept"], found["dropped"]) == (5, 1, dropped)
    (kept,) = Store(tmp_path / "s" / "train")
    assert kept.tokens == chat.render(talk(1).messages)[0].tokens
    (shown,) = found["examples"]
    assert shown["place"] == "talk.jsonl, line 1" and shown["tokens"] == length
    assert "".join(text for text, learned in shown["pieces"] if learned) == "<think>3+4</think>\\boxed{7}<|end|>"


def test_what_was_written_whole_is_not_read_again(chat: ChatFormat, tmp_path: Path) -> None:
    first = write_source(tmp_path, [talk(n) for n in range(5)], chat, Limits(1, 99), drop_bad=False)

    def unread() -> Iterator[Conversation]:
        raise AssertionError("the rows are read again")
        yield

    assert write_source(tmp_path, unread(), chat, Limits(1, 99), drop_bad=False) == first


def test_held_out_are_the_same_prompts_whatever_their_answers(chat: ChatFormat, tmp_path: Path) -> None:
    talks = [talk(n, reasoning) for n in range(60) for reasoning in ("3", "4")]
    held = [is_held_out(item.messages, 0.3) for item in talks]
    assert held[::2] == held[1::2] and 8 < sum(held[::2]) < 28
    assert all(was or not now for now, was in zip([is_held_out(t.messages, 0.1) for t in talks], held, strict=True))
    found = write_source(tmp_path, talks, chat, Limits(1, 99, 0.3), drop_bad=False)
    assert (found["heldout"], found["kept"]) == (sum(held), 120 - sum(held))
    assert len(Store(tmp_path / "heldout")) == sum(held)


# ---- the stage

MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(tmp_path: Path, model_folder: Path) -> Iterator[MakeContext]:
    opened: list[Any] = []

    def make(recipe: Recipe, name: str = "run") -> Context:
        run = Run(tmp_path / name, console=False)
        context = Context(recipe, run, model_folder)
        opened.extend([context, run])
        return context

    yield make
    for item in opened:
        item.close()


def rows_of(folder: Path, count: int = 40) -> Path:
    path = folder / "talk.jsonl"
    rows = [{"messages": list(talk(n, "3+4=07 " * (1 + n % 5)).messages)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(path: Path, model: Path, *overrides: str) -> Recipe:
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 0}
    own = {"kind": "sft", "context": 64, "steps": 4, "batch_size": 8, "evaluate": False, "optimizer": optimizer,
           "checkpoint_every": 2, "data": [{"path": str(path)}]}  # fmt: skip
    tree = {"name": "t", "stages": ["sft"], "model": {"path": str(model), "device": "cpu"}, "stage": {"sft": own}}
    return built(tree, [*overrides, "threads=1"], "test")


ENDS = (8, 16, 30, 32, 64)
"""Octaves of a context of 64 tokens, and a band."""


def run_stage(context: Context, recipe: Recipe) -> list[dict[str, Any]]:
    config = recipe.stage["sft"]
    assert isinstance(config, SftStage)
    sft.run("sft", config, context, context.base)
    return micro.metrics(context.run.folder, "sft")


def test_the_loss_by_length_and_by_position_adds_up_to_the_loss(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(rows_of(tmp_path), model_folder, "stage.sft.lengths=[{ up_to = 30 }, { up_to = 64 }]")
    context = make_context(recipe)
    rows = run_stage(context, recipe)
    for row in rows:
        for by in ("length", "position"):
            counts = {end: row[key] for end in ENDS if (key := f"tokens/{by}/{end}") in row}
            assert sum(counts.values()) == row["tokens/trained"]
            total = sum(row[f"loss/{by}/{end}"] * n for end, n in counts.items())
            assert total / row["tokens/trained"] == pytest.approx(row["loss/nll"], rel=1e-5)
        assert row["tokens/position/32"] > row.get("tokens/length/32", 0) and "tokens/length/8" not in row
    data = jsonl.read_json(tmp_path / "run" / "sft" / "data.json")
    assert [band["up_to"] for band in data["lengths"]] == list(ENDS)
    assert sum(band["conversations"] for band in data["lengths"]) == data["conversations"] == 40
    assert sum(band["tokens"] for band in data["lengths"]) == round(40 * data["tokens_mean"])
    assert not (tmp_path / "run" / "sft" / "store").exists()


def test_conversations_held_out_are_measured_and_not_trained_on(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(rows_of(tmp_path), model_folder, "stage.sft.heldout=0.3", "stage.sft.probe_every=2")
    rows = run_stage(make_context(recipe), recipe)
    assert ["heldout/loss" in row for row in rows] == [False, True, False, True]
    assert rows[3]["heldout/loss"] < rows[1]["heldout/loss"]
    held = [row for _, row in jsonl.read(tmp_path / "run" / "sft" / "heldout.jsonl")]
    data = jsonl.read_json(tmp_path / "run" / "sft" / "data.json")
    assert len(held) == data["sources"][0]["heldout"] == 40 - data["conversations"] > 3
    mean = sum(row["nll"] for row in held) / sum(row["scored"] for row in held)
    assert rows[3]["heldout/loss"] == pytest.approx(mean)


def test_batch_tokens_makes_steps_of_as_many_tokens_whatever_the_lengths(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(rows_of(tmp_path), model_folder, "stage.sft.batch_tokens=300")
    config = recipe.stage["sft"]
    assert isinstance(config, SftStage)
    data = sft.prepare("sft", config, make_context(recipe), model_folder)
    mean = jsonl.read_json(tmp_path / "run" / "sft" / "data.json")["tokens_mean"]
    assert data.batch_size == round(300 / mean) != 8
    drawn = [sum(len(sample.tokens) for sample in data.draw(step)) for step in range(20)]
    assert sum(drawn) / 20 == pytest.approx(data.batch_size * mean, rel=0.05)


def test_a_resumed_stage_uses_what_was_rendered_and_draws_the_same(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    path = rows_of(tmp_path)
    recipe = recipe_of(path, model_folder, f"stage.sft.data=[{{ path = '{path}', weight = [[0, 1.0], [3, 2.0]] }}]")
    config = recipe.stage["sft"]
    assert isinstance(config, SftStage)
    context = make_context(recipe)
    first = sft.prepare("sft", config, context, model_folder)
    path.write_text("not JSON any more\n")
    again = sft.prepare("sft", config, context, model_folder)
    assert [first.draw(step) for step in range(4)] == [again.draw(step) for step in range(4)]


def test_a_band_without_a_conversation_is_refused_before_training(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(rows_of(tmp_path), model_folder, "stage.sft.lengths=[{ up_to = 60 }, { up_to = 64 }]")
    with pytest.raises(UserError, match=r"stage\.sft\.lengths: no conversation has 61 to 64 tokens"):
        run_stage(make_context(recipe), recipe)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 7, "completion": "x"}', r"talk\.jsonl, line 4: field 'prompt' .*\n.*on_bad_row = \"drop\""),
        ("{", r"talk\.jsonl, line 4: not JSON .*\n.*on_bad_row = \"drop\""),
    ],
)
def test_a_wrong_row_names_the_recipes_key_beside_file_line_and_field(
    make_context: MakeContext, model_folder: Path, tmp_path: Path, line: str, message: str
) -> None:
    path = rows_of(tmp_path, 3)
    path.write_text(path.read_text() + line + "\n")
    recipe = recipe_of(path, model_folder)
    with pytest.raises(UserError, match=r"^stage\.sft\.data\[0\]: .*" + message):
        run_stage(make_context(recipe), recipe)


def test_a_row_that_the_checks_refuse_names_key_file_line_and_field(
    make_context: MakeContext, model_folder: Path, tmp_path: Path
) -> None:
    path = rows_of(tmp_path, 3)
    path.write_text(path.read_text() + '{"prompt": "What is 3", "completion": "<think>3<think>4</think>7"}\n')
    recipe = recipe_of(path, model_folder)
    told = r"^stage\.sft\.data\[0\]: .*talk\.jsonl, line 4, conversation \w+, field 'completion': check 'think'"
    with pytest.raises(UserError, match=told):
        run_stage(make_context(recipe), recipe)
    dropping = recipe_of(path, model_folder, f"stage.sft.data=[{{ path = '{path}', on_bad_row = 'drop' }}]")
    run_stage(make_context(dropping, "dropping"), dropping)
    (source,) = jsonl.read_json(tmp_path / "dropping" / "sft" / "data.json")["sources"]
    assert (source["rows"], source["kept"], source["dropped"]) == (4, 3, {"check: think": 1})
