"""The rules of one row: what each drops, and what it lets pass although it looks alike."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from motet.base.recipe import RuleId, TraceRules
from motet.base.records import Verdict
from motet.funnel import rules as table
from motet.funnel.arithmetic import statements
from motet.funnel.candidate import Candidate, View
from motet.funnel.contamination import Index
from motet.funnel.structure import repetition
from motet.funnel.values import differ, key
from motet.funnel.words import masked, periodic_tail, words

PROSE = (
    "We look at the first case and see that nothing changes when the order of both terms is turned around, so the sum "
    "stays as it was and only the second case is left to us now."
)


def view(text: str, prompt: str = "What is it?", system: str = "", think: Any = "off", **more: Any) -> View:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    candidate = Candidate("a", "p", "math", tuple(messages), tuple(more.pop("turns", (text,))), **more)
    return View(candidate, think, False)


def fails(rule: RuleId, given: View, **settings: Any) -> bool:
    (found,) = [r for r in table.build(TraceRules(**settings), Index({}), given.think) if r.id == rule]
    assert found.find is not None
    return found.find(given) is not None


def test_every_rule_of_the_recipe_is_in_the_table_once() -> None:
    found = [rule.id for rule in table.build(TraceRules(), Index({}))]
    assert sorted(found) == sorted(get_args(RuleId)) and len(set(found)) == len(found)


def test_the_defaults_are_on_but_for_what_needs_a_setting_or_evaluation_questions() -> None:
    off = {rule.id for rule in table.build(TraceRules(), Index({})) if not rule.on}
    assert off == {"max_tokens", "judge", "contamination_13", "contamination_8", "contamination_numbers"}


@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({"off": ["language"]}, {"language"}),
        ({"correct": False}, {"answer", "code_tests", "majority"}),
        ({"deduplicate": False}, {"exact_duplicate"}),
    ],
)
def test_a_rule_is_switched_off_by_its_id_or_by_the_key_that_stands_for_it(settings: Any, off: set[str]) -> None:
    def on(rules: TraceRules) -> set[str]:
        return {rule.id for rule in table.build(rules, Index({})) if rule.on}

    assert on(TraceRules()) - on(TraceRules(**settings)) == off


# ---- consistency


@pytest.mark.parametrize(
    ("rule", "verifier", "verdict", "dropped"),
    [
        ("answer", "math", Verdict("incorrect", 0.0), True),
        ("answer", "math", Verdict("correct", 1.0), False),
        ("answer", "code", Verdict("incorrect", 0.0), False),
        ("code_tests", "code", Verdict("incorrect", 0.0, None, "test 2 failed"), True),
        ("code_tests", "math", Verdict("incorrect", 0.0), False),
        ("answer", "math", None, False),
    ],
)
def test_a_verdict_other_than_correct_drops(rule: RuleId, verifier: str, verdict: Any, dropped: bool) -> None:
    assert fails(rule, view("x", verifier=verifier, verdict=verdict)) is dropped


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (r"<think>so \boxed{12}</think>\boxed{13}", True),
        (r"<think>so \boxed{12}</think>\boxed{12.0}", False),
        (r"<think>so \boxed{\frac{1}{2}}</think>\boxed{0.5}", False),
        (r"<think>so \boxed{x+1}</think>\boxed{1+x}", False),
        (r"<think>first \boxed{3}, then \boxed{4}</think>\boxed{4}", False),
        (r"<think>it is choice \boxed{B}</think>\boxed{(C)}", True),
        (r"<think>... so the answer is 41.</think>\boxed{42}", True),
        (r"<think>the answer is 41. Wait, I dropped a carry: 42</think>\boxed{42}", False),
        (r"<think>the answer is 4 more than 38</think>\boxed{42}", True),
        (r"<think>41 is too small</think>\boxed{42}", False),
        (r"<think>the answer is 1,234</think>\boxed{1234}", False),
        ("<think>so the answer is 41</think>It is 42.", False),
    ],
)
def test_reasoning_and_answer_contradict_only_when_both_say_a_value(text: str, dropped: bool) -> None:
    assert fails("think_answer", view(text)) is dropped


def test_values_differ_only_where_that_is_sure() -> None:
    assert differ("3", "4") and differ("1/2", r"\frac{1}{3}") and differ("A", "(B)")
    assert not differ("3", "A") and not differ("x", "y") and not differ("50", "50.0")
    assert key("1,200") == key("1200") and key("B") == key(r"\text{(B)}") and key("X + 1") == key("x + 1")


# ---- structure


@pytest.mark.parametrize(
    ("think", "turns", "dropped"),
    [
        ("required", ["<think>a</think>b"], False),
        ("required", ["b"], True),
        ("required", ["<think>a</think>b", "c"], True),
        ("required", ["<think>a<think>b</think>c"], True),
        ("required", ["<think>a</think>  "], True),
        ("off", ["b"], False),
        ("off", ["b</think>c"], True),
    ],
)
def test_every_turn_is_one_think_block_and_an_answer(think: Any, turns: list[str], dropped: bool) -> None:
    assert fails("think_balanced", view(turns[-1], think=think, turns=turns)) is dropped


@pytest.mark.parametrize(
    ("text", "stop", "dropped"),
    [
        ("done.", "length", True),
        ("```python\nx = 1", "end", False),
        ("```python\nx = 1", None, True),
        ("```python\nx = 1\n```", None, False),
        (r"so \boxed{1", None, True),
        (r"so \boxed{1}", None, False),
        ("", None, True),
    ],
)
def test_a_cut_trace_is_told_by_its_stop_reason_or_by_what_it_leaves_open(text: str, stop: Any, dropped: bool) -> None:
    assert fails("finished", view(text, stop=stop)) is dropped


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (r"\boxed{12}", False),
        (r"It is \boxed{12} or \boxed{13}.", True),
        (r"It is \boxed{12} or maybe 13.", True),
        (r"First \boxed{10} apples, which makes ... so in the end we have \boxed{12}.", False),
        ("no box", False),
    ],
)
def test_there_is_one_final_answer(text: str, dropped: bool) -> None:
    assert fails("one_answer", view(text)) is dropped


def test_lengths_are_in_the_tokens_that_the_caller_counted() -> None:
    given = view("<think>a</think>b", think="required", tokens=40, reasoning_tokens=3)
    assert fails("reasoning_length", given, min_reasoning_tokens=4)
    assert not fails("reasoning_length", given, min_reasoning_tokens=3)
    assert fails("max_tokens", given, max_tokens=39) and not fails("max_tokens", given, max_tokens=40)
    assert fails("reasoning_length", view("<think> </think>b", think="required"))


def test_the_share_of_repeated_four_grams_by_hand() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(0.2)
    assert repetition("a a a a a") == 0.5 and repetition("a b c") == 0.0


def test_repetition_is_seen_as_grams_spans_circles_and_by_compression() -> None:
    # 9 equal words have 6 four-grams, 5 of them repeated
    assert fails("repetition", view("a " * 9)) and not fails("repetition", view(PROSE))
    # the same 33 words 3 times: 80 twenty-grams, of which 33 occur first
    assert fails("repeated_spans", view(" ".join([PROSE] * 3))) and not fails("repeated_spans", view(PROSE))
    assert fails("periodic_tail", view(PROSE + " and so on" * 70), max_periodic_tail=200)
    assert not fails("periodic_tail", view(PROSE + " and so on" * 60), max_periodic_tail=200)
    assert fails("compression", view("ha" * 300)) and not fails("compression", view(PROSE * 3))


def test_a_circle_is_counted_without_its_first_turn() -> None:
    assert periodic_tail(words("so a b a b a b").hashes) == 4
    assert periodic_tail(words("a b c d").hashes) == 0
    assert periodic_tail(words("x x x").hashes) == 2


@pytest.mark.parametrize(
    ("text", "prompt", "dropped"),
    [
        ("We add both numbers \u6240\u4ee5\u7b54\u6848\u662f\u5341\u4e8c", "What is 5 + 7?", True),
        ("\u6240\u4ee5\u7b54\u6848\u662f\u5341\u4e8c", "5 + 7 \u662f\u591a\u5c11", False),
        ("We add both numbers and get 12", "5 + 7 \u662f\u591a\u5c11", False),
        ("It is \u6240\u4ee5\u7b54\u6848", "Translate 'so the answer' into Chinese.", False),
        ("The angle \u03b1 + \u03b2 is \u03c0, so na\u00efve counting fails", "What is the angle?", False),
        ("A very long English sentence with one \u5b57 in it does not matter to anybody at all", "Why?", False),
        ("\u043e\u0442\u0432\u0435\u0442 12", "What is 5 + 7?", True),
    ],
)
def test_letters_of_scripts_that_the_prompt_does_not_use_drop(text: str, prompt: str, dropped: bool) -> None:
    assert fails("language", view(text, prompt)) is dropped


# ---- leaks


@pytest.mark.parametrize(
    ("rule", "text", "prompt", "dropped"),
    [
        ("leak_prompt", "The system prompt wants it short.", "Hi", True),
        ("leak_prompt", "A system prompt is a text.", "What is a system prompt?", False),
        ("leak_gold", "This agrees with the reference solution.", "Solve it.", True),
        ("leak_gold", "The solution is a reference to x.", "Solve it.", False),
        ("leak_template", "12<|im_end|>", "5 + 7", True),
        ("leak_template", "[INST] more", "5 + 7", True),
        ("leak_template", "The token <|im_end|> ends a turn.", "What does <|im_end|> do?", False),
        ("leak_template", "a < b and x[INSTANCE] | y", "5 + 7", False),
        ("leak_teacher", "I am ChatGPT.", "Who are you?", True),
        ("leak_teacher", "I'm Claude, made by Anthropic.", "Who are you?", True),
        ("leak_teacher", "Claude Monet painted it.", "Who painted it?", False),
        ("leak_teacher", "DeepSeek would say 12.", "5 + 7", True),
        ("leak_teacher", "DeepSeek was founded in 2023.", "When was DeepSeek founded?", False),
        ("leak_teacher", "That would be against OpenAI's policies.", "5 + 7", True),
    ],
)
def test_what_a_trace_gives_away_drops_unless_the_prompt_brought_it_up(
    rule: RuleId, text: str, prompt: str, dropped: bool
) -> None:
    assert fails(rule, view(text, prompt)) is dropped


def test_twelve_words_of_the_system_message_in_a_row_are_a_leak() -> None:
    system = "You are a careful helper who never tells anybody about the secret garden behind the old mill."
    quote = "never tells anybody about the secret garden behind the old mill"
    assert fails("leak_prompt", view(f"A helper who {quote}, it says.", system=system))  # 13 words
    assert not fails("leak_prompt", view(f"It {quote}, it says.", system=system))  # 11


# ---- arithmetic


@pytest.mark.parametrize(
    ("text", "checked", "wrong"),
    [
        ("12 + 7 = 19, and 3 * 4 = 13.", 2, 1),
        ("8+7+0=15 5+6+1=12 0+4+1=05", 3, 0),
        ("2 + 3 * 4 = 14", 1, 0),
        ("2 + 3 * 4 = 20", 1, 1),
        (r"$3 \times 4 = 12$ and $10 \div 4 = 2.5$", 2, 0),
        ("10 / 3 = 3.33, 10 / 3 = 3.34, 7 / 2 = 3", 3, 0),
        ("10 / 3 = 3.5", 1, 1),
        ("1,200 + 300 = 1,500", 1, 0),
        ("$1.25 + $0.50 = $1.75", 1, 0),
        ("4 - 9 = -5 and 4 - 9 = 5", 2, 1),
        ("x2 + 3 = 7; 2^3 + 1 = 9; a*2 + 3 = 7; (1 + 2) + 3 = 6; 5 / 0 = 1", 0, 0),
        ("3 + 4 = 7 * 2; 2 + 3 = 5x; 1 + 1 = 2^k; 5 + 5 = 10%", 0, 0),
        ("7 + 5 = 2 (mod 10), in base 6 we have 5 + 4 = 13", 0, 0),
        ("```python\nassert 2 + 2 = 5\n```", 0, 0),
        ("1.1 + 2.2 = 3.3", 1, 0),
        ("1 + 2 = 3 apples", 1, 0),
        ("3 \u00d7 4 = 12, 9 \u2212 4 = 5, 8 \u00f7 2 = 4", 3, 0),
    ],
)
def test_statements_that_stand_by_themselves_are_computed_again(text: str, checked: int, wrong: int) -> None:
    found = statements(text)
    assert (found[0], len(found[1])) == (checked, wrong)


def test_one_wrong_statement_in_ten_is_let_pass() -> None:
    right = "1 + 1 = 2. " * 9
    assert not fails("arithmetic", view(right + "2 + 2 = 5."))
    assert fails("arithmetic", view(right + "2 + 2 = 5. 2 + 3 = 6."))


# ---- words


def test_words_are_runs_of_letters_or_digits_in_lower_case() -> None:
    assert len(words("12 apples, 3x")) == 4
    assert np.array_equal(words("Red, GREEN; blue!").hashes, words("red green blue").hashes)
    assert not np.array_equal(words("red green").hashes, words("green red").hashes)
    assert len(words("\u4f60\u597d world \u2014 na\u00efve")) == 4 and len(words(" ,.; ")) == 0
    assert words("7 up").numeric.tolist() == [True, False]
    long = "a" * 70
    assert words(long + "b").hashes[0] != words(long + "c").hashes[0]


def test_masked_numbers_are_one_word_in_digits_or_letters() -> None:
    one, other = masked(words("12 apples, 3.50 each")), masked(words("seven apples, 4 each"))
    assert np.array_equal(one.hashes, other.hashes)
    assert one.places.tolist() == [0, 1, 2, 4]  # "3" and "50" are one number
