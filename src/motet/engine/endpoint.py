"""Samples from an OpenAI-compatible server: a teacher, or a model that only an address is known of.

Not for RL: a server of this kind takes no weights, and the tokens of another tokenizer mean nothing to the learner.
`tokens` and `logprobs` are empty unless the server tells them (vLLM does). What it answers is on disk before it counts
(`ledger`), and what it is asked for stays within the caps (`gate`); `replies` knows how servers put things.
"""

from __future__ import annotations

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.base import signs
from motet.base.errors import UserError
from motet.base.recipe import Engine
from motet.base.records import Completion, content_id
from motet.engine.account import Account
from motet.engine.gate import Abandoned, Gate
from motet.engine.ledger import Ledger
from motet.engine.protocol import Request, SamplingParams
from motet.engine.replies import (
    VERSION,
    advice,
    completions,
    is_permanent,
    largest_usage,
    payload,
    refuses_several,
    usage_of,
)
from motet.engine.wire import Failed, Wire, read

if TYPE_CHECKING:
    import torch

log = logging.getLogger("motet")

OPTIONAL = ("return_token_ids", "logprobs", "seed")
"""Fields that some servers refuse; a refused one is left out from then on."""
LONGEST_BACKOFF_SECONDS = 60.0
TELL_EVERY_SECONDS = 30.0


class _Changed(Exception):
    """The server does not take a field, which is left out from now on: the same try again."""


