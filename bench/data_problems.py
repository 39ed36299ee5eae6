"""10,000, 100,000 and 1,000,000 problems of one's own: seconds until a stage can draw from them, and peak memory.

    python bench/data_problems.py [--rows 10000 100000 1000000] [--words 60 400] [--format jsonl parquet]

Each set is read in a process of its own as a stage reads it: every row parsed, its gold answer checked, duplicates
dropped, split, and 1,000 problems drawn. Prompts have so many words of bench/data_rows.py (0.5 and 3 kB). Memory is the
largest resident set of the process; `imports` is that of a process that reads ten rows. Prints a table and writes
results/data_problems.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("results") / "data_problems.json"
DRAWN = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--words", type=int, nargs="+", default=[60, 400])
    parser.add_argument("--format", nargs="+", default=["jsonl"], choices=["jsonl", "parquet"])
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read)))
        return
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        small = measure(write(Path(scratch), 10, given.words[0], given.format[0]))["peak_mebibytes"]
        for suffix in given.format:
            for words in given.words:
                for count in given.rows:
                    path = write(Path(scratch), count, words, suffix)
                    size = path.stat().st_size
                    found.append({"rows": count, "format": suffix, "mebibytes": round(size / 2**20), **measure(path)})
                    path.unlink()
                    print(found[-1], flush=True)
    machine = {"platform": platform.machine(), "python": platform.python_version(), "processes": 1}
    result = {"command": "python bench/data_problems.py", "machine": machine, "imports_mebibytes": small}
    given.out.write_text(json.dumps({**result, "measured": found}, indent=1) + "\n")


def measure(path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--read", str(path)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(answer))


def read(path: Path) -> dict[str, Any]:
    from motet.base.recipe import ProblemSet
    from motet.data.mix import Mixture, Part
    from motet.tasks import load_problem_set

    began = time.perf_counter()
    split = load_problem_set("own", ProblemSet(path=str(path)), 1, path.parent)
    loaded = time.perf_counter() - began
    parts = [Part(domain, problems, 1.0) for domain, problems in split.train.by_domain().items()]
    began = time.perf_counter()
    drawn = Mixture(parts, 1).draw(0, DRAWN)
    assert len({problem.id for problem in drawn}) > 0.9 * min(DRAWN, len(split.train))
    return {
        "problems": len(split.train) + len(split.heldout),
        "seconds": round(loaded, 1),
        "seconds_to_draw_1000": round(time.perf_counter() - began, 2),
        "peak_mebibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def write(folder: Path, count: int, words: int, suffix: str) -> Path:
    path = folder / f"problems.{suffix}"
    if suffix == "jsonl":
        with path.open("w") as file:
            for row in rows(count, words):
                file.write(json.dumps(row) + "\n")
        return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pa.schema([(name, pa.string()) for name in ("id", "prompt", "answer", "domain")])
    with pq.ParquetWriter(path, columns) as writer:
        block: list[dict[str, Any]] = []
        for row in rows(count, words):
            block.append(row)
            if len(block) == 5000:
                writer.write_table(pa.Table.from_pylist(block, columns))
                block.clear()
        writer.write_table(pa.Table.from_pylist(block, columns))
    return path


def rows(count: int, words: int) -> Iterator[dict[str, Any]]:
    from data_rows import WORDS

    stream = random.Random(words)
    for number in range(count):
        a, b = stream.randrange(10_000), stream.randrange(10_000)
        told = " ".join(stream.choices(WORDS, k=words))
        prompt = f"Problem {number}: {told}. What are {a} and {b} together?"
        yield {"id": f"p{number}", "prompt": prompt, "answer": str(a + b), "domain": ("near", "far")[number % 2]}


if __name__ == "__main__":
    main()
