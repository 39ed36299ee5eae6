"""Instructions that a program can check, with the ids and arguments of IFEval (arXiv 2311.07911), read strictly.

    reference [{"id": "length_constraints:number_words", "kwargs": {"num_words": 5, "relation": "at least"}},
               {"id": "punctuation:no_comma", "kwargs": {}}]

The whole answer part is checked, offline and deterministically. Score 1.0 only when every instruction holds.
Differences from the published checkers: keywords are text and not patterns, sentences are split by a rule instead of
a trained model, the letter-case instructions do not ask which language it is, `language:response_language` is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from motet.base.records import Problem, Verdict

Check = Callable[..., bool]


def verify(problem: Problem, answer: str) -> Verdict:
    trouble = gold(problem)
    if trouble:
        return Verdict("invalid_problem", None, None, trouble)
    if not answer.strip():
        return Verdict("no_answer", 0.0, None, "the answer is empty")
    failed = [item["id"] for item in problem.reference if not _holds(item, answer)]
    if failed:
        return Verdict("incorrect", 0.0, None, "failed: " + ", ".join(failed))
    return Verdict("correct", 1.0, None)


def gold(problem: Problem) -> str | None:
    """Why the list of instructions is unusable: an unknown id, a missing, unknown or ill-typed argument."""
    reference = problem.reference
    if not isinstance(reference, list) or not reference:
        return "the reference must be a list of at least one {id, kwargs}"
    for item in reference:
        if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
            return f"{item!r} is no {{id, kwargs}}"
        rule = RULES.get(item["id"])
        if rule is None:
            return f"unknown instruction {item['id']!r}"
        given = _given(item)
        for name, kind in rule.arguments.items():
            if name not in given:
                return f"{item['id']} needs the argument {name}"
            if not _fits(given[name], kind):
                return f"{item['id']}: {name} = {given[name]!r} is no {kind}"
        if unknown := sorted(set(given) - set(rule.arguments)):
            return f"{item['id']} has no argument {unknown[0]}"
    return None


def _given(item: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without the nulls that tables with one column for each put in."""
    return {name: value for name, value in (item.get("kwargs") or {}).items() if value is not None}


def _holds(item: Mapping[str, Any], answer: str) -> bool:
    return RULES[item["id"]].check(answer, **_given(item))


def _fits(value: Any, kind: str) -> bool:
    if kind == "count":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (whole or (isinstance(value, float) and value.is_integer())) and value >= 0
    if kind == "relation":
        return value in ("less than", "at least")
    if kind == "texts":
        return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)
    if kind == "letter":
        return isinstance(value, str) and len(value) == 1
    return isinstance(value, str) and bool(value.strip())


@dataclass(frozen=True, slots=True)
class Rule:
    check: Check
    arguments: Mapping[str, str]
    """Name to kind: "count", "relation", "texts", "letter", "text"."""


def _related(number: int, relation: str, bound: int) -> bool:
    return number < bound if relation == "less than" else number >= bound


def _existence(text: str, keywords: list[str]) -> bool:
    lower = text.lower()
    return all(word.lower() in lower for word in keywords)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(text.lower().count(keyword.lower()), relation, frequency)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|al|No|[A-Z])\.(?=\s)", re.IGNORECASE)


