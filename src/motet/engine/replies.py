"""The two ends of a chat completion over HTTP: the request's body, and the reply's choices as completions.

Reasoning that a server sends apart from the answer is put back, whatever it calls it: `reasoning_content` (vLLM,
DeepSeek), `reasoning` (vLLM from 0.11, OpenRouter) or a list of parts of type "thinking" (Mistral). All of them become
"<think>\\n12 + 7 is 19.\\n</think>\\n\\n19", and tags inside the text stay where they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from motet.base.records import Completion, Stop
from motet.engine.protocol import Request, SamplingParams

VERSION = 0
"""Of an endpoint's weights, which never change."""
ENDED = ("stop", "eos", "stop_sequence", "end_turn", None)
"""Reasons to finish that the model itself had. Any other ("length", "content_filter", "abort") cut the text."""


class Usage(NamedTuple):
    """Tokens of one request, all choices together."""

    input: int
    output: int


def payload(
    model: str | None,
    request: Request,
    sampling: SamplingParams,
    n: int = 1,
    extra: Mapping[str, Any] | None = None,
    scored: bool = True,
) -> dict[str, Any]:
    """`n` completions of one conversation. `scored`: with the ids and log-probabilities of their tokens."""
    return {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed % 2**31,  # what every server can hold
        **({"n": n} if n > 1 else {}),
        **({"return_token_ids": True} if scored else {}),
        # servers tell the log-probabilities of the distribution before the temperature
        **({"logprobs": True} if scored and sampling.temperature == 1.0 else {}),
        **(extra or {}),
    }


def largest_usage(request: Request, max_tokens: int, n: int = 1) -> Usage:
    """What a request can take at most: no tokenizer makes more tokens of a text than it has bytes, and the template
    puts some around each turn."""
    text = sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages)
    return Usage(text + 64 * (len(request.messages) + 1), n * max_tokens)


def usage_of(reply: Any) -> Usage | None:
    """What the server says that it took; None where it says nothing of use."""
    told = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(told, dict):
        return None
    read, written = told.get("prompt_tokens"), told.get("completion_tokens")
    return (
        Usage(read, written) if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0 else None
    )


def completions(reply: Any) -> list[Completion]:
    """All choices of a chat completion, at least one, in the order of their index. What is none raises ValueError,
    LookupError, TypeError or AttributeError."""
    choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
    if not choices:
        raise ValueError("a reply without choices")
    return [_completion(choice) for choice in choices]


def _completion(choice: Any) -> Completion:
    message = choice["message"]
    finish = choice.get("finish_reason")
    if finish == "error" or choice.get("error"):
        raise ValueError("the server gave up in the middle of it")
    stop: Stop = "end" if finish in ENDED else "length"
    tokens = tuple(int(token) for token in choice.get("token_ids") or ())
    scored = (choice.get("logprobs") or {}).get("content") or ()
    if tokens and len(scored) != len(tokens):
        scored = ()
    content, reasoning = parts_of(message.get("content"))
    apart = message.get("reasoning_content") or message.get("reasoning") or reasoning
    return Completion(
        text=full_text(content, apart, finish),
        tokens=tokens,
        logprobs=tuple(float(token["logprob"]) for token in scored),
        stop=stop,
        version=VERSION,
    )


def parts_of(content: Any) -> tuple[Any, str]:
    """(answer, reasoning) of a content that is a list of typed parts; any other content is all answer."""
    if not isinstance(content, list):
        return content, ""
    answer, reasoning = [], []
    for part in content:
        if part["type"] == "thinking":
            inner = part["thinking"]
            reasoning.append(inner if isinstance(inner, str) else "".join(item["text"] for item in inner))
        elif part["type"] in ("text", "output_text"):
            answer.append(part["text"])
    return "".join(answer), "".join(reasoning)


def full_text(content: Any, reasoning: Any, finish: str | None) -> str:
    """One text with its reasoning between think tags. A template that opens the block in the prompt leaves the reply
    with the closing tag alone: the opening one is put back."""
    if not isinstance(content, str | None) or not isinstance(reasoning, str | None):
        raise TypeError("a text was expected")
    if not reasoning:
        text = content or ""
        return f"<think>\n{text.lstrip()}" if "</think>" in text and "<think>" not in text else text
    if not content and finish == "length":  # cut inside the reasoning, which therefore never ended
        return f"<think>\n{reasoning.strip()}"
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{(content or '').lstrip()}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds by the Retry-After header: a number or a date (RFC 9110, 10.2.3). None where it says nothing."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


_TOO_LONG = re.compile(r"context[ _](?:length|window|size)|maximum context|too long|too many tokens", re.IGNORECASE)
_CREDIT = re.compile(r"insufficient_quota|insufficient (?:credit|balance|funds)|exceeded your current quota", re.I)
_SEVERAL = re.compile(r"[\"'`]n[\"'`]|\bn ?(?:>|=|must|should|is\b)|\bchoices?\b|best_of|multiple completions", re.I)


def is_permanent(status: int, text: str) -> bool:
    """Whether the same request would be refused again: all of 4xx but those that name a passing state. A 429 for used
    up credit passes when somebody pays, not by waiting."""
    if _CREDIT.search(text):
        return True
    return 400 <= status < 500 and status not in (408, 409, 425, 429)


def refuses_several(text: str) -> bool:
    """Whether a refusal may be about `n`."""
    return not _TOO_LONG.search(text) and bool(_SEVERAL.search(text))


def advice(status: int, text: str, variable: str, model: str | None) -> str:
    """What to do about a refusal."""
    if _CREDIT.search(text) or status == 402:
        return "The account has no credit left; the same command goes on when it has."
    if status in (400, 413, 422) and _TOO_LONG.search(text):
        return (
            "Prompt and sampling.max_tokens together pass the model's context: lower max_tokens, or leave the longest "
            "problems out."
        )
    return {
        401: f"Put the key into the environment variable {variable}.",
        403: f"The key in the environment variable {variable} does not open this model.",
        404: f"See that url ends with the API's root, /v1 say, and that it has {model!r}.",
    }.get(status, "Change the request as the server says (extra, omit, sampling); the same one would be refused again.")
