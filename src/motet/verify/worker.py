"""The process that judges for a pool: JSON lines on standard input, one JSON line for each on standard output.

    {"problem": {...}, "answer": "so \\boxed{12}", "settings": {...}}   ->  {"verdict": {"kind": "correct", ...}}
    {"problem": {...}, "settings": {...}}  (the problem itself)         ->  {"verdict": null} or an invalid_problem
    trouble of the user's making (a verifier that does not load)        ->  {"user_error": "..."}

Before and after a heavy import it says {"loading": true} and {"loading": false}. It ends when its input does.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any

from motet.base.errors import UserError
from motet.base.records import decode_problem
from motet.verify import resolve
from motet.verify.judge import apply, check_problem
from motet.verify.loading import listen, loading
from motet.verify.sandbox import Settings

MEMORY_BYTES = 16 << 30
PR_SET_PDEATHSIG = 1


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our input
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a verifier prints must not look like a reply

    def say(row: dict[str, Any]) -> None:
        replies.write(json.dumps(row).encode() + b"\n")

    listen(lambda begun: say({"loading": begun}))
    say({"ready": True})
    loaded: set[str] = set()
    for line in sys.stdin.buffer:
        say(reply(json.loads(line), loaded))


def reply(message: dict[str, Any], loaded: set[str]) -> dict[str, Any]:
    """`loaded` holds the names of the verifiers that were resolved before, and is added to."""
    problem = decode_problem(message["problem"])
    settings = Settings(**message["settings"])
    try:
        if problem.verifier not in loaded:
            with loading():
                resolve(problem.verifier, settings)
            loaded.add(problem.verifier)
        if "answer" in message:
            verdict = apply(resolve(problem.verifier, settings), problem, message["answer"])
        else:
            found = check_problem(problem, settings)
            if found is None:
                return {"verdict": None}
            verdict = found
    except UserError as error:
        return {"user_error": str(error)}
    return {"verdict": asdict(verdict)}


if __name__ == "__main__":
    main()
