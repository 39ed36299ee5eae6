"""One HTTP exchange with an endpoint: a body out, the JSON of the reply in, or the one exception that says why not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from motet.base.errors import UserError
from motet.base.recipe import Engine
from motet.base.records import Completion
from motet.engine.replies import completions, retry_after


class Failed(Exception):
    """One try; another one may do better."""

    def __init__(self, why: str, text: str, charged: bool, received: bool, delay: float | None = None) -> None:
        super().__init__(f"{why}: {text}" if text else why)
        self.why = why
        self.text = text
        self.charged = charged
        """Whether the server may have charged for it."""
        self.received = received
        self.delay = delay
        """Seconds that the server asked to wait."""


class Wire:
    """The connections and the key, which is in the header of each request and nowhere else: where a server quotes it,
    it is struck out."""

    def __init__(self, settings: Engine) -> None:
        import httpx

        self.url = _base_url(settings.url) + "/chat/completions"
        self._key = os.environ.get(settings.api_key_env, "").strip()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.timeout_seconds, connect=min(20.0, settings.timeout_seconds)),
            limits=httpx.Limits(max_connections=settings.batch_size, max_keepalive_connections=settings.batch_size),
        )

    def post(self, body: Mapping[str, Any], name: str) -> Any:
        """The JSON of a reply with status 200. Raises Failed for anything else."""
        import httpx

        try:
            reply = self._client.post(self.url, json=body, headers={"Idempotency-Key": name})
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Failed("connection", _told(error), charged=False, received=False) from None
        except httpx.TimeoutException as error:
            raise Failed("timeout", _told(error), charged=True, received=False) from None
        except httpx.RequestError as error:  # it hung up before or inside the reply, or sent no HTTP
            raise Failed("cut", _told(error), charged=True, received=False) from None
        text = self._without_key(reply.text)
        if not reply.is_success:
            delay = retry_after(reply.headers)
            raise Failed(f"status {reply.status_code}", text[:2000], charged=False, received=True, delay=delay)
        try:
            return json.loads(text)
        except ValueError:
            raise Failed("malformed", f"not JSON: {text[:200]!r}", charged=True, received=True) from None

    def close(self) -> None:
        self._client.close()

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def read(reply: Any) -> list[Completion]:
    """The completions of a reply. Raises Failed for what is no chat completion."""
    try:
        return completions(reply)
    except (ValueError, LookupError, TypeError, AttributeError):
        text = json.dumps(reply, ensure_ascii=False)[:500]
    error = reply.get("error") if isinstance(reply, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:  # some gateways tell a failure with status 200
        raise Failed(f"status {code}", text, charged=False, received=True)
    raise Failed("malformed", f"not a chat completion: {text}", charged=True, received=True)


def _base_url(given: str | None) -> str:
    import httpx

    url = (given or "").rstrip("/")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"engine.url: {given!r} is no http address. Give one like http://localhost:8000/v1.")
    return url


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
