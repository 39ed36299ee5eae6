"""A self-contained page of its own, in the report's style; and conversations as tokens, for such a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def write_page(path: Path, kicker: str, title: str, sections: Sequence[tuple[str, str]]) -> None:
    """One file, no script, nothing fetched. `sections` are (heading, HTML); headings are escaped here."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    body = "".join(f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}: {escape(kicker)}</title><style>{style}</style></head><body><main>"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1></header>{body}</main></body></html>\n',
        encoding="utf-8",
        errors="replace",
    )


def token_view(shown: Mapping[str, Any]) -> str:
    """The pieces of one training example: a box a token, the learned ones coloured."""
    parts = []
    for text, learned in shown["pieces"]:
        if text is None:
            parts.append(f"<i>{learned:,} tokens left out</i>")
            continue
        visible = escape(str(text)).replace("\n", "\u21b5\n") or "\u00b7"
        parts.append(f"<b>{visible}</b>" if learned else f"<span>{visible}</span>")
    return f'<pre class="tokens">{"".join(parts)}</pre>'


def table_view(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is text, the others are numbers, aligned at their right."""
    cells = "".join(f"<th{' class=n' if i else ''}>{escape(name)}</th>" for i, name in enumerate(head))
    lines = [
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(str(c))}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
