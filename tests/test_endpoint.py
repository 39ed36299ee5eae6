"""The endpoint engine against a real HTTP server on the loopback interface that misbehaves as it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.recipe import Engine
from motet.base.records import Completion
from motet.engine.endpoint import EndpointEngine
from motet.engine.protocol import Request, SamplingParams

SAMPLING = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=16)
Reply = tuple[int, Any, dict[str, str]]


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left before its reply is what some tests are about."""


class Server:
    """Answers each prompt (the last user turn) with its replies in turn, the last one over and over."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hold: dict[str, threading.Event] = {}
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self.received.append(body)
            self.headers.append(dict(handler.headers))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            replies = self.replies.get(prompt) or [said(f"reply to {prompt}")]
            status, content, headers = replies.pop(0) if len(replies) > 1 else replies[0]
        if prompt in self.hold:
            self.hold[prompt].wait(30)
        with self._lock:
            self._now -= 1
        if handler.path != "/v1/chat/completions":
            status, content = 404, "no such page"
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        for event in self.hold.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()


def said(content: str | None, finish: str = "stop", choice: dict[str, Any] | None = None, **message: Any) -> Reply:
    message = {"role": "assistant", "content": content, **message}
    return 200, {"choices": [{"message": message, "finish_reason": finish, **(choice or {})}]}, {}


def failed(status: int, text: str = "trouble", **headers: str) -> Reply:
    return status, text, {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def engine_for(server: Server, **settings: Any) -> EndpointEngine:
    settings = {"kind": "endpoint", "url": server.url, "model": "teacher", "timeout_seconds": 20.0, **settings}
    return EndpointEngine(Engine(**settings), backoff_seconds=0.01)


def ask(engine: EndpointEngine, *prompts: str, sampling: SamplingParams = SAMPLING) -> list[Completion]:
    requests = [Request((), ({"role": "user", "content": prompt},), seed=7) for prompt in prompts]
    try:
        return [completion for _, completion in sorted(engine.generate(requests, sampling), key=lambda pair: pair[0])]
    finally:
        engine.close()


def test_each_request_gets_the_reply_to_its_own_prompt(server: Server) -> None:
    prompts = [f"p{i}" for i in range(20)]
    completions = ask(engine_for(server, batch_size=4), *prompts)
    assert [completion.text for completion in completions] == [f"reply to {prompt}" for prompt in prompts]
    assert {(c.stop, c.tokens, c.logprobs, c.version) for c in completions} == {("end", (), (), 0)}


def test_no_request_gives_no_completion(server: Server) -> None:
    assert ask(engine_for(server)) == []


def test_the_sampling_settings_are_sent_and_the_seed_fits_31_bits(server: Server) -> None:
    engine = engine_for(server)
    request = Request((), ({"role": "user", "content": "p"},), seed=2**40 + 5)
    list(engine.generate([request], SamplingParams(temperature=0.6, top_p=0.9, max_tokens=33)))
    engine.close()
    (body,) = server.received
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (
        "teacher", 0.6, 0.9, 33, 5,
    )  # fmt: skip


def test_results_come_as_each_ends_and_not_in_the_order_asked(server: Server) -> None:
    server.hold["slow"] = threading.Event()
    engine = engine_for(server)
    requests = [Request((), ({"role": "user", "content": prompt},), seed=0) for prompt in ("slow", "quick")]
    results = engine.generate(requests, SAMPLING)
    assert next(results)[0] == 1
    server.hold["slow"].set()
    assert next(results)[0] == 0
    engine.close()


def test_no_more_than_batch_size_requests_are_under_way_at_once(server: Server) -> None:
    ask(engine_for(server, batch_size=2), *[f"p{i}" for i in range(12)])
    assert server.most_at_once <= 2
    assert len(server.received) == 12


def test_a_refusal_for_too_many_requests_is_tried_again_after_the_time_that_the_server_names(server: Server) -> None:
    server.replies["p"] = [failed(429, Retry_After="0.3"), said("yes")]
    start = time.monotonic()
    assert ask(engine_for(server), "p")[0].text == "yes"
    assert time.monotonic() - start >= 0.3


def test_a_date_in_retry_after_is_waited_for(server: Server) -> None:
    server.replies["p"] = [failed(503, Retry_After=formatdate(time.time() + 2, usegmt=True)), said("yes")]
    start = time.monotonic()
    assert ask(engine_for(server), "p")[0].text == "yes"
    assert time.monotonic() - start >= 0.9  # a date has whole seconds


def test_a_retry_after_that_is_neither_number_nor_date_is_passed_over(server: Server) -> None:
    server.replies["p"] = [failed(503, Retry_After="soon"), said("yes")]
    assert ask(engine_for(server), "p")[0].text == "yes"


@pytest.mark.parametrize("status", [408, 500, 502, 503])
def test_a_server_error_is_tried_again(server: Server, status: int) -> None:
    server.replies["p"] = [failed(status), failed(status), said("yes")]
    assert ask(engine_for(server, retries=2), "p")[0].text == "yes"
    assert len(server.received) == 3


def test_an_answer_that_is_no_chat_completion_is_tried_again(server: Server) -> None:
    broken = [(200, "<html>", {}), (200, {"error": "overloaded"}, {}), (200, {"choices": []}, {}), said("yes")]
    server.replies["p"] = [*broken]
    assert ask(engine_for(server), "p")[0].text == "yes"


def test_a_reply_that_takes_longer_than_the_time_out_is_asked_for_again(server: Server) -> None:
    server.hold["p"] = threading.Event()
    engine = engine_for(server, timeout_seconds=0.2, retries=1)
    with pytest.raises(UserError, match="no completion in 2 tries; the last: timeout: ReadTimeout"):
        ask(engine, "p")


def test_a_server_that_stays_down_ends_in_an_error_that_tells_its_words_and_what_to_change(server: Server) -> None:
    server.replies["p"] = [failed(500, "disk full")]
    with pytest.raises(UserError, match=r"3 tries; the last: status 500: disk full.*url is right"):
        ask(engine_for(server, retries=2), "p")
    assert len(server.received) == 3


def test_a_port_where_nobody_listens_ends_in_an_error_that_names_the_address(server: Server) -> None:
    server.close()
    with pytest.raises(UserError, match=rf"{server.url}.* 1 tries; the last: connection: ConnectError"):
        ask(engine_for(server, retries=0), "p")


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "max_tokens"), (410, "refused again"), (401, "MOTET_TEST_KEY"), (403, "MOTET_TEST_KEY"), (404, "teacher")],
)
def test_a_refused_request_is_not_repeated_and_the_server_is_quoted(server: Server, status: int, advice: str) -> None:
    server.replies["p"] = [failed(status, "the prompt is too long")]
    with pytest.raises(UserError, match=f"status {status}: 'the prompt is too long'.*{advice}"):
        ask(engine_for(server, api_key_env="MOTET_TEST_KEY"), "p")
    assert len(server.received) == 1


def test_the_key_is_sent_as_a_bearer_token_and_none_is_sent_without_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_TEST_KEY", "secret")
    ask(engine_for(server, api_key_env="MOTET_TEST_KEY"), "p")
    monkeypatch.delenv("MOTET_TEST_KEY")
    ask(engine_for(server, api_key_env="MOTET_TEST_KEY"), "p")
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer secret", None]


def test_reasoning_that_comes_apart_from_the_answer_is_put_back_between_think_tags(server: Server) -> None:
    server.replies["a"] = [said("\n\n19", reasoning_content="\n12 + 7 is 19.\n")]
    server.replies["b"] = [said("19", reasoning="12 + 7 is 19.")]
    assert {c.text for c in ask(engine_for(server), "a", "b")} == {"<think>\n12 + 7 is 19.\n</think>\n\n19"}


def test_reasoning_that_was_cut_has_no_closing_tag(server: Server) -> None:
    server.replies["p"] = [said(None, "length", reasoning_content="12 + 7 is")]
    (completion,) = ask(engine_for(server), "p")
    assert (completion.text, completion.stop) == ("<think>\n12 + 7 is", "length")


@pytest.mark.parametrize(("finish", "stop"), [("stop", "end"), ("length", "length"), ("content_filter", "length")])
def test_only_a_text_that_the_model_ended_itself_counts_as_ended(server: Server, finish: str, stop: str) -> None:
    server.replies["p"] = [said("19", finish)]
    assert ask(engine_for(server), "p")[0].stop == stop


def test_token_ids_and_log_probabilities_are_kept_where_the_server_tells_them(server: Server) -> None:
    scored = {"content": [{"token": "19", "logprob": -0.25}, {"token": "</s>", "logprob": -0.5}]}
    server.replies["p"] = [said("19", choice={"token_ids": [5, 2], "logprobs": scored})]
    (completion,) = ask(engine_for(server), "p")
    assert (completion.tokens, completion.logprobs) == ((5, 2), (-0.25, -0.5))


def test_log_probabilities_are_not_asked_for_at_a_temperature_that_they_would_not_show(server: Server) -> None:
    ask(engine_for(server), "p", sampling=SamplingParams(temperature=0.5, top_p=1.0, max_tokens=4))
    ask(engine_for(server), "p", sampling=SamplingParams(temperature=1.0, top_p=1.0, max_tokens=4))
    assert ["logprobs" in body for body in server.received] == [False, True]


def test_an_optional_field_that_the_server_refuses_is_left_out_from_then_on(server: Server) -> None:
    server.replies["p"] = [
        failed(400, "Unrecognized argument: return_token_ids"),
        failed(422, "no logprobs"),
        said("yes"),
    ]
    assert [c.text for c in ask(engine_for(server, batch_size=1, retries=0), "p", "q")] == ["yes", "reply to q"]
    sent = [("return_token_ids" in body, "logprobs" in body, "seed" in body) for body in server.received]
    assert sent == [(True, True, True), (False, True, True), (False, False, True), (False, False, True)]


def test_weights_are_refused(server: Server) -> None:
    with pytest.raises(UserError, match="cannot take new weights"):
        engine_for(server).load([], 1)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(UserError, match="is no http address"):
        EndpointEngine(Engine(kind="endpoint", url=url, model="teacher"))


def test_an_abandoned_generation_asks_for_nothing_more(server: Server) -> None:
    server.hold["p1"] = threading.Event()
    engine = engine_for(server, batch_size=1)
    requests = [Request((), ({"role": "user", "content": f"p{i}"},), seed=0) for i in range(5)]
    results = engine.generate(requests, SAMPLING)
    next(results)
    results.close()  # type: ignore[attr-defined]
    server.hold["p1"].set()
    for thread in threading.enumerate():
        if thread.name == "motet-endpoint":
            thread.join(20)
    assert len(server.received) <= 2
    engine.close()


def test_ctrl_c_does_not_wait_for_the_server(server: Server) -> None:
    server.hold["p"] = threading.Event()
    program = f"""
