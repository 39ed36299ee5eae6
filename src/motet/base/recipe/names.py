"""Names that a recipe does not know."""

from __future__ import annotations

from typing import Any


def unknown_name(place: str, given: str, known: Any, what: str) -> str:
    return f"{place}: there is no {given!r}; {nearest(given, list(known))}it must be {what}"


def nearest(given: str, known: list[str]) -> str:
    """ "did you mean 'steps'? " or "known are 'a', 'b'; ": part of an error message."""
    import difflib

    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? "
    return "known are " + ", ".join(map(repr, sorted(known)[:12])) + "; " if known else ""
