from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from motet.base.errors import UserError
from motet.base.records import Completion
from motet.engine.protocol import Engine, Request, SamplingParams
from motet.engine.scripted import ScriptedEngine

END = 0


def encode(text: str) -> list[int]:
    """One token a character, but "19" is a single one."""
    return [ord(character) for character in text.replace("19", "\u2469")]


def engine(replies: Mapping[str, Sequence[str]] | Path) -> Engine:
    return ScriptedEngine(replies, encode, END)


def ask(engine: Engine, prompt: str, seed: int = 0, max_tokens: int = 16) -> Completion:
    messages = ({"role": "system", "content": "Add."}, {"role": "user", "content": prompt})
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=max_tokens)
    ((index, completion),) = engine.generate([Request((), messages, seed)], sampling)
    assert index == 0
    return completion


def test_the_reply_to_the_last_user_turn_ends_with_the_end_token_and_is_certain() -> None:
    assert ask(engine({"12+7": ["=19"]}), "12+7") == Completion("=19", (61, 0x2469, END), (0.0, 0.0, 0.0), "end", 0)


def test_the_seed_cycles_through_the_replies() -> None:
    replies = engine({"p": ["a", "b", "c"]})
    assert "".join(ask(replies, "p", seed).text for seed in range(5)) == "abcab"


def test_every_request_is_answered_once_under_its_index() -> None:
    messages = [({"role": "user", "content": prompt},) for prompt in "xyx"]
    sampling = SamplingParams(1.0, 1.0, 4)
    results = engine({"x": ["1"], "y": ["2"]}).generate([Request((), m, 0) for m in messages], sampling)
    assert [(index, completion.text) for index, completion in results] == [(0, "1"), (1, "2"), (2, "1")]


@pytest.mark.parametrize(
    ("max_tokens", "text", "num_tokens", "stop"),
    [(4, "a19b", 4, "end"), (3, "a19b", 3, "length"), (2, "a19", 2, "length"), (1, "a", 1, "length")],
)
def test_a_reply_without_room_for_its_end_token_is_cut(max_tokens: int, text: str, num_tokens: int, stop: str) -> None:
    # "a19b" is three tokens and the end token
    completion = ask(engine({"p": ["a19b"]}), "p", max_tokens=max_tokens)
    assert (completion.text, len(completion.tokens), len(completion.logprobs), completion.stop) == (
        text, num_tokens, num_tokens, stop,
    )  # fmt: skip


def test_a_prompt_that_the_script_does_not_know_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no reply to '12 \+ 8 = \?'; the nearest prompt in it is '12 \+ 7 = \?'"):
        ask(engine({"12 + 7 = ?": ["19"], "What is a motet?": ["A song."]}), "12 + 8 = ?")


def test_a_prompt_without_replies_and_an_empty_script_are_errors_too() -> None:
    with pytest.raises(UserError, match="no reply to 'p'"):
        ask(engine({"p": []}), "p")
    with pytest.raises(UserError, match="it has no prompts"):
        ask(engine({}), "p")


def test_completions_after_a_load_carry_the_new_version() -> None:
    loaded = engine({"p": ["a"]})
    loaded.load([], 3)
    assert (loaded.version, ask(loaded, "p").version) == (3, 3)


def test_a_script_is_read_from_a_file_and_rows_of_one_prompt_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"prompt": "p", "replies": ["a"]}\n{"prompt": "p", "replies": ["b"]}\n')
    assert [ask(engine(path), "p", seed).text for seed in (0, 1)] == ["a", "b"]


@pytest.mark.parametrize("row", ['{"prompt": "p"}', '{"prompt": "p", "replies": "a"}', '{"prompt": 1, "replies": []}'])
def test_a_row_of_another_shape_is_an_error_that_names_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"prompt": "q", "replies": ["a"]}\n' + row + "\n")
    with pytest.raises(UserError, match=r"script\.jsonl, line 2: a row of a script is"):
        engine(path)
