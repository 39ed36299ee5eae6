"""The funnel as a whole: rules over all rows, order and counts, memory of a killed run, the judge."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from motet.base import jsonl
from motet.base.recipe import TraceRules
from motet.base.records import Problem
from motet.funnel import judge as judging
from motet.funnel.candidate import Candidate, turn_text
from motet.funnel.contamination import Index
from motet.funnel.duplicates import SIZE, other_numbers, pairs, signature, similarity
from motet.funnel.scan import Settings, Source
from motet.funnel.sift import sift
from motet.funnel.words import words

LETTERS = "abcdefghijlmnoprstuv"


def text_of(stream: random.Random, count: int) -> str:
    return " ".join("".join(stream.choices(LETTERS, k=stream.randint(3, 8))) for _ in range(count))


def row(text: str, prompt: str = "Why?", problem: str = "", **more: Any) -> Candidate:
    turn = {"role": "assistant", "content": text}
    messages = ({"role": "user", "content": prompt}, turn)
    return Candidate(text[:20], problem or prompt, more.pop("domain", "talk"), messages, (turn_text(turn),), **more)


def source(rows: Sequence[Candidate]) -> Source:
    return lambda start: iter(rows[start:])


def run(
    folder: Path, rows: Sequence[Candidate] | Source, asked: Sequence[Problem] = (), **rules: Any
) -> dict[str, Any]:
    """The funnel, with "texts": the answers that were kept."""
    settings = Settings(TraceRules(**rules), Index({"suite": asked} if asked else {}), "off", False)
    given = source(rows) if isinstance(rows, list) else rows
    folder.mkdir(exist_ok=True)
    found = sift(given, settings, folder / "work", folder / "out.jsonl")  # type: ignore[arg-type]
    texts = [item["messages"][-1]["content"] for _, item in jsonl.read(folder / "out.jsonl")]
    return {**found, "texts": texts, "by": {r["rule"]: r["dropped"] for r in found["rules"] if r["dropped"]}}


def question(text: str, id: str = "q", **metadata: str) -> Problem:
    return Problem(id, ({"role": "user", "content": text},), "math", "1", "math", metadata=metadata)


def test_rows_that_pass_are_written_in_order_and_every_number_adds_up(tmp_path: Path) -> None:
    rows = [row(f"answer {name}", f"question {name}") for name in "abcdef"]
    rows[1] = row("ha" * 300, "b", domain="code")
    rows[3] = rows[0]
    found = run(tmp_path, rows)
    assert found["texts"] == [f"answer {name}" for name in "acef"]
    assert (found["asked"], found["kept"], found["by"]) == (6, 4, {"compression": 1, "exact_duplicate": 1})
    assert found["domains"] == {"code": {"asked": 1, "kept": 0}, "talk": {"asked": 5, "kept": 4}}
    left = 6
    for rule in found["rules"]:
        left -= rule["dropped"]
        assert rule["left"] == left and rule["about"] and rule["threshold"]
    (example,) = next(rule["examples"] for rule in found["rules"] if rule["rule"] == "compression")
    assert example["prompt"] == "b" and example["text"].startswith("hahaha") and "shorter" in example["detail"]


def test_three_examples_are_kept_and_a_rule_that_is_off_says_what_it_would_drop(tmp_path: Path) -> None:
    rows = [row("ha" * (300 + n), f"q{n}") for n in range(5)]
    found = run(tmp_path, rows, off=["compression"])
    rule = next(rule for rule in found["rules"] if rule["rule"] == "compression")
    assert found["kept"] == 5 and (rule["on"], rule["dropped"], rule["would_drop"]) == (False, 0, 5)
    assert len(rule["examples"]) == 3


# ---- duplicates


def test_equal_rows_are_told_without_case_and_spacing(tmp_path: Path) -> None:
    found = run(
        tmp_path, [row("The  answer"), row("the answer"), row("the answer", "Another question?"), row("an answer")]
    )
    assert found["texts"] == ["The  answer", "the answer", "an answer"] and found["by"] == {"exact_duplicate": 1}


def test_a_row_with_few_words_changed_is_a_near_duplicate_and_one_with_many_is_not(tmp_path: Path) -> None:
    stream = random.Random(1)
    plain = text_of(stream, 200).split()
    few, many = list(plain), list(plain)
    for place in range(
        5, 200, 20
    ):  # 5 % of the words: 30 of 198 three-grams are others, (198 - 30) / (198 + 30) = 0.74
        few[place] = "changed"
    for place in range(0, 200, 4):  # a quarter: one three-gram in four is left
        many[place] = "changed"
    rows = [row(" ".join(item), f"question {n}") for n, item in enumerate((plain, few, many))]
    found = run(tmp_path, rows)
    assert found["texts"] == [" ".join(plain), " ".join(many)] and found["by"] == {"near_duplicate": 1}
    (example,) = next(rule["examples"] for rule in found["rules"] if rule["rule"] == "near_duplicate")
    assert (
        example["detail"].startswith("74% of the 3-grams are those of an earlier row")
        and " ".join(plain[:9]) in example["detail"]
    )
    assert similarity(words(" ".join(plain)), words(" ".join(few))) == pytest.approx(168 / 228)


def test_a_chain_of_near_duplicates_is_measured_against_the_row_that_was_kept(tmp_path: Path) -> None:
    stream = random.Random(2)
    chain = [text_of(stream, 200).split()]
    for step in range(1, 6):
        item = list(chain[-1])
        item[step * 5 :: 40] = ["changed"] * len(item[step * 5 :: 40])
        chain.append(item)
    # each changes 5 more of 200 words: 15 k of 198 three-grams are others after k steps, (198 - 15 k) / (198 + 15 k) is
    # 0.53 after four and 0.45 after five, although the fifth is at 0.86 of the fourth
    found = run(tmp_path, [row(" ".join(item), f"q{n}") for n, item in enumerate(chain)], near_duplicates=0.5)
    assert found["texts"] == [" ".join(chain[0]), " ".join(chain[5])]
    assert found["by"] == {"near_duplicate": 4}


def test_the_same_words_about_other_numbers_are_another_problem() -> None:
    text = "There are {} red and {} green ones, which makes {} and with {} more {}"
    one = words(text.format(12, 7, 19, 3, 22))
    assert other_numbers(one, words(text.format(14, 8, 22, 4, 26)))
    assert not other_numbers(one, words(text.format(12, 7, 19, 3, 23)))
    assert not other_numbers(words("one 5 here"), words("one 6 here"))  # too few to tell


def test_short_traces_are_compared_exactly_only(tmp_path: Path) -> None:
    text = text_of(random.Random(3), 39)
    assert run(tmp_path, [row(text, "a"), row(text + " more", "b")])["kept"] == 2


def test_bands_find_what_comparing_all_pairs_finds(tmp_path: Path) -> None:
    import numpy as np

    stream = random.Random(4)
    texts = [text_of(stream, 120).split() for _ in range(60)]
    for place in range(20):
        copy = list(texts[place])
        for at in stream.sample(range(120), stream.randint(1, 9)):
            copy[at] = "x"
        texts.append(copy)
    given = [words(" ".join(item)) for item in texts]
    alike = {(a, b) for b in range(80) for a in range(b) if similarity(given[a], given[b]) >= 0.6}
    (tmp_path / "signatures").write_bytes(np.stack([signature(item) for item in given]).tobytes())
    found = set(pairs(tmp_path / "signatures", 80, np.ones(80, np.bool_), 0.6))
    assert len(alike) == 20 and alike <= found and len(found) < 30
    assert signature(given[0]).shape == (SIZE,)


# ---- contamination


def questions(count: int) -> list[str]:
    stream = random.Random(5)
    tail = "How many are left at the end of the day? Put the final answer in a box."
    return [
        f"{text_of(stream, 12)} has 17 {text_of(stream, 6)} and 230 of {text_of(stream, 5)}. {tail}"
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("where", "change", "rule"),
    [
        ("prompt", lambda q: q, "contamination_13"),
        ("trace", lambda q: q.upper().replace(".", " !"), "contamination_13"),
        ("prompt", lambda q: q.replace("17", "18").replace("230", "99"), "contamination_13"),
        ("trace", lambda q: " so ".join([" ".join(q.split()[:12]), " ".join(q.split()[12:24])]), "contamination_8"),
    ],
)
def test_a_question_is_found_in_the_prompt_and_inside_a_long_trace(
    tmp_path: Path, where: str, change: Callable[[str], str], rule: str
) -> None:
    asked = questions(8)
    stream = random.Random(6)
    planted = change(asked[3])
    long = f"{text_of(stream, 400)} {planted} {text_of(stream, 400)}"
    rows = [row(text_of(stream, 60), planted)] if where == "prompt" else [row(long, "Why so?")]
    rows += [
        row(text_of(stream, 60), f"{text_of(stream, 20)} How many are left at the end of the day?") for _ in range(9)
    ]
    found = run(tmp_path, rows, [question(text, f"q{n}") for n, text in enumerate(asked)])
    assert found["by"] == {rule: 1} and found["kept"] == 9
    (example,) = next(item["examples"] for item in found["rules"] if item["rule"] == rule)
    assert "suite/q3" in example["detail"] and asked[3][:40] in example["detail"]


def test_a_question_with_other_numbers_everywhere_is_found_by_its_masked_words(tmp_path: Path) -> None:
    text = "Anna has {} plums and {} pears in {} bags of {} kilos with {} stones in {} of them and sells {} today"
    asked = question(text.format(3, 4, 5, 6, 7, 8, 9))
    stream = random.Random(7)
    reworded = text.format(13, "fourteen", 1.5, 16, 17, 18, "1,900")
    rows = [row(f"{text_of(stream, 300)} {reworded} {text_of(stream, 300)}"), row(text_of(stream, 100))]
    found = run(tmp_path, rows, [asked])
    assert found["by"] == {"contamination_numbers": 1} and found["texts"] == [rows[1].turns[0]]


def test_phrases_that_many_prompts_share_are_no_contamination(tmp_path: Path) -> None:
    phrase = "the red fox jumped over the lazy dog again"
    asked = [question(f"{phrase} and nobody knew why")]
    stream = random.Random(8)
    rare = [row(f"{text_of(stream, 30)} {phrase} {text_of(stream, 30)}", f"prompt {n}") for n in range(3)]
    others = [row(text_of(stream, 50), f"other {n}") for n in range(20)]
    assert run(tmp_path / "rare", rare + others, asked)["by"] == {"contamination_8": 3}
    many = [row(f"{text_of(stream, 30)} {phrase} {text_of(stream, 30)}", f"many {n}") for n in range(10)]
    assert run(tmp_path / "many", many + others, asked)["by"] == {}
    # ten traces of one prompt are no reason to take it for a phrase
    same = [row(f"{text_of(stream, 30)} {phrase} {text_of(stream, 30)}", "one prompt") for _ in range(10)]
    found = run(tmp_path / "same", same + others, asked, max_per_problem=10)
    assert found["by"] == {"contamination_8": 10}


def test_the_template_of_a_suite_is_no_contamination_and_its_instances_count_as_one(tmp_path: Path) -> None:
    task = "Reason step by step, write down every step that you take, and put the final answer in a box at the end."
    stream = random.Random(9)
    asked = [question(f"{text_of(stream, 15)} {task}", f"q{n}") for n in range(5)]
    clean = [row(text_of(stream, 50), f"{text_of(stream, 15)} {task}") for _ in range(4)]
    assert run(tmp_path / "a", clean, asked)["kept"] == 4
    told = text_of(stream, 20)
    instances = [question(f"{told} {n}", f"i{n}", split_key="one") for n in range(50)]
    assert run(tmp_path / "b", [row(text_of(stream, 50), f"{told} 77")], instances)["by"] == {"contamination_13": 1}


def test_a_short_question_is_found_as_a_whole_prompt_only(tmp_path: Path) -> None:
    rows = [
        row("it is 12", "5 + 7 = ?"),
        row("it is 13", "5 + 8 = ?"),
        row("we ask 5 + 7 = ? here", "b"),
        row("x", "5 - 7 = ?"),
    ]
    found = run(tmp_path, rows, [question("5 + 7  = ?")])
    assert found["by"] == {"contamination_13": 1} and "it is 12" not in found["texts"]


# ---- majority and quota


def test_without_a_gold_answer_the_majority_of_four_or_more_decides(tmp_path: Path) -> None:
    answers = {"a": [3, 3, 3, 4], "b": [1, 2, 5, 6], "c": [1, 2, 3], "d": [7, 7, 7, None]}
    rows = [
        row(f"so it is \\boxed{{{value}}} {place}" if value else "who knows", name, problem=name)
        for name, values in answers.items()
        for place, value in enumerate(values)
    ]
    found = run(tmp_path, rows)
    # a: one of four is another; b: no answer has half; c: three say nothing; d: three answered traces say nothing
    assert found["by"] == {"majority": 5} and found["kept"] == 10
    told = [item.get("pseudo_gold", False) for _, item in jsonl.read(tmp_path / "out.jsonl")]
    assert told == [True] * 3 + [False] * 7


def test_the_first_traces_of_a_problem_are_kept(tmp_path: Path) -> None:
    found = run(tmp_path, [row(f"answer {n}", problem=f"p{n % 2}") for n in range(7)], max_per_problem=2)
    assert found["texts"] == [f"answer {n}" for n in range(4)] and found["by"] == {"max_per_problem": 3}


# ---- streaming and resuming


class Killed(Exception):
    pass


def test_a_killed_funnel_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    stream = random.Random(10)
    rows = [row(text_of(stream, 50), f"q{n}") for n in range(1000)]
    rows[700] = row(rows[3].turns[0] + " more", "other")
    rows[20], rows[900] = row("ha" * 300, "a"), row("ho" * 300, "b")
    read: list[int] = []

    def until(stop: int | None) -> Source:
        def rows_from(start: int) -> Iterator[Candidate]:
            read.append(start)
            for number, item in enumerate(islice(rows, start, None), start):
                if number == stop:
                    raise Killed
                yield item

        return rows_from

    whole = run(tmp_path / "whole", rows)
    (tmp_path / "killed").mkdir()
    for stop in (300, 800):
        with pytest.raises(Killed):
            run(tmp_path / "killed", until(stop))
    with (tmp_path / "killed" / "work" / "rows.jsonl").open("ab") as file:
        file.write(b'{"torn')
    again = run(tmp_path / "killed", until(None))
    assert read == [0, 256, 768] and again == whole and again["kept"] == 997
    same = [(tmp_path / name / "out.jsonl").read_bytes() for name in ("whole", "killed")]
    assert same[0] == same[1]


def test_other_rules_begin_anew(tmp_path: Path) -> None:
    rows = [row(f"answer {n}", f"q{n}") for n in range(3)]
    assert run(tmp_path, rows)["kept"] == 3
    assert run(tmp_path, rows[:2], max_per_problem=1)["kept"] == 2


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    stream = random.Random(11)
    rows = [row(text_of(stream, 45), f"q{n}") for n in range(1500)]
    rows[1400] = row(rows[10].turns[0].replace(" ", "  "), "q10")
    settings = Settings(TraceRules(), Index({}), "off", False)
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        result = sift(source(rows), settings, folder / "work", folder / "out.jsonl", processes)
        found.append((result, (folder / "out.jsonl").read_bytes()))
    assert found[0] == found[1] and found[0][0]["kept"] == 1499


# ---- the judge


def fake(replies: dict[str, tuple[str, str]], asked: list[str]) -> judging.Judge:
    """Answers by a word of the trace: (asked with SOUND first, asked with FALSE first)."""

    def answer(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        found = []
        for text in texts:
            name = next(name for name in replies if name in text)
            found.append(replies[name][text.index('"VERDICT: SOUND"') > text.index('"VERDICT: FALSE"')])
        return found

    return answer


def test_two_complaints_drop_a_trace_and_a_split_opinion_does_not(tmp_path: Path) -> None:
    good, bad = "All fine.\nVERDICT: SOUND", 'VERDICT: FALSE "the moon is cheese"'
    replies = {"apple": (good, good), "cheese": (bad, bad), "split": (good, bad), "mute": ("Hm.", bad)}
    asked: list[str] = []
    rules = TraceRules.model_validate(
        {"judge": {"kind": "endpoint", "url": "http://x/v1", "model": "m"}, "judge_audit": 2}
    )
    settings = Settings(rules, Index({}), "off", False)
    rows = [row(f"the {name} it is", name) for name in replies]
    for _ in range(2):  # the second call finds every reply in the journal
        found = sift(source(rows), settings, tmp_path / "work", tmp_path / "out.jsonl", 1, fake(replies, asked))
    assert len(asked) == 8 and found["kept"] == 3
    rule = next(rule for rule in found["rules"] if rule["rule"] == "judge")
    assert rule["dropped"] == 1 and "the moon is cheese" in rule["examples"][0]["detail"]
    told = found["judge"]
    assert (told["asked"], told["complaints"], told["split"], told["unread"], told["sample"]) == (4, 1, 1, 1, 2)
    assert told["self_agreement"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("VERDICT: SOUND", "sound"),
        ("verdict: **FALSE** 2 + 2 is 5", "false"),
        ('I could say "VERDICT: FALSE" but no.\nVERDICT: SOUND', "sound"),
        ("It is sound.", "unread"),
        ("", "unread"),
    ],
)
def test_the_last_verdict_of_a_reply_counts(reply: str, verdict: str) -> None:
    assert judging.read(reply)[0] == verdict


def test_the_rows_of_the_funnel_are_json(tmp_path: Path) -> None:
    run(tmp_path, [row("half of a pair \ud83d here", "q", more={"source": "x"})])
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "x"
