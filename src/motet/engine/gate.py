"""The gate in front of an endpoint: a request goes through when neither its rate nor its cost could pass a cap.

Rates are counted in a sliding window, so that no minute anywhere holds more than the cap. Before it is sent a request
counts with the most that it can take, afterwards with what it took: the caps hold whatever the server answers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from motet.base.errors import UserError
from motet.base.recipe import Caps
from motet.engine.account import Account
from motet.engine.replies import Usage

LONGEST_WAIT = 0.5
"""Seconds after which a waiting thread looks again whether anybody still wants its completion."""


class CapReached(UserError):
    """Nothing more may be spent."""


class Abandoned(Exception):
    """Nobody waits for this completion any more."""


@dataclass
class Ticket:
    """A request under way."""

    at: float
    most: Usage
    tokens: int
    """That count in the window: the most that it can take, then what it took."""


class Gate:
    def __init__(self, caps: Caps, account: Account, window_seconds: float = 60.0) -> None:
        self.caps = caps
        self.account = account
        self._window = window_seconds
        self._changed = threading.Condition()
        self._sent: deque[Ticket] = deque()
        self._under_way = 0
        self._reserved = 0.0
        self._held_until = 0.0

    def enter(self, most: Usage, stopped: threading.Event) -> Ticket:
        """Waits until the request may be sent. Raises CapReached when its cost could pass the cap and nothing is under
        way that might turn out cheaper, and Abandoned when `stopped` is set."""
        with self._changed:
            while True:
                if stopped.is_set():
                    raise Abandoned
                wait = self._seconds_to_wait(most)
                if wait <= 0.0:
                    break
                self._changed.wait(min(wait, LONGEST_WAIT))
            ticket = Ticket(time.monotonic(), most, sum(most))
            self._sent.append(ticket)
            self._under_way += 1
            self._reserved += self.account.money(most)
            self.account.sent()
            return ticket

    def answered(self, ticket: Ticket, usage: Usage | None, completions: int) -> None:
        with self._changed:
            self.account.answered(ticket.most, usage, completions)
            self._leave(ticket, sum(usage) if usage is not None else ticket.tokens)

    def failed(self, ticket: Ticket, why: str, charged: bool) -> None:
        with self._changed:
            self.account.failed(why, ticket.most, charged)
            self._leave(ticket, ticket.tokens if charged else 0)

    def hold(self, seconds: float) -> None:
        """Nothing is sent for so long: what one request was told counts for all."""
        with self._changed:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def widest(self, one: Usage, n: int) -> int:
        """How many completions one request may ask for, at most `n`, so that it passes the cap of tokens by itself."""
        cap = self.caps.tokens_per_minute
        if cap is None:
            return n
        fitting = (cap - one.input) // one.output
        if fitting < 1:
            raise UserError(
                f"caps.tokens_per_minute ({cap:,}) is less than one request may take: a prompt of up to {one.input:,} "
                f"tokens and a completion of up to {one.output:,}. Raise it, or lower sampling.max_tokens."
            )
        return min(n, fitting)

    def _leave(self, ticket: Ticket, tokens: int) -> None:
        ticket.tokens = tokens
        self._under_way -= 1
        # exactly nothing when nothing is under way, whatever the roundings
        self._reserved = self._reserved - self.account.money(ticket.most) if self._under_way else 0.0
        self._changed.notify_all()

    def _seconds_to_wait(self, most: Usage) -> float:
        now = time.monotonic()
        while self._sent and self._sent[0].at <= now - self._window:
            self._sent.popleft()
        waits = [self._held_until - now]
        if self.caps.requests_per_minute is not None and len(self._sent) >= self.caps.requests_per_minute:
            # the oldest of the last `requests_per_minute` has to leave the window
            waits.append(self._sent[-self.caps.requests_per_minute].at + self._window - now)
        if self.caps.tokens_per_minute is not None:
            waits.append(self._wait_for_tokens(sum(most), now))
        if self.caps.cost is not None:
            after = self.account.total + self._reserved + self.account.money(most)
            if after > self.caps.cost:
                if self._under_way == 0:
                    raise self._reached(most)
                waits.append(LONGEST_WAIT)
        return max(waits)

    def _wait_for_tokens(self, needed: int, now: float) -> float:
        """Seconds until enough of the window's tokens have left it."""
        over = sum(ticket.tokens for ticket in self._sent) + needed - (self.caps.tokens_per_minute or 0)
        wait = 0.0
        for ticket in self._sent:
            if over <= 0:
                break
            over -= ticket.tokens
            wait = ticket.at + self._window - now
        return wait

    def _reached(self, most: Usage) -> CapReached:
        account = self.account
        unsure = f", and up to {account.unsure:.6g} for requests without a usable reply" if account.unsure else ""
        return CapReached(
            f"the cost cap is reached: {account.cost:.6g} of {self.caps.cost:g} is spent{unsure}, and the next request "
            f"may cost up to {account.money(most):.6g}. All {account.completions:,} completions are kept. Raise "
            "caps.cost and run the same command: it goes on from here."
        )