def sentences(text: str) -> int:
    """Runs of text ended by . ! or ?, or by a blank line; abbreviations and initials end none."""
    text = _ABBREVIATION.sub(lambda match: match.group().replace(".", " "), text)
    parts = re.split(r"(?<![.!?])[.!?]+[\"'\u201d\u2019)\]*]*(?=\s|$)|\n\s*\n", text)
    return sum(1 for part in parts if re.search(r"\w", part))


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _related(sentences(text), relation, num_sentences)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are separated by the line ***; an empty one in the middle is an error, at an end it is not counted."""
    paragraphs = [part.strip() for part in text.split("***")]
    while paragraphs and not paragraphs[0]:
        paragraphs.pop(0)
    while paragraphs and not paragraphs[-1]:
        paragraphs.pop()
    return all(paragraphs) and len(paragraphs) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Here paragraphs are separated by a blank line."""
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= len(paragraphs):
        return False
    first = re.match(r"[\"'\u201c\u2018*]*([^\s.,?!\"'\u201d\u2019*]+)", paragraphs[nth_paragraph - 1])
    return first is not None and first[1].lower() == first_word.lower()


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*[^*\n]|-).*$", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    """*like this* or **like this**."""
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(1 for double, single in found if (double or single).strip()) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Headings such as "Section 1"; the name of the argument is the data's."""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _title(text: str) -> bool:
    """<<like this>>, on one line."""
    for line in text.splitlines():
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<> \t"):
            return True
    return False


def _json(text: str) -> bool:
    body = text.strip().removesuffix("```")
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _constrained(text: str) -> bool:
    return any(option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _postscript(text: str, postscript_marker: str) -> bool:
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = spaced.get(postscript_marker.strip(), re.escape(postscript_marker.strip()))
    return re.search(rf"^[ \t]*{marker}", text, re.IGNORECASE | re.MULTILINE) is not None


def _placeholders(text: str, num_placeholders: int) -> bool:
    """[like this]."""
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def _end(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"\w[\w'-]*", text)
    return _related(sum(1 for word in words if word.isupper()), capital_relation, capital_frequency)


def _repeat(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _two_responses(text: str) -> bool:
    """Two different answers around ******."""
    answers = [part.strip() for part in text.split("******")]
    inner = [part for position, part in enumerate(answers) if part or 0 < position < len(answers) - 1]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


RULES: dict[str, Rule] = {
    "keywords:existence": Rule(_existence, {"keywords": "texts"}),
    "keywords:forbidden_words": Rule(_forbidden, {"forbidden_words": "texts"}),
    "keywords:frequency": Rule(_frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}),
    "keywords:letter_frequency": Rule(
        _letter_frequency, {"letter": "letter", "let_frequency": "count", "let_relation": "relation"}
    ),
    "length_constraints:number_words": Rule(_number_words, {"num_words": "count", "relation": "relation"}),
    "length_constraints:number_sentences": Rule(_number_sentences, {"num_sentences": "count", "relation": "relation"}),
    "length_constraints:number_paragraphs": Rule(_number_paragraphs, {"num_paragraphs": "count"}),
    "length_constraints:nth_paragraph_first_word": Rule(
        _nth_paragraph, {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"}
    ),
    "detectable_format:number_bullet_lists": Rule(_bullets, {"num_bullets": "count"}),
    "detectable_format:number_highlighted_sections": Rule(_highlights, {"num_highlights": "count"}),
    "detectable_format:multiple_sections": Rule(_sections, {"section_spliter": "text", "num_sections": "count"}),
    "detectable_format:title": Rule(_title, {}),
    "detectable_format:json_format": Rule(_json, {}),
    "detectable_format:constrained_response": Rule(_constrained, {}),
    "detectable_content:postscript": Rule(_postscript, {"postscript_marker": "text"}),
    "detectable_content:number_placeholders": Rule(_placeholders, {"num_placeholders": "count"}),
    "startend:end_checker": Rule(_end, {"end_phrase": "text"}),
    "startend:quotation": Rule(_quotation, {}),
    "change_case:english_lowercase": Rule(str.islower, {}),
    "change_case:english_capital": Rule(str.isupper, {}),
    "change_case:capital_word_frequency": Rule(
        _capital_words, {"capital_frequency": "count", "capital_relation": "relation"}
    ),
    "punctuation:no_comma": Rule(lambda text: "," not in text, {}),
    "combination:repeat_prompt": Rule(_repeat, {"prompt_to_repeat": "text"}),
    "combination:two_responses": Rule(_two_responses, {}),
}
