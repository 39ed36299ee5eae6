"""The filter over HTTP: killed again and again before an endpoint that misbehaves, and spread over two servers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.records import decode_group

RECIPE = """
name = "served"
seed = 3
threads = 1
stages = ["filter"]
model = { device = "cpu", tiny = { hidden = 32, layers = 1, heads = 2, mlp = 32, context = 64 } }
verification = { workers = 1, deadline_seconds = 60.0 }

[problems.numbers]
path = "PROBLEMS"
heldout = 0.0

[stage.filter]
kind = "filter"
problems = [{ problems = "numbers" }]
count = 24
sampling = { max_tokens = 24 }
probe = 4
group_size = 4
"""


class Endpoint:
    """Half of its replies are right. It counts what it answered, by prompt and seed, and fails every seventh request:
    with 429, 500, half a response or malformed JSON in turn."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.received = 0
        self.stop_at = 10**9
        """After so many answers each more is withheld, and `stopped` is set."""
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._reply(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed before its reply."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _reply(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self.received += 1
            trouble = (self.received // 7) % 4 + 1 if self.received % 7 == 0 else 0
        if trouble in (1, 2):
            self._send(handler, (429, 500)[trouble - 1], b'{"error": {"message": "later"}}')
            return
        n = prompt.split()[-1]
        good = f"<think>{n[0]} {n[1]}</think>\\boxed{{{n}}}"
        texts = [good if (body["seed"] + i) % 2 else "<think>no</think>\\boxed{0}" for i in range(body.get("n") or 1)]
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ]
        data = json.dumps({"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 9}}).encode()
        if trouble:
            self._send(handler, 200, data[: len(data) // 2] if trouble == 3 else b"{not json}")
            return
        with self._lock:
            if sum(self.answered.values()) >= self.stop_at:
                self.stopped.set()
                self._send(handler, 401, b'{"error": {"message": "the key was withdrawn"}}')
                return
            self.answered[prompt, body["seed"]] += 1
        self._send(handler, 200, data)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Retry-After", "0")
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def recipe_file(folder: Path) -> Path:
    rows = [{"id": f"n{n}", "prompt": f"Say {n}", "answer": n} for n in range(10, 60)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "served.toml"
    path.write_text(RECIPE.replace("PROBLEMS", str(folder / "problems.jsonl")))
    return path


@pytest.mark.parametrize("method", ["fixed", "sequential"])
def test_a_stopped_filter_repeats_no_request_that_was_answered(
    method: str, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    engine = f'engine={{kind="endpoint", url="{endpoint.url}", model="m", batch_size=4, retries=8, choices=1}}'
    recipe = load(recipe_file(tmp_path), [engine, f'stage.filter.method="{method}"'])
    stops = 0
    for stop_at in (20, 55, 90, 10**9):
        endpoint.stop_at = stop_at
        try:
            pipeline.run(recipe, tmp_path / "run", console=False)
        except UserError as error:
            assert "401" in str(error)
            stops += 1
    assert stops == 3 and endpoint.stopped.is_set()
    table = jsonl.read_json(tmp_path / "run" / "filter" / "filter.json")
    assert sum(endpoint.answered.values()) == table["rollouts"] + table["probe_rollouts"]
    assert set(endpoint.answered.values()) == {1}
    groups = [decode_group(row) for _, row in jsonl.read(tmp_path / "run" / "filter" / "groups.jsonl")]
    assert len(groups) == 24 and sum(len(group.rollouts) for group in groups) == table["rollouts"]
    assert table["verdicts"]["correct"] + table["verdicts"]["incorrect"] == table["rollouts"]


def test_a_filter_spreads_its_rollouts_over_all_servers(tmp_path: Path) -> None:
    servers = [fake_vllm.FakeVllm() for _ in range(2)]
    try:
        urls = json.dumps([server.url for server in servers])
        recipe = load(recipe_file(tmp_path), [f'engine={{kind="vllm", urls={urls}, batch_size=4}}'])
        with pytest.raises(UserError, match="no problem of 24 lies in its band"):  # a fake knows no numbers
            pipeline.run(recipe, tmp_path / "run", console=False)
        asked = [len(server.bodies) for server in servers]
        assert sum(asked) >= 24 * 5 and min(asked) > 0.3 * sum(asked)
        seeds = [body["seed"] for server in servers for body in server.bodies if body["max_tokens"] == 24]
        assert len(seeds) == len(set(seeds)) == 24 * 5
    finally:
        for server in servers:
            server.close()
