"""What was asked of an endpoint and what came back, on disk: so that nothing is paid twice.

Beside STAGE/groups.jsonl lie

    STAGE/raw/groups.jsonl.gz           every reply as it came, one JSON object a line (`zcat` shows it)
    STAGE/raw/groups.requests.jsonl     one line for each request sent, and for what became of it

A reply is on disk (fsync) before anybody is given its completions. A kill therefore loses the requests that were under
way and nothing else: they are the lines "sent" that no other line follows, at most as many as `batch_size`. Replies in
folders that were set aside (STAGE.stale-1, made with other rules or another count, say) answer too.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from motet.base import jsonl
from motet.base.errors import UserError
from motet.engine.account import Account
from motet.engine.replies import Usage

CHUNK = 1 << 20


class _Place(NamedTuple):
    """Of one completion: the raw file, where its reply's member begins there, and which choice it is."""

    file: Path
    offset: int
    choice: int


class Ledger:
    """Of the groups in one file. What earlier processes asked is added to `account` when it is opened."""

    def __init__(self, groups: Path, account: Account) -> None:
        stem = groups.parent / "raw" / groups.stem
        self.path = stem.with_name(stem.name + ".jsonl.gz")
        self.omits: set[str] = set()
        """Fields that the server was found not to take."""
        self.interrupted = 0
        """Requests that a kill has left without a reply."""
        self._lock = threading.Lock()
        self._places = _earlier(groups)
        self._refused: Counter[str] = Counter()
        self._journal = jsonl.Journal(stem.with_name(stem.name + ".requests.jsonl"))
        try:
            self._replay(account)
            self._raw: IO[bytes] = self.path.open("ab")
        except BaseException:
            self._journal.close()
            raise

    def find(self, key: str) -> tuple[Any, int] | None:
        """(reply, which of its choices) that answered the request with this key, if one did."""
        place = self._places.get(key)
        if place is None:
            return None
        found = _member(place.file, place.offset)
        assert found is not None, "the journal names whole members only"
        return json.loads(found[0])["reply"], place.choice

    def name(self, request: str) -> str:
        """What a try calls itself. The same one as before where no reply to it was seen, so that a server that knows
        such names may recognise what it has answered already; another one after a reply of no use."""
        count = self._refused[request]
        return f"{request}-{count}" if count else request

    def sent(self, request: str, most: Usage) -> None:
        self._write({"event": "sent", "id": request, "most": most})

    def failed(self, request: str, most: Usage, why: str, charged: bool, received: bool, text: str) -> None:
        """`received`: whether it was a reply of the server's that failed."""
        if received:
            self._refused[request] += 1
        row = {"event": "failed", "id": request, "most": most, "why": why, "charged": charged, "received": received}
        self._write({**row, "text": text})

    def answered(
        self, request: str, keys: Sequence[str], most: Usage, usage: Usage | None, seconds: float, body: Any, reply: Any
    ) -> None:
        """Returns when the reply is on disk."""
        row = {
            "id": request, "keys": list(keys), "time": round(time.time(), 3), "seconds": round(seconds, 3),
            "most": most, "usage": usage, "request": body, "reply": reply,
        }  # fmt: skip
        member = gzip.compress((jsonl.dumps(row) + "\n").encode("utf-8", "backslashreplace"), 6, mtime=0)
        with self._lock:
            offset = self._raw.seek(0, os.SEEK_END)
            self._raw.write(member)
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._found(offset, keys)
            self._journal.append(_answer(row, offset, len(member)))

    def refuses(self, field: str) -> None:
        self.omits.add(field)
        self._write({"event": "omits", "field": field})

    def close(self) -> None:
        with self._lock:
            self._raw.close()
            self._journal.close()

    def _write(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._journal.append({**row, "time": round(time.time(), 3)})

    def _found(self, offset: int, keys: Sequence[str]) -> None:
        self._places |= _places(self.path, offset, keys)

    def _replay(self, account: Account) -> None:
        """Adds up what the journal tells, then what it does not know of the raw file: a kill may fall between them."""
        under_way: Counter[tuple[str, Usage]] = Counter()

        def apply(row: dict[str, Any]) -> None:
            if row["event"] == "omits":
                self.omits.add(row["field"])
                return
            most = Usage(*row["most"])
            under_way[row["id"], most] += 1 if row["event"] == "sent" else -1
            if row["event"] == "sent":
                account.sent()
            elif row["event"] == "failed":
                account.failed(row["why"], most, row["charged"])
                self._refused[row["id"]] += row["received"]
            else:
                account.answered(most, None if row["usage"] is None else Usage(*row["usage"]), len(row["keys"]))
                self._found(row["offset"], row["keys"])

        end = 0
        for row in self._journal.rows:
            apply(row)
            end = max(end, row.get("offset", 0) + row.get("length", 0))
        for offset, length, raw in _members(self.path, end):
            row = _answer(raw, offset, length)
            self._journal.append(row)
            self._journal.rows.append(row)
            apply(row)
        answered = {row["id"] for row in self._journal.rows if row["event"] == "answered"}
        for (name, most), count in under_way.items():
            self.interrupted += count > 0 and name not in answered
            for _ in range(count):
                account.was_lost(most)
        self._journal.rows.clear()


def _places(file: Path, offset: int, keys: Sequence[str]) -> dict[str, _Place]:
    return {key: _Place(file, offset, choice) for choice, key in enumerate(keys)}


def _earlier(groups: Path) -> dict[str, _Place]:
    """Of the same file in the folders of this stage that were set aside."""
    found: dict[str, _Place] = {}
    folder = groups.parent
    for journal in sorted(folder.parent.glob(f"{folder.name}.stale-*/raw/{groups.stem}.requests.jsonl")):
        raw = journal.with_name(groups.stem + ".jsonl.gz")
        size = raw.stat().st_size if raw.exists() else 0
        with journal.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:  # torn by the kill that ended it
                    break
                if row["event"] == "answered" and row["offset"] + row["length"] <= size:
                    found |= _places(raw, row["offset"], row["keys"])
    return found


def _answer(row: dict[str, Any], offset: int, length: int) -> dict[str, Any]:
    """The journal's line for a row of the raw file."""
    kept = ("id", "keys", "time", "seconds", "most", "usage")
    return {"event": "answered", **{name: row[name] for name in kept}, "offset": offset, "length": length}


def _members(path: Path, start: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(offset, length, row) of each gzip member from `start` on; one that a kill has torn is cut off the file."""
    size = path.stat().st_size if path.exists() else 0
    if size < start:
        raise UserError(
            f"{path} is shorter ({size:,} bytes) than its journal says ({start:,}): put the whole file back, or remove "
            "both to ask for everything again."
        )
    offset = start
    while offset < size:
        found = _member(path, offset)
        if found is None:
            os.truncate(path, offset)
            return
        text, length = found
        yield offset, length, json.loads(text)
        offset += length


def _member(path: Path, offset: int) -> tuple[bytes, int] | None:
    """(content, length in the file) of the gzip member that begins at `offset`; None where the file ends inside it."""
    with path.open("rb") as file:
        file.seek(offset)
        member = zlib.decompressobj(31)  # 31: a gzip header and the largest window
        text, length = b"", 0
        try:
            while not member.eof and (chunk := file.read(CHUNK)):
                text += member.decompress(chunk)
                length += len(chunk)
        except zlib.error as error:
            raise UserError(f"{path}, byte {offset:,}: not the gzipped replies that were written ({error})") from error
    return (text, length - len(member.unused_data)) if member.eof else None
