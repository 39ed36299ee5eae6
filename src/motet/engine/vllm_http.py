"""One vLLM server, asked over HTTP: completions, calls of motet's part in it, and whether it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from motet.base.errors import UserError
from motet.base.recipe import Engine as Settings

if TYPE_CHECKING:
    from motet.engine.vllm_process import Process

HOW_TO_START = (
    "Start it with motet's launcher: python -m motet.engine.vllm_worker serve MODEL [arguments of vllm serve]; where "
    "motet is not installed, copy that one file (motet/engine/vllm_worker.py) and run it as a program."
)


class Trouble(Exception):
    """The server did not answer, or answered that it is broken: the same request may succeed elsewhere or later."""


class Server:
    def __init__(self, url: str, settings: Settings, key: str = "") -> None:
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            valid = httpx.URL(self.url).scheme in ("http", "https") and httpx.URL(self.url).host
        except httpx.InvalidURL:
            valid = False
        if not valid:
            raise UserError(f"engine.urls: {url!r} is no http address. Give one like http://localhost:8000.")
        self.process: Process | None = None
        """Where motet has started it."""
        self.lock = threading.Lock()
        self.lives = 0
        """How often it has been brought back: of several threads that meet its death, the first sees to it."""
        self.failures = 0
        """In a row."""
        self.gone = False
        """Given up."""
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout_seconds, connect=min(20.0, settings.timeout_seconds)),
            limits=httpx.Limits(max_connections=settings.batch_size + 2, max_keepalive_connections=settings.batch_size),
        )

    def post(self, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, Any] | None = None) -> Any:
        """The reply's JSON, or None. Raises Trouble, or UserError where the server refuses the request itself."""
        return self._answer("POST", path, json=dict(body or {}), params=dict(query or {}))

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        import httpx

        try:
            reply = self._client.request(method, f"{self.url}{path}", **request)
        except httpx.HTTPError as error:
            raise Trouble(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if reply.status_code in (408, 425, 429) or reply.status_code >= 500:
            raise Trouble(f"{path}: status {reply.status_code}: {reply.text[:300].strip()}")
        if not reply.is_success:
            advice = HOW_TO_START if reply.status_code in (404, 405) else "Change engine's settings as the server says."
            raise UserError(
                f"{self.url}{path} refused with status {reply.status_code}: {reply.text[:500].strip()!r}. {advice}"
            )
        try:
            return reply.json() if reply.content else None
        except ValueError as error:
            raise Trouble(f"{path}: no JSON: {reply.text[:200]!r}") from error

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """The answer of each worker to a method of `vllm_worker.Arrival`."""
        results: list[Any] = self.post("/collective_rpc", {"method": method, "args": list(arguments)})["results"]
        return results

    def describe(self) -> dict[str, Any]:
        try:
            about = self.call("motet_describe")[0]
        except Trouble as trouble:
            raise UserError(
                f"{self.url} is no vLLM server with motet's part in it ({trouble}). {HOW_TO_START}"
            ) from None
        return dict(about)

    def complete(self, body: Mapping[str, Any]) -> tuple[list[int], list[float], str | None]:
        """Tokens, their log-probabilities (empty where not asked for) and the reason of the end."""
        reply = self.post("/v1/completions", body)
        try:
            choice = reply["choices"][0]
            tokens = [int(token) for token in choice["token_ids"]]
            scored = [float(value) for value in (choice.get("logprobs") or {}).get("token_logprobs") or []]
            finish = choice["finish_reason"]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Trouble(f"not a completion with token ids: {str(reply)[:200]}") from error
        if finish not in ("stop", "length") or (scored and len(scored) != len(tokens)):  # "abort": cut by a shutdown
            raise Trouble(f"a completion of {len(tokens)} tokens ended with {finish!r}")
        return tokens, scored, finish

    def healthy(self) -> bool:
        import httpx

        try:
            return self._client.get(f"{self.url}/health", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def wait(self, seconds: float, stopped: threading.Event | None = None) -> None:
        """Until it answers. Raises UserError when its process ends before, or the time is up."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            if self.process is not None and not self.process.alive:
                raise self.process.refuse("ended while it started")
            if time.monotonic() > deadline:
                why = f"did not answer within {seconds:.0f} s"
                raise self.process.refuse(why) if self.process else UserError(f"{self.url} {why}; see that it runs")
            if stopped is not None and stopped.wait(0.2):
                raise Trouble("nobody waits for it any more")
            if stopped is None:
                time.sleep(0.2)

    def close(self) -> None:
        self._client.close()
        if self.process is not None:
            self.process.stop()
            self.process = None
