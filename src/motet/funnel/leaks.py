"""What a trace gives away of its writing: instructions, the gold answer, the template, the teacher's name."""

from __future__ import annotations

import re

from motet.funnel.candidate import View
from motet.funnel.structure import named
from motet.funnel.words import grams, words

QUOTED = 12
"""Words of the system message in a row that make a quotation."""
_PROMPT = (
    "system prompt", "system message", "developer message", "my instructions say", "i was instructed to",
    "i have been instructed to", "the prompt asks me", "as an ai language model",
)  # fmt: skip
_GOLD = (
    "reference solution", "reference answer", "ground truth answer", "ground-truth answer", "gold answer",
    "gold solution", "answer key", "provided reference", "provided solution", "official solution", "official answer",
)  # fmt: skip
_TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id|"
    r"begin_of_thought|end_of_thought|begin_of_solution|end_of_solution|system|user|assistant|end|channel|message|"
    r"start|return|call|constrain|python_tag|tool_calls?_begin|tool_calls?_end)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^\uff5c\n]{1,40}\uff5c>|</?tool_(?:call|response)>"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\]|</?(?:bos|eos|pad|unk)>"
)
_IDENTITY = re.compile(
    r"\bi(?:'m| am) (?:an? )?(?:chatgpt|claude|gemini|gemma|llama|mistral|grok|gpt|bard|copilot|ernie|doubao|yi)\b"
    r"|\b(?:developed|created|trained|made|built) by (?:openai|anthropic|google|meta|alibaba|mistral|microsoft|xai|"
    r"moonshot|zhipu|baidu|tencent|bytedance)\b"
    r"|\b(?:openai|anthropic|google)(?:'s)? (?:content )?(?:polic(?:y|ies)|guidelines)\b"
)
_IDENTITY_HINTS = ("i'm ", "i am ", "ed by ", "made by", "built by", "polic", "guidelines")


def prompt_leak(view: View) -> str | None:
    """A phrase about the instructions, or twelve words of the system message in a row."""
    found = _phrase(_PROMPT, view)
    if found:
        return found
    if view.system:
        own = set(grams(words(view.system).hashes, QUOTED).tolist())
        if not own.isdisjoint(grams(view.trace_words.hashes, QUOTED).tolist()):
            return f"{QUOTED} words of the system message in a row"
    return None


def gold_leak(view: View) -> str | None:
    return _phrase(_GOLD, view)


def template_leak(view: View) -> str | None:
    if "<" not in view.trace and "[" not in view.trace:
        return None
    for match in _TEMPLATE.finditer(view.trace):
        if match.group() not in view.prompt:
            return f"a template token: {match.group()}"
    return None


def teacher_leak(view: View, names: tuple[str, ...]) -> str | None:
    prompt = view.prompt.lower()
    for name in named(view.lowered, names):
        if name not in prompt:
            return f"it names {name!r}"
    if any(hint in view.lowered for hint in _IDENTITY_HINTS):
        for match in _IDENTITY.finditer(view.lowered):
            if match.group() not in prompt:
                return f"it says {match.group()!r}"
    return None


def _phrase(phrases: tuple[str, ...], view: View) -> str | None:
    for phrase in phrases:
        if phrase in view.lowered and phrase not in view.prompt.lower():
            return f"it says {phrase!r}"
    return None
