"""`motet inspect`: what is learned, token by token, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from motet import cli
from motet.base.errors import UserError
from motet.base.recipe import Chat
from motet.base.records import Message
from motet.data import doctor
from motet.data.chat import ChatFormat, Rendered
from motet.insight import inspection, inspection_view
from motet.model.tokenizer import make_tokenizer
from test_chat import CHATML, characters

QUESTION = {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": "2", "reasoning_content": "one and one"}
TALK: list[Message] = [QUESTION, ANSWER]
PLAIN = {"role": "assistant", "content": "2"}


def chat(template: str = CHATML, **config: Any) -> ChatFormat:
    return ChatFormat(characters(template), Chat(**config))


def checks(format: ChatFormat, messages: Sequence[Message], whole: bool = True) -> list[str]:
    return [finding.check for finding in doctor.rendered(format, messages, whole)[1]]


def changed(format: ChatFormat, change: Callable[[Rendered], Rendered]) -> list[doctor.Finding]:
    return doctor.examine(format, TALK, [change(r) for r in format.render(TALK)])


# ---- the checks


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("config", [{}, {"open_think": True}, {"think": "off"}, {"system": "Add."}])
def test_a_sound_conversation_passes_every_check(config: dict[str, Any], whole: bool) -> None:
    assert checks(chat(**config), TALK, whole) == []
    two = [{"role": "system", "content": "Be brief."}, *TALK, {"role": "user", "content": "Sure?"}, ANSWER]
    assert checks(chat(**config), two, whole) == []


def test_stretches_are_where_learned_tokens_stand_together() -> None:
    assert doctor.stretches((False, True, True, False, True)) == [(1, 3), (4, 5)]
    assert doctor.stretches((False,)) == [] and doctor.stretches((True,)) == [(0, 1)]


@pytest.mark.parametrize(
    ("mask", "message"),
    [(lambda m: (False,) * len(m), "no token is learned"), (lambda m: (True,) * len(m), "every token is learned"),
     (lambda m: (*m[:-3], False, *m[-2:]), "1 turns of the assistant, but 2 stretches are learned")],
)  # fmt: skip
def test_a_mask_of_all_zeros_or_all_ones_is_refused(mask: Any, message: str) -> None:
    (found,) = changed(chat(), lambda r: Rendered(r.tokens, mask(r.loss_mask)))
    assert found.check == "mask" and message in found.detail


def test_a_template_that_writes_no_prompt_leaves_nothing_but_learned_tokens() -> None:
    silent = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    assert checks(chat(silent), TALK) == ["mask"]


@pytest.mark.parametrize(
    ("turn", "counts"),
    [(PLAIN, "0 x <think> and 0 x </think>"), ({**ANSWER, "content": "<think>2</think>3"}, "2 x <think>"),
     ({**PLAIN, "content": "<think>one 2"}, "1 x <think> and 0 x </think>")],
)  # fmt: skip
def test_double_and_missing_think_tags_are_refused(turn: Message, counts: str) -> None:
    examples, (found,) = doctor.rendered(chat(), [QUESTION, turn])
    assert examples == [] and found.check == "think" and f"turn 2: {counts}" in found.detail


def test_a_think_block_that_the_prompt_opens_is_opened_once_and_has_to_be_closed() -> None:
    opening = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    format = chat(opening, think="off")  # the reasoning is put before the answer, and nothing closes the block
    _, (found,) = doctor.rendered(format, TALK)
    assert found.check == "think" and "1 x <think>, the first of them by the prompt and 0 x </think>" in found.detail
    again = {**PLAIN, "content": "x <think>one</think>2"}
    _, (found,) = doctor.rendered(format, [QUESTION, again])
    assert "2 x <think>, the first of them by the prompt" in found.detail
    assert checks(format, [QUESTION, {**PLAIN, "content": "one</think>2"}]) == []
    assert checks(chat(think="off"), [QUESTION, {**PLAIN, "content": "a tag: <think>"}]) == []


def test_a_missing_end_token_and_one_inside_the_turn_are_refused() -> None:
    format = chat()
    (found,) = changed(format, lambda r: Rendered(r.tokens[:-1], r.loss_mask[:-1]))
    assert (found.check, found.detail) == ("end", "turn 2 ends with '2', which is no stop token")
    inside = [QUESTION, {**ANSWER, "content": "2<|im_end|> or 3"}]
    _, (found,) = doctor.rendered(format, inside)
    assert found.check == "end" and "has '<|im_end|>' as its token 28 of 34" in found.detail


def test_a_prompt_that_generation_would_not_see_is_refused_with_both_texts() -> None:
    (found,) = changed(chat(), lambda r: Rendered((r.tokens[0], *r.tokens[2:]), (False, *r.loss_mask[2:])))
    assert found.check == "prompt" and "at token 2" in found.detail
    assert "<|im_start|>ser" in found.detail and "<|im_start|>user" in found.detail


@pytest.mark.parametrize("whole", [True, False])
def test_a_turn_whose_end_was_cut_is_refused(whole: bool) -> None:
    format = chat()

    def cut(r: Rendered) -> Rendered:
        return Rendered((*r.tokens[:-8], r.tokens[-1]), (*r.loss_mask[:-8], True))

    found = doctor.examine(format, TALK, [cut(r) for r in format.render(TALK)], whole)
    assert [f.check for f in found] == ["text"] and "turn 2: its last 7 of 27 characters are cut" in found[0].detail


def test_a_template_that_leaves_out_a_message_is_refused() -> None:
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    _, (found,) = doctor.rendered(chat(deaf), [{"role": "system", "content": "Add."}, *TALK])
    assert found.check == "text" and "what message 1 (system) says" in found.detail
    assert checks(chat(deaf), [{"role": "system", "content": "Add."}, *TALK], whole=False) == []


def test_a_character_that_the_tokenizer_does_not_know_is_no_cut(tokenizer: Any) -> None:
    format = ChatFormat(tokenizer, Chat())
    assert checks(format, [QUESTION, {**ANSWER, "content": "é2"}]) == []


# ---- the command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    rows: list[Any] = [{"messages": TALK}, {"prompt": "x"}, {"prompt": "1+1?", "completion": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made = make_tokenizer(["1+1?", "what is it"], ["one and\n two \\boxed{2}"], min_share=0.9)
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    return folder


def found_in(data: Path, model: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    loaded, source, stage = inspection.source_of(str(data), str(model), None, overrides, {}, "train")
    settings = {"rows": 3, "most": 0, "full": False, **options}
    return inspection.inspect(source, stage, loaded, str(model), data.parent, **settings)


def test_every_row_is_checked_and_counted_by_check(data: Path, model: Path) -> None:
    found = found_in(data, model)
    assert (found["checked"], found["refused"], found["more"]) == (3, 2, False)
    assert {c["check"]: c["refused"] for c in found["checks"] if c["refused"]} == {"row": 1, "think": 1}
    (example,) = next(c for c in found["checks"] if c["check"] == "row")["examples"]
    assert f"{data}, line 2: field 'completion' is missing" in example["detail"]
    (shown,) = found["shown"]
    learned = "".join(text for text, on in shown["pieces"] if on)
    assert (shown["place"], learned) == (f"{data}, line 1", "<think>one and one</think>2<|end|>")
    assert found_in(data, model, most=1)["more"] and found_in(data, model, "chat.think=off")["refused"] == 1


def test_of_rows_that_cannot_be_read_nothing_is_said_to_be_ok(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x"}\n')
    lines = inspection_view.text(found_in(path, model), colour=False).splitlines()
    assert [line for line in lines if line.split()[1:2] == ["ok"]] == []
    assert sum("no row to check" in line for line in lines) == len(inspection.ABOUT) - 1


def test_what_does_not_fit_the_context_is_said(data: Path, model: Path) -> None:
    (note,) = found_in(data, model, "stage.sft.context=5")["notes"]
    assert note.startswith("1 training examples are longer than context = 5: an sft stage drops and counts them")


def test_a_context_that_nobody_set_is_at_most_the_models_positions(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"messages": [QUESTION, {**ANSWER, "reasoning_content": "1+" * 40}]}) + "\n")
    found = found_in(path, model)
    assert found["context"] == 64 and found["notes"][0].startswith("1 training examples are longer than context = 64")
    assert found_in(path, model, "stage.sft.rope.positions=128")["context"] == 128
    assert found_in(path, model, "stage.sft.context=256")["context"] == 256


def test_the_terminal_shows_stretches_of_context_and_of_learned_tokens(data: Path, model: Path) -> None:
    found = found_in(data, model)
    plain = inspection_view.text(found, colour=False).splitlines()
    assert max(len(line) for line in plain if "/" not in line) <= 110  # a path is not broken
    assert "  context  <|user|>│1│+│1│?│<|assistant|>" in plain
    (learned,) = [line for line in plain if line.startswith("  learned")]
    assert learned.startswith("  learned  <think>│") and learned.endswith("</think>│2│<|end|>")
    coloured = inspection_view.text(found, colour=True)
    assert f"\x1b[1;32m{learned}\x1b[0m" in coloured and "\x1b[2m  context" in coloured
    assert [line for line in coloured.splitlines() if "\x1b" not in line] == plain[: len(plain) - 2]


def test_a_long_conversation_is_shown_by_its_ends_unless_all_of_it_is_asked_for(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "long.jsonl"
    turn = {**ANSWER, "reasoning_content": "one\x1b[31m\n" + "+1" * 300}
    path.write_text(json.dumps({"messages": [QUESTION, turn]}) + "\n")
    text = inspection_view.text(found_in(path, model), colour=False)
    assert "tokens left out" in text and "↵" in text and "\x1b" not in text
    assert "left out" not in inspection_view.text(found_in(path, model, full=True), colour=False)


def test_a_recipes_problem_set_is_inspected_by_its_name_with_the_recipes_chat(
    micro_recipe: Path, model: Path, tmp_path: Path
) -> None:
    given = inspection.source_of("numbers", str(model), micro_recipe, ("chat.think=off",), {}, "train")
    found = inspection.inspect(given[1], given[2], given[0], str(model), tmp_path, 1, 5, False)
    assert (found["data"], found["checked"], found["more"], found["think"]) == ("numbers", 5, True, "off")
    assert found["context"] == 48 and found["shown"][0]["place"].startswith("problems.numbers, problem n")


def test_a_table_of_the_recipe_that_no_sft_stage_reads_is_said_to_be_one(micro_recipe: Path, model: Path) -> None:
    with pytest.raises(UserError, match="base: the recipe has a table of this name, but no sft stage reads it") as told:
        inspection.source_of("base", str(model), micro_recipe, (), {}, "train")
    assert "they read numbers" in str(told.value)


def test_the_command_ends_with_1_where_something_is_refused_and_writes_a_page(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["motet", "inspect", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    page = tmp_path / "page.html"
    assert run(str(data), str(model), "--html", str(page)) == 1
    assert "1 refused" in capsys.readouterr().out
    html = page.read_text()
    assert "<script" not in html and "<b>&lt;think&gt;</b>" in html and "<span>&lt;|user|&gt;</span>" in html
    data.write_text(data.read_text().splitlines()[0] + "\n")
    assert run(str(data), str(model), "--rows", "0") == 0
    assert run(str(data), str(model), "--column", "messages") == 2
    assert "write it as FIELD=COLUMN" in capsys.readouterr().err


def test_a_recipe_without_an_sft_stage_has_nothing_to_inspect(micro_recipe: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone.toml"
    lone.write_text('stages = []\nmodel = { path = "m" }\nstage = {}\n'.replace("[]", '["e"]')
                    .replace("stage = {}", 'stage = { e = { kind = "evaluate" } }'))  # fmt: skip
    with pytest.raises(UserError, match="the recipe has no sft stage"):
        inspection.source_of("rows.jsonl", "m", lone, (), {}, "train")