from motet.base.recipe import Engine
from motet.engine.endpoint import EndpointEngine
from motet.engine.protocol import Request, SamplingParams
engine = EndpointEngine(Engine(kind="endpoint", url={server.url!r}, model="teacher"))
request = Request((), ({{"role": "user", "content": "p"}},), 0)
try:
    list(engine.generate([request], SamplingParams(1.0, 1.0, 4)))
except KeyboardInterrupt:
    print("interrupted")
"""
    source = str(Path(__file__).parent.parent / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    while not server.received and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=25)  # the server holds its reply for 30 s
    assert (out, child.returncode) == ("interrupted\n", 0)


# ---- what servers do differently


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>\n12 + 7 is 19.\n</think>\n\n19", "<think>\n12 + 7 is 19.\n</think>\n\n19"),
        # the template opened the block in the prompt
        ("12 + 7 is 19.\n</think>\n\n19", "<think>\n12 + 7 is 19.\n</think>\n\n19"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "12 + 7 is 19."}]},
          {"type": "text", "text": "19"}],
         "<think>\n12 + 7 is 19.\n</think>\n\n19"),
        ([{"type": "text", "text": "1"}, {"type": "text", "text": "9"}], "19"),
    ],
    ids=["tags in the text", "closing tag alone", "parts", "parts without reasoning"],
)  # fmt: skip
def test_reasoning_is_found_however_the_server_returns_it(server: Server, content: Any, text: str) -> None:
    server.replies["p"] = [said(content)]
    assert ask(engine_for(server), "p")[0].text == text


def test_where_the_prompt_opens_the_block_a_completion_begins_after_the_tag(server: Server) -> None:
    server.replies["a"] = [said("19", reasoning="12 + 7 is 19.")]
    server.replies["b"] = [said("12 + 7 is 19.\n</think>\n\n19")]
    settings = Engine(kind="endpoint", url=server.url, model="teacher")
    completions = ask(EndpointEngine(settings, open_think=True), "a", "b")
    assert {completion.text for completion in completions} == {"\n12 + 7 is 19.\n</think>\n\n19"}


def several(*texts: str, **more: Any) -> Reply:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    return 200, {"choices": choices[::-1], **more}, {}


def test_completions_of_one_prompt_are_asked_together_and_come_in_the_order_of_their_index(server: Server) -> None:
    server.replies["p"] = [several("a", "b", "c"), several("d")]
    engine = engine_for(server, choices=3, batch_size=1)
    assert [c.text for c in ask(engine, "p", "q", "p", "p", "p")] == ["a", "reply to q", "b", "c", "d"]
    assert [body.get("n", 1) for body in server.received] == [3, 1, 1]


def test_a_server_that_ignores_n_is_asked_one_by_one_for_the_rest(server: Server) -> None:
    server.replies["p"] = [said("a"), said("b"), said("c")]
    assert sorted(c.text for c in ask(engine_for(server), "p", "p", "p")) == ["a", "b", "c"]
    assert [body.get("n", 1) for body in server.received] == [3, 1, 1]


@pytest.mark.parametrize("refusal", ["n > 1 is not supported", "Only one completion choice is allowed"])
def test_a_server_that_refuses_n_is_asked_one_by_one(server: Server, refusal: str) -> None:
    server.replies["p"] = [failed(400, refusal), said("a"), said("b")]
    assert sorted(c.text for c in ask(engine_for(server, batch_size=1), "p", "p")) == ["a", "b"]
    assert [body.get("n", 1) for body in server.received] == [2, 1, 1]


def test_a_seed_that_is_refused_beside_n_is_left_out_and_n_stays(server: Server) -> None:
    server.replies["p"] = [failed(422, "`seed` must not be set when `best_of` > 1"), several("a", "b")]
    assert [c.text for c in ask(engine_for(server), "p", "p")] == ["a", "b"]
    assert [("seed" in body, body.get("n")) for body in server.received] == [(True, 2), (False, 2)]


def test_extra_fields_are_passed_on_and_omitted_ones_are_not_sent(server: Server) -> None:
    extra = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}}
    ask(engine_for(server, extra=extra, omit=("seed", "top_p")), "p")
    (body,) = server.received
    assert {name: body[name] for name in extra} == extra
    assert not {"seed", "top_p"} & body.keys()


def test_a_teacher_is_not_asked_for_the_ids_and_log_probabilities_that_nobody_reads(server: Server) -> None:
    settings = Engine(kind="endpoint", url=server.url, model="teacher")
    ask(EndpointEngine(settings, scored=False), "p")
    assert not {"logprobs", "return_token_ids"} & server.received[0].keys()


def test_a_model_that_calls_its_limit_max_completion_tokens_gets_it_under_that_name(server: Server) -> None:
    server.replies["p"] = [failed(400, "'max_tokens' is not supported here. Use 'max_completion_tokens' instead.")]
    server.replies["p"] += [said("yes")]
    assert ask(engine_for(server), "p")[0].text == "yes"
    sent = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in server.received]
    assert sent == [(16, None), (None, 16)]


# ---- failures, counted


def release(server: Server, prompt: str, received: int, later: float = 0.0) -> None:
    """Lets the replies to `prompt` go some time after so many requests have come."""

    def wait() -> None:
        while len(server.received) < received:
            time.sleep(0.01)
        time.sleep(later)
        server.hold[prompt].set()

    threading.Thread(target=wait, daemon=True).start()


def test_each_failed_try_is_counted_by_its_reason(server: Server) -> None:
    half: Reply = 200, '{"choices": [{"message"', {}
    gateway: Reply = 200, {"error": {"code": 502, "message": "no provider"}}, {}
    cut: Reply = 200, {"choices": [{"message": {"content": "1"}, "finish_reason": "error"}]}, {}
    server.replies["p"] = [failed(429), failed(500), half, gateway, cut, said("19")]
    engine = engine_for(server, retries=5)
    assert ask(engine, "p")[0].text == "19"
    assert engine.account.failures == {"status 429": 1, "status 500": 1, "malformed": 2, "status 502": 1}
    assert (engine.account.requests, engine.account.replies) == (6, 1)


def test_a_name_stays_with_its_request_until_a_reply_was_of_no_use(server: Server, tmp_path: Path) -> None:
    server.hold["p"] = threading.Event()
    server.replies["p"] = [said("late"), failed(500), said("yes")]
    engine = engine_for(server, timeout_seconds=0.3)
    engine.keep(tmp_path / "groups.jsonl")
    release(server, "p", 2)
    ask(engine, "p")
    names = [headers["Idempotency-Key"] for headers in server.headers]
    assert names[0] == names[1] != names[2] == names[0] + "-1"


@pytest.mark.parametrize(
    ("status", "text", "advice"),
    [
        (400, "This model's maximum context length is 4096 tokens", "lower max_tokens"),
        (429, '{"error": {"code": "insufficient_quota"}}', "no credit left"),
        (402, "payment required", "no credit left"),
    ],
)
def test_what_waiting_does_not_mend_ends_it_at_once(server: Server, status: int, text: str, advice: str) -> None:
    server.replies["p"] = [failed(status, text)]
    with pytest.raises(UserError, match=advice):
        ask(engine_for(server), "p", "p")
    assert len(server.received) == 1


def test_replies_that_are_under_way_when_another_request_is_refused_are_waited_for_and_kept(
    server: Server, tmp_path: Path
) -> None:
    server.hold["slow"] = threading.Event()
    server.replies["bad"] = [failed(401, "no key")]
    engine = engine_for(server, batch_size=2)
    engine.keep(tmp_path / "groups.jsonl")
    requests = [Request((), ({"role": "user", "content": prompt},), seed=0) for prompt in ("slow", "bad", "never")]
    release(server, "slow", 2, 0.5)
    got = []
    with pytest.raises(UserError, match="status 401"):
        for index, completion in engine.generate(requests, SAMPLING):
            got.append((index, completion.text))
    engine.close()
    assert got == [(0, "reply to slow")]
    again = engine_for(server)
    again.keep(tmp_path / "groups.jsonl")
    server.replies["bad"] = [said("now")]
    assert sorted(c.text for _, c in again.generate(requests, SAMPLING)) == ["now", "reply to never", "reply to slow"]
    again.close()
    asked = [body["messages"][-1]["content"] for body in server.received]
    assert sorted(asked) == ["bad", "bad", "never", "slow"]
