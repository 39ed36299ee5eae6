"""An OpenAI-compatible server that counts what it is asked for and misbehaves by a script: a real HTTP server.

What it answers to "Say 37" is a function of the prompt, the seed and the place among the choices, as of a model that
samples; two of three replies are right. Each request has the next of the faults in turn, which its first try meets.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("", "timeout", "429", "500", "half", "malformed", "")
Question = tuple[str, int]
"""A prompt and a seed: what one request asks."""


class Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed before its reply is what the tests are about."""


class FakeEndpoint:
    """`slow`: seconds for which a reply is held that is to time out. `each_reply`: called after each one is counted."""

    def __init__(self, faults: tuple[str, ...] = (), slow: float = 1.5, most_choices: int = 8) -> None:
        self.faults = faults
        self.slow = slow
        self.most_choices = most_choices
        self.asked: Counter[Question] = Counter()
        """Requests received, good and bad tries alike."""
        self.met: Counter[str] = Counter()
        """Faults, by name."""
        self.faces: dict[Question, str] = {}
        """The fault that a request has yet to meet, "" when it has."""
        self.paid: dict[str, bytes] = {}
        """Replies by the name of their request: a name that comes again gets the same reply for nothing."""
        self.names: dict[Question, list[str]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.each: Callable[[int], None] = lambda number: None
        self.pause = threading.Event()
        """Cleared, good replies wait: what is under way stays under way."""
        self.pause.set()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def killed(self) -> None:
        """The process that asked is gone: what is asked again meets its fault again."""
        with self._lock:
            self.faces.clear()

    def close(self) -> None:
        self.pause.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = (body["messages"][-1]["content"], body["seed"])
        name = handler.headers["Idempotency-Key"]
        with self._lock:
            self.bodies.append(body)
            self.names.setdefault(question, []).append(name)
            self.asked[question] += 1
            has = self.faults[list(self.names).index(question) % len(self.faults)] if self.faults else ""
            fault = self.faces.get(question, has)
            self.faces[question] = ""
            if name in self.paid and fault not in ("timeout", "half"):
                fault = ""
            self.met[fault] += 1
            number = len(self.bodies)
        self.each(number)
        if fault == "429":
            return send(handler, 429, b"slow down", {"Retry-After": "0.1"})
        if fault == "500":
            return send(handler, 500, b"out of memory")
        if fault == "malformed":
            return send(handler, 200, b'{"choices": [{"message": {"content"')
        self.pause.wait(30)
        with self._lock:
            data = self.paid.setdefault(name, json.dumps(reply_to(body, self.most_choices)).encode())
        if fault == "timeout":
            threading.Event().wait(self.slow)
        send(handler, 200, data, half=fault == "half")
        return None


def send(
    handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None, half: bool = False
) -> None:
    handler.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2] if half else data)
    if half:
        handler.close_connection = True


def reply_to(body: dict[str, Any], most_choices: int = 8) -> dict[str, Any]:
    """10 tokens of prompt and 20 for each choice."""
    prompt, seed = body["messages"][-1]["content"], body["seed"]
    choices = []
    for index in range(min(body.get("n", 1), most_choices)):
        digits = hashlib.sha256(f"{prompt} {seed} {index}".encode()).hexdigest()[:6]
        if "VERDICT" in prompt:  # a judge, who says the same of one text whichever verdict is named first
            asked = prompt.partition("QUESTION")[2].partition("End with")[0]
            odd = int(hashlib.sha256(asked.encode()).hexdigest()[:6], 16) % 3 == 0
            content = "VERDICT: FALSE it is not so" if odd else "VERDICT: SOUND"
            choices.append({"index": index, "message": {"role": "assistant", "content": content},
                            "finish_reason": "stop"})  # fmt: skip
            continue
        number = prompt.split()[-1] if int(digits, 16) % 3 else "11"
        # letters that no other reply has, so that none is a duplicate of another
        message = {"role": "assistant", "content": f"\\boxed{{{number}}}", "reasoning_content": " ".join(digits)}
        choices.append({"index": index, "message": message, "finish_reason": "stop"})
    usage = {"prompt_tokens": 10, "completion_tokens": 20 * len(choices)}
    return {"id": f"r{seed}", "object": "chat.completion", "choices": choices, "usage": usage}
