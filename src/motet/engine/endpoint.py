"""Samples from an OpenAI-compatible server: a teacher, or a model that only an address is known of.

Not for RL: a server of this kind takes no weights, and the tokens of another tokenizer mean nothing to the learner.
`tokens` are empty unless the server tells their ids (vLLM does). `logprobs` are asked for at temperature 1 alone, since
servers tell those of the distribution before the temperature; they are empty where the server tells none. Reasoning
that a server sends apart from the answer is put back: "<think>\\n12 + 7 is 19.\\n</think>\\n\\n19".
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from motet.base.errors import UserError
from motet.base.recipe import Engine
from motet.base.records import Completion, Stop
from motet.engine.protocol import Request, SamplingParams

if TYPE_CHECKING:
    import httpx
    import torch

log = logging.getLogger("motet")

OPTIONAL = ("return_token_ids", "logprobs", "seed")
"""Fields that some servers refuse; a refused one is left out from then on."""
LONGEST_BACKOFF_SECONDS = 60.0


class EndpointEngine:
    """Asks for up to `batch_size` completions at once. `backoff_seconds` is the first wait after a failure; each
    further one is twice as long, up to a minute, less up to a half at random; a server's Retry-After goes before it.
    """

    version = 0

    def __init__(self, settings: Engine, backoff_seconds: float = 1.0) -> None:
        import httpx

        url = (settings.url or "").rstrip("/")
        try:
            valid = httpx.URL(url).scheme in ("http", "https") and httpx.URL(url).host
        except httpx.InvalidURL:
            valid = False
        if not valid:
            raise UserError(f"engine.url: {settings.url!r} is no http address. Give one like http://localhost:8000/v1.")
        self.settings = settings
        self.url = url + "/chat/completions"
        self.backoff_seconds = backoff_seconds
        self.omitted: set[str] = set()
        self._quiet_until = 0.0
        key = os.environ.get(settings.api_key_env, "").strip()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout_seconds, connect=min(20.0, settings.timeout_seconds)),
            limits=httpx.Limits(max_connections=settings.batch_size, max_keepalive_connections=settings.batch_size),
        )

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        """As `Engine.generate`. Raises UserError when the server refuses a request or stays out of reach."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[int, Completion | Exception]] = queue.SimpleQueue()
        for index in range(len(requests)):
            waiting.put(index)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended.put((index, self._ask(requests[index], sampling, stopped)))
                except Exception as error:  # raised again in the caller's thread
                    ended.put((index, error))

        # daemons, not an executor's threads: those are joined when Python exits, and Ctrl-C would wait for the server
        for _ in range(min(self.settings.batch_size, len(requests))):
            threading.Thread(target=work, name="motet-endpoint", daemon=True).start()
        try:
            for _ in range(len(requests)):
                index, result = ended.get()
                if isinstance(result, Exception):
                    raise result
                yield index, result
        finally:
            stopped.set()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        raise UserError(
            f"the endpoint {self.settings.url} cannot take new weights, so it cannot sample from a model in training. "
            'Set engine.kind = "transformers"; an endpoint can be the teacher of a synthesize stage.'
        )

    def close(self) -> None:
        """A `generate` that is under way then raises."""
        self._client.close()

    def _ask(self, request: Request, sampling: SamplingParams, stopped: threading.Event) -> Completion:
        """One completion, with the repeated tries that it takes."""
        import httpx

        failures = 0
        while True:
            body = {k: v for k, v in payload(self.settings.model, request, sampling).items() if k not in self.omitted}
            delay = None
            try:
                reply = self._client.post(self.url, json=body)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if reply.status_code in (400, 422) and self._omit(reply.text, body):
                    continue
                if reply.is_success:
                    try:
                        return completion(reply.json())
                    except (ValueError, LookupError, TypeError, AttributeError):
                        problem = f"not a chat completion: {reply.text[:200]!r}"
                elif reply.status_code in (408, 425, 429) or reply.status_code >= 500:
                    problem = f"status {reply.status_code}: {reply.text[:200]}"
                    delay = retry_after(reply)
                else:
                    raise self._refusal(reply)
            failures += 1
            if failures > self.settings.retries:
                raise UserError(
                    f"{self.url} gave no completion in {failures} tries; the last: {problem}. "
                    "See that the server runs and that engine.url is right; engine.retries and engine.timeout_seconds "
                    "allow for a slower one."
                )
            self._wait(failures, delay, problem, stopped)

    def _wait(self, failures: int, delay: float | None, problem: str, stopped: threading.Event) -> None:
        jitter = random.uniform(0.5, 1.0)
        backoff = min(LONGEST_BACKOFF_SECONDS, self.backoff_seconds * 2.0 ** (failures - 1)) * jitter
        # a server that asks for hours gets another try within timeout_seconds all the same
        seconds = backoff if delay is None else min(delay, self.settings.timeout_seconds) + backoff / 10
        now = time.monotonic()
        if now >= self._quiet_until:  # all threads meet the same trouble: one line tells it
            self._quiet_until = now + 10.0
            tries = f"{failures} of {self.settings.retries}"
            log.warning("%s: %s; next try (%s) in %.0f s", self.settings.url, problem, tries, seconds)
        if stopped.wait(seconds):
            raise UserError(f"{self.url}: nobody waits for this completion any more")

    def _omit(self, text: str, body: Mapping[str, Any]) -> bool:
        """Whether the refusal names an optional field that was sent; such a field is not sent again."""
        refused = [name for name in OPTIONAL if name in text and name in body]
        for name in refused:
            if name not in self.omitted:
                self.omitted.add(name)
                level = logging.WARNING if name == "seed" else logging.INFO
                log.log(level, "%s does not take %r; it is left out from now on", self.settings.url, name)
        return bool(refused)

    def _refusal(self, reply: httpx.Response) -> UserError:
        advice = {
            401: f"Put the key into the environment variable {self.settings.api_key_env}.",
            403: f"The key in the environment variable {self.settings.api_key_env} does not open this model.",
            404: f"See that engine.url ends with the API's root, /v1 say, and that it has {self.settings.model!r}.",
        }.get(reply.status_code, "Change the request as the server says; the same one would be refused again.")
        return UserError(f"{self.url} refused with status {reply.status_code}: {reply.text[:500].strip()!r}. {advice}")