class EndpointEngine:
    """Asks for up to `batch_size` replies at once. `backoff_seconds` is the first wait after a failure; each further
    one is twice as long, up to a minute, less up to a half at random; a server's Retry-After goes before it.

    `scored`: ask for the ids and log-probabilities of tokens too, which of a teacher nobody reads. `open_think`: the
    recipe's prompts end with <think>, so its completions begin after it; the server's come with it or without.
    """

    version = VERSION

    def __init__(
        self, settings: Engine, backoff_seconds: float = 1.0, scored: bool = True, open_think: bool = False
    ) -> None:
        self.settings = settings
        self.open_think = open_think
        self.backoff_seconds = backoff_seconds
        self.scored = scored
        self.account = Account(settings.price)
        self.omitted: set[str] = set(settings.omit)
        self._gate = Gate(settings.caps, self.account)
        self._ledgers: dict[Path, Ledger] = {}
        self._ledger: Ledger | None = None
        self._quiet_until = 0.0
        self._wire = Wire(settings)

    def keep(self, groups: Path) -> None:
        """As `Recorded.keep`."""
        if groups not in self._ledgers:
            self._ledgers[groups] = Ledger(groups, self.account)
            if self._ledgers[groups].interrupted:
                text = "%s: %d requests were under way when the process was killed: asked again, by the same name"
                log.info(text, self.settings.model, self._ledgers[groups].interrupted)
        self._ledger = self._ledgers[groups]
        self.omitted |= self._ledger.omits

    def bill(self) -> dict[str, Any]:
        """As `Recorded.bill`."""
        return self.account.bill()

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        """As `Engine.generate`; what is in the ledger is not asked again. Raises UserError when the server refuses a
        request, stays out of reach, or a cap of cost is reached: after the replies that were under way are in."""
        keys = [self._key_of(request, sampling) for request in requests]
        missing: list[int] = []
        for index, key in enumerate(keys):
            found = self._ledger.find(key) if self._ledger is not None else None
            if found is None:
                missing.append(index)
            else:
                yield index, self._prompted(completions(found[0])[found[1]])
        if len(missing) < len(requests):
            log.info(
                "%s: %d of %d completions are on disk", self.settings.model, len(requests) - len(missing), len(requests)
            )
        began = told = time.monotonic()
        for fresh, (index, completion) in enumerate(self._ask_all(requests, keys, missing, sampling), 1):
            if time.monotonic() - told >= TELL_EVERY_SECONDS or (fresh == len(missing) and self._ledger is not None):
                told = time.monotonic()
                done = len(requests) - len(missing) + fresh
                log.info("%s: %s", self.settings.model, self.account.line(done, len(requests), told - began, fresh))
            yield index, self._prompted(completion)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        raise UserError(
            f"the endpoint {self.settings.url} cannot take new weights, so it cannot sample from a model in training. "
            'Set engine.kind = "transformers"; an endpoint can be the teacher of a synthesize stage.'
        )

    def close(self) -> None:
        """A `generate` that is under way then raises."""
        self._wire.close()
        for ledger in self._ledgers.values():
            ledger.close()

    def _prompted(self, completion: Completion) -> Completion:
        if not self.open_think:
            return completion
        return replace(completion, text=completion.text.lstrip().removeprefix("<think>"))

    def _key_of(self, request: Request, sampling: SamplingParams) -> str:
        """Equal keys are the same question: a reply to one is the reply to the other."""
        what = [self.settings.model, [dict(m) for m in request.messages], request.seed, self.settings.extra]
        settings = [sampling.temperature, sampling.top_p, sampling.max_tokens]
        return content_id(json.dumps([what, settings], sort_keys=True))

    def _ask_all(
        self, requests: Sequence[Request], keys: Sequence[str], missing: Sequence[int], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        waiting: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[int, Completion] | Exception | None] = queue.SimpleQueue()
        asks = self._together(requests, missing)
        for ask in asks:
            waiting.put(ask)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    ask = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    found = self._ask([requests[i] for i in ask], [keys[i] for i in ask], sampling, stopped)
                except Abandoned:
                    break
                except Exception as error:  # raised again in the caller's thread
                    ended.put(error)
                    break
                for pair in zip(ask, found, strict=False):
                    ended.put(pair)
                for index in ask[len(found) :]:
                    waiting.put([index])
            ended.put(None)

        # daemons, not an executor's threads: those are joined when Python exits, and Ctrl-C would wait for the server
        workers = min(self.settings.batch_size, len(asks))
        for _ in range(workers):
            threading.Thread(target=work, name="motet-endpoint", daemon=True).start()
        trouble: Exception | None = None
        try:
            while workers:
                result = ended.get()
                if result is None:
                    workers -= 1
                elif isinstance(result, Exception):
                    # what is under way is paid for: nothing more is sent, and its replies are waited for
                    trouble = trouble or result
                    stopped.set()
                else:
                    yield result
            if trouble is not None:
                raise trouble
        finally:
            stopped.set()

    def _together(self, requests: Sequence[Request], missing: Sequence[int]) -> list[list[int]]:
        """The requests by conversation, at most `choices` in each: what one request may ask for."""
        same: dict[str, list[int]] = {}
        for index in missing:
            same.setdefault(json.dumps([dict(m) for m in requests[index].messages]), []).append(index)
        n = 1 if "n" in self.omitted else self.settings.choices
        return [alike[i : i + n] for alike in same.values() for i in range(0, len(alike), n)]

    def _ask(
        self, requests: Sequence[Request], keys: Sequence[str], sampling: SamplingParams, stopped: threading.Event
    ) -> list[Completion]:
        """Completions of the first of `requests`, one at least, with the repeated tries that it takes."""
        failures = 0
        while True:
            n = 1 if "n" in self.omitted else len(requests)
            n = self._gate.widest(largest_usage(requests[0], sampling.max_tokens), n)
            try:
                return self._try(requests[0], keys[:n], sampling, stopped)
            except _Changed:
                continue
            except Failed as failure:
                failures += 1
                if failures > self.settings.retries:
                    raise UserError(
                        f"{self._wire.url} gave no completion in {failures} tries; the last: {failure}. "
                        "See that the server runs and that url is right; retries and timeout_seconds allow for a "
                        "slower one."
                    ) from None
                self._wait(failures, failure, stopped)

    def _try(
        self, request: Request, keys: Sequence[str], sampling: SamplingParams, stopped: threading.Event
    ) -> list[Completion]:
        """One request for as many completions as there are keys."""
        body = payload(self.settings.model, request, sampling, len(keys), self.settings.extra, self.scored)
        if "max_tokens" in self.omitted and "max_tokens" not in self.settings.omit:
            body["max_completion_tokens"] = body["max_tokens"]
        body = {name: value for name, value in body.items() if name not in self.omitted}
        name, most = content_id("request", *keys), largest_usage(request, sampling.max_tokens, len(keys))
        ticket = self._gate.enter(most, stopped)
        ledger, began = self._ledger, time.monotonic()
        if ledger is not None:
            ledger.sent(name, most)
        try:
            reply = self._wire.post(body, ledger.name(name) if ledger is not None else name)
            found = read(reply)
        except Failed as failure:
            self._gate.failed(ticket, failure.why, failure.charged)
            if ledger is not None:
                ledger.failed(name, most, failure.why, failure.charged, failure.received, failure.text)
            if failure.why in ("status 400", "status 422") and self._omit(failure.text, body):
                raise _Changed from None
            if failure.why.startswith("status ") and is_permanent(int(failure.why.split()[1]), failure.text):
                raise self._refusal(int(failure.why.split()[1]), failure.text) from None
            raise
        found = found[: len(keys)]
        usage = usage_of(reply)
        if ledger is not None:
            ledger.answered(name, keys[: len(found)], most, usage, time.monotonic() - began, body, reply)
        self._gate.answered(ticket, usage, len(found))
        if len(found) < len(keys):
            self._refuses("n", logging.INFO)
        return found

    def _wait(self, failures: int, failure: Failed, stopped: threading.Event) -> None:
        signs.give()
        jitter = random.uniform(0.5, 1.0)
        seconds = min(LONGEST_BACKOFF_SECONDS, self.backoff_seconds * 2.0 ** (failures - 1)) * jitter
        if failure.delay is not None:
            # a server that asks for hours gets another try within timeout_seconds all the same
            delay = min(failure.delay, self.settings.timeout_seconds)
            self._gate.hold(delay)
            seconds = delay + seconds / 10
        now = time.monotonic()
        if now >= self._quiet_until:  # all threads meet the same trouble: one line tells it
            self._quiet_until = now + 10.0
            tries = f"{failures} of {self.settings.retries}"
            log.warning("%s: %s; next try (%s) in %.0f s", self._wire.url, str(failure)[:300], tries, seconds)
        if stopped.wait(seconds):
            raise Abandoned

    def _omit(self, text: str, body: Mapping[str, Any]) -> bool:
        """Whether the refusal names a field that was sent and that the request can do without."""
        refused = [name for name in OPTIONAL if name in text and name in body]
        if "max_completion_tokens" in text and "max_tokens" in body:
            refused.append("max_tokens")
        if not refused and "n" in body and refuses_several(text):
            refused.append("n")
        for name in refused:
            self._refuses(name, logging.WARNING if name == "seed" else logging.INFO)
        return bool(refused)

    def _refuses(self, field: str, level: int) -> None:
        if field not in self.omitted:
            self.omitted.add(field)
            log.log(level, "%s does not take %r; it is left out from now on", self._wire.url, field)
            if self._ledger is not None:
                self._ledger.refuses(field)

    def _refusal(self, status: int, text: str) -> UserError:
        what = advice(status, text, self.settings.api_key_env, self.settings.model)
        return UserError(f"{self._wire.url} refused with status {status}: {text[:500].strip()!r}. {what}")
