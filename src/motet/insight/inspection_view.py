"""An inspection for a reader: in the terminal, with or without colour, and as a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from motet.insight.page import table_view, token_view, write_page
from motet.insight.wording import count, percent, plural

WIDTH = 110
BETWEEN = "\u2502"
LEARNED, CONTEXT = "\x1b[1;32m", "\x1b[2m"
PLAIN = "\x1b[0m"
SHOWN = {"\n": "\u21b5", "\t": "\u2192"}


def text(found: Mapping[str, Any], colour: bool) -> str:
    """At most 110 columns. Without colour nothing is lost: each line says whether its tokens are learned."""
    lines = [part for line in _head(found) for part in _wrapped(line)] + [""]
    for check in found["checks"]:
        lines.append(f"  {check['check']:<8}{_result(check, found):<16}{check['about']}")
        for example in check["examples"]:
            lines += _wrapped(f"      {_at(example)}{example['detail']}")
    for note in found["notes"]:
        lines += _wrapped(f"note: {note}")
    for shown in found["shown"]:
        lines += ["", f"{shown['place']}: {plural(shown['tokens'], 'token')}, {count(shown['learned'])} learned"]
        for why in shown["findings"]:
            lines += _wrapped(f"  REFUSED {why}")
        lines += _tokens(shown, colour)
    return "\n".join(lines)


def write(path: Path, found: Mapping[str, Any]) -> None:
    rows = [[c["check"], _result(c, found), c["about"]] for c in found["checks"]]
    why = "".join(f"<li>{escape(_at(e) + e['detail'])}</li>" for c in found["checks"] for e in c["examples"])
    why += "".join(f"<li>{escape(note)}</li>" for note in found["notes"])
    head = "".join(f"<p>{escape(line)}</p>" for line in _head(found))
    sections = [
        ("Checks", head + table_view(["check", "result", "what it asks"], rows) + f'<ul class="alerts">{why}</ul>')
    ]
    shown = "".join(
        f"<h3>{escape(s['place'])} <span>{s['tokens']:,} tokens, {s['learned']:,} learned</span></h3>"
        + "".join(f'<p class="fail">{escape(line)}</p>' for line in s["findings"])
        + token_view(s)
        for s in found["shown"]
    )
    sections.append(("Tokens", '<p class="muted">Coloured: learned. The others are context.</p>' + shown))
    write_page(path, "motet inspect", str(found["data"]), sections)


def _head(found: Mapping[str, Any]) -> list[str]:
    think = found["think"] + (", opened by the prompt" if found["open_think"] else "")
    stops = ", ".join(map(repr, found["stop_tokens"]))
    of = "the first " if found["more"] else "all "
    return [
        f"{found['data']} for {found['model']}: {of}{plural(found['checked'], 'conversation')} checked, "
        f"{count(found['refused'])} refused",
        f"think {think}; a turn ends with {found['end_token']!r}, generation stops at {stops}",
        f"{count(found['tokens_mean'])} tokens on average, {count(found['tokens_max'])} at most "
        f"(context {count(found['context'])}), {percent(found['learned_share'])} of them learned",
    ]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


def _result(check: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if check["refused"]:
        return f"{check['refused']:,} refused"
    return "ok" if found["tokens_max"] else "no row to check"


def _at(example: Mapping[str, str]) -> str:
    return f"{example['place']}: " if example["place"] else ""


def _tokens(shown: Mapping[str, Any], colour: bool) -> list[str]:
    """Stretches of context and of learned tokens in turn, with a bar between two tokens."""
    lines: list[tuple[str, str]] = []
    """(line, its style)"""
    current = ""
    for piece, learned in shown["pieces"]:
        if piece is None:
            lines.append((f"{'':<11}... {learned:,} tokens left out ...", ""))
            current = ""
            continue
        name, visible = "learned" if learned else "context", _visible(piece)
        if name == current and len(lines[-1][0]) + len(visible) < WIDTH:
            lines[-1] = (lines[-1][0] + BETWEEN + visible, lines[-1][1])
        else:
            lines.append((f"  {'' if name == current else name:<9}{visible}", LEARNED if learned else CONTEXT))
        current = name
    return [f"{style}{line}{PLAIN}" if colour and style else line for line, style in lines]


def _visible(piece: str) -> str:
    """A token without what would move the cursor or colour the terminal."""
    shown = "".join(SHOWN.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in piece)
    return shown or "\u00b7"
