"""The ledger, the account and the gate of an endpoint: numbers worked out by hand, files torn on purpose."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Caps, Price
from motet.engine.account import Account
from motet.engine.gate import Abandoned, CapReached, Gate
from motet.engine.ledger import Ledger
from motet.engine.protocol import Request
from motet.engine.replies import Usage, largest_usage

MOST = Usage(100, 50)
PRICE = Price(input=1000.0, output=10_000.0)
"""MOST is 0.1 + 0.5 = 0.6."""


def reply(*texts: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]}


def answer(ledger: Ledger, name: str, *keys: str) -> None:
    ledger.sent(name, MOST)
    ledger.answered(name, keys, MOST, Usage(10, 20), 0.5, {"n": len(keys)}, reply(*keys))


def lines(groups: Path) -> list[dict[str, Any]]:
    return [row for _, row in jsonl.read(groups.parent / "raw" / "groups.requests.jsonl")]


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    return tmp_path / "synthesize" / "groups.jsonl"


def test_a_reply_is_found_by_the_key_of_each_of_its_completions(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a", "b")
    answer(ledger, "r2", "c")
    assert [ledger.find(key) for key in "abcd"] == [
        (reply("a", "b"), 0), (reply("a", "b"), 1), (reply("c"), 0), None,
    ]  # fmt: skip
    ledger.close()


def test_a_reopened_ledger_knows_its_replies_and_what_they_cost(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a", "b")
    ledger.sent("r2", MOST)
    ledger.failed("r2", MOST, "timeout", charged=True, received=False, text="")
    ledger.sent("r2", MOST)
    ledger.failed("r2", MOST, "status 500", charged=False, received=True, text="trouble")
    ledger.close()
    account = Account(PRICE)
    again = Ledger(groups, account)
    assert again.find("b") == (reply("a", "b"), 1)
    # a reply of 10 and 20 tokens is 0.01 + 0.2; the time-out may have cost all of 0.6, the 500 nothing
    assert (account.cost, account.unsure) == pytest.approx((0.21, 0.6))
    assert account.bill() == {
        "requests": 3, "replies": 1, "completions": 2, "failures": {"status 500": 1, "timeout": 1}, "lost": 0,
        "input_tokens": 10, "output_tokens": 20, "cost": 0.21, "unsure": 0.6,
    }  # fmt: skip
    again.close()


def test_the_raw_file_is_gzipped_json_lines_with_request_and_reply(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a")
    answer(ledger, "r2", "b")
    ledger.close()
    with gzip.open(groups.parent / "raw" / "groups.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [(row["id"], row["keys"], row["request"], row["reply"]) for row in rows] == [
        ("r1", ["a"], {"n": 1}, reply("a")), ("r2", ["b"], {"n": 1}, reply("b")),
    ]  # fmt: skip


@pytest.mark.parametrize("left", [1, 10, 60])
def test_a_torn_reply_is_cut_off_and_counts_as_lost(groups: Path, left: int) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a")
    raw = groups.parent / "raw" / "groups.jsonl.gz"
    whole = raw.read_bytes()
    ledger.sent("r2", MOST)
    ledger.close()
    raw.write_bytes(whole + whole[:left])
    account = Account(PRICE)
    again = Ledger(groups, account)
    assert raw.read_bytes() == whole
    assert (account.replies, account.lost, again.interrupted) == (1, 1, 1)
    assert account.unsure == pytest.approx(0.6)
    answer(again, "r2", "b")
    again.close()
    third = Ledger(groups, Account())
    assert third.find("a") and third.find("b")
    third.close()


def test_a_reply_that_its_journal_does_not_know_is_found_all_the_same(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a")
    answer(ledger, "r2", "b", "c")
    ledger.close()
    journal = groups.parent / "raw" / "groups.requests.jsonl"
    rows = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(rows[:-1]) + rows[-1][:20])  # killed while it wrote the line after the reply
    account = Account()
    again = Ledger(groups, account)
    assert again.find("c") == (reply("b", "c"), 1)
    assert (account.requests, account.replies, account.completions, account.lost) == (2, 2, 3, 0)
    again.close()
    assert [row["event"] for row in lines(groups)] == ["sent", "answered", "sent", "answered"]


def test_a_raw_file_that_is_shorter_than_its_journal_says_is_an_error_and_not_asked_again(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a")
    ledger.close()
    (groups.parent / "raw" / "groups.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"groups\.jsonl\.gz is shorter \(0 bytes\)"):
        Ledger(groups, Account())


def test_replies_in_a_folder_that_was_set_aside_answer_too_and_are_not_counted_again(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    answer(ledger, "r1", "a")
    ledger.close()
    groups.parent.rename(groups.parent.with_name("synthesize.stale-1"))
    account = Account(PRICE)
    fresh = Ledger(groups, account)
    assert fresh.find("a") == (reply("a"), 0)
    assert account.total == 0.0
    fresh.close()


def test_a_request_keeps_its_name_until_a_reply_to_it_was_of_no_use(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    names = [ledger.name("r")]
    ledger.failed("r", MOST, "timeout", charged=True, received=False, text="")
    names.append(ledger.name("r"))
    ledger.failed("r", MOST, "status 500", charged=False, received=True, text="")
    names.append(ledger.name("r"))
    ledger.close()
    again = Ledger(groups, Account())
    assert [*names, again.name("r")] == ["r", "r", "r-1", "r-1"]
    again.close()


def test_a_field_that_the_server_does_not_take_is_remembered(groups: Path) -> None:
    ledger = Ledger(groups, Account())
    ledger.refuses("seed")
    ledger.close()
    again = Ledger(groups, Account())
    assert again.omits == {"seed"}
    again.close()


# ---- the account


def test_a_line_of_progress_by_hand() -> None:
    account = Account(PRICE)
    for _ in range(3):
        account.sent()
    account.answered(MOST, Usage(10, 20), 2)  # 0.21
    account.failed("status 429", MOST, charged=False)
    account.failed("status 429", MOST, charged=False)
    # 1 of the 2 came in 30 s: 6 more take 180 s; 0.105 each makes 0.63
    assert account.line(2, 8, 30.0, 1) == (
        "2 of 8 completions; about 3 min and 0.63 more; cost 0.21; 10 tokens in, 20 out; failed tries: 2 x status 429"
    )


def test_without_a_price_no_cost_is_told() -> None:
    account = Account()
    account.answered(MOST, Usage(10, 20), 1)
    assert account.line(1, 2, 40.0, 1) == "1 of 2 completions; about 40 s more; 10 tokens in, 20 out"
    assert "cost" not in account.bill()


def test_a_reply_without_usage_counts_with_the_most_that_it_can_have_taken() -> None:
    account = Account(PRICE)
    account.answered(MOST, None, 1)
    assert account.cost == 0.0 and account.unsure == pytest.approx(0.6)


def test_the_largest_usage_counts_bytes_and_every_choice() -> None:
    request = Request((), ({"role": "user", "content": "é?"},), 0)
    assert largest_usage(request, 50, 3) == Usage(3 + 128, 150)


# ---- the gate


def gate(price: Price | None = None, window: float = 60.0, **caps: Any) -> Gate:
    return Gate(Caps(**caps), Account(price), window)


def test_no_window_holds_more_requests_than_the_cap() -> None:
    allowed, stopped, window = gate(window=0.2, requests_per_minute=3), threading.Event(), 0.2
    times = []
    for _ in range(8):
        ticket = allowed.enter(MOST, stopped)
        times.append(ticket.at)
        allowed.answered(ticket, Usage(1, 1), 1)
    assert all(later - earlier >= window for earlier, later in zip(times, times[3:], strict=False))
    assert times[2] - times[0] < window


def test_a_request_counts_with_all_its_tokens_until_its_reply_tells() -> None:
    allowed, stopped = gate(window=0.3, tokens_per_minute=300), threading.Event()
    first, second = allowed.enter(MOST, stopped), allowed.enter(MOST, stopped)  # 150 each: full
    allowed.answered(first, Usage(10, 20), 1)  # 30: 120 are free
    allowed.answered(second, Usage(10, 20), 1)
    third = allowed.enter(MOST, stopped)
    assert third.at - first.at < 0.3
    fourth = allowed.enter(MOST, stopped)  # 30 + 30 + 150 + 150 is too much: the first two have to leave
    assert fourth.at - second.at >= 0.3


def test_a_request_that_passes_the_cap_of_tokens_by_itself_is_refused_with_both_numbers() -> None:
    allowed = gate(tokens_per_minute=180)
    assert allowed.widest(Usage(100, 50), 3) == 1  # 100 + 50 fits, 100 + 2 x 50 does not
    with pytest.raises(UserError, match=r"tokens_per_minute \(180\) is less than .* up to 100 .* up to 90"):
        allowed.widest(Usage(100, 90), 1)


def test_the_cap_of_cost_holds_back_what_could_pass_it_and_then_ends_it() -> None:
    allowed, stopped = gate(PRICE, cost=1.5), threading.Event()
    first, second = allowed.enter(MOST, stopped), allowed.enter(MOST, stopped)  # 0.6 each
    entered: list[float] = []
    waiting = threading.Thread(target=lambda: entered.append(allowed.enter(MOST, stopped).at))
    waiting.start()
    time.sleep(0.05)
    assert not entered  # 1.8 would pass 1.5
    allowed.answered(first, Usage(10, 20), 1)  # 0.21 in truth: 0.21 + 0.6 + 0.6 fits
    waiting.join(10)
    assert entered
    allowed.answered(second, None, 1)  # 0.6, since it did not tell
    allowed.failed(second, "status 500", charged=False)
    with pytest.raises(CapReached, match=r"0\.21 of 1\.5 is spent, and up to 0\.6 .* may cost up to 0\.7"):
        allowed.enter(Usage(100, 60), stopped)  # 0.21 + 0.6 + 0.7 = 1.51


def test_what_one_request_was_told_to_wait_holds_all_back() -> None:
    allowed, stopped = gate(), threading.Event()
    allowed.hold(0.2)
    began = time.monotonic()
    allowed.enter(MOST, stopped)
    assert time.monotonic() - began >= 0.2


def test_a_request_that_nobody_waits_for_any_more_does_not_enter() -> None:
    allowed, stopped = gate(), threading.Event()
    stopped.set()
    with pytest.raises(Abandoned):
        allowed.enter(MOST, stopped)