def payload(model: str | None, request: Request, sampling: SamplingParams) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed % 2**31,  # what every server can hold
        "return_token_ids": True,
        **({"logprobs": True} if sampling.temperature == 1.0 else {}),
    }


def completion(reply: Any) -> Completion:
    """The first choice of a chat completion; what is none raises one of the errors that `_ask` expects."""
    choice = reply["choices"][0]
    message = choice["message"]
    finish = choice.get("finish_reason")
    # any other reason ("content_filter", "abort") cut the text too: it must not be judged as an ended one
    stop: Stop = "end" if finish in ("stop", "eos", None) else "length"
    tokens = tuple(int(token) for token in choice.get("token_ids") or ())
    scored = (choice.get("logprobs") or {}).get("content") or ()
    if tokens and len(scored) != len(tokens):
        scored = ()
    return Completion(
        text=full_text(message.get("content"), message.get("reasoning_content") or message.get("reasoning"), finish),
        tokens=tokens,
        logprobs=tuple(float(token["logprob"]) for token in scored),
        stop=stop,
        version=EndpointEngine.version,
    )


def full_text(content: Any, reasoning: Any, finish: str | None) -> str:
    if not isinstance(content, str | None) or not isinstance(reasoning, str | None):
        raise TypeError("a text was expected")
    if not reasoning:
        return content or ""
    if not content and finish == "length":  # cut inside the reasoning, which therefore never ended
        return f"<think>\n{reasoning.strip()}"
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{(content or '').lstrip()}"


def retry_after(reply: httpx.Response) -> float | None:
    """Seconds by the Retry-After header: a number or a date (RFC 9110, 10.2.3). None where it says nothing."""
    value = reply.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
