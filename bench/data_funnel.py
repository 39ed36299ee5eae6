"""10,000 and 100,000 conversations through a clean stage: time, memory, and what of the planted rows is found.

    python bench/data_funnel.py [--rows 10000 100000] [--workers 2]

`motet run` is started as a user would start it, on files made by data_rows.py: one row in a hundred repeats another one
with 2 to 8 % of its words edited; some hold an evaluation question, as the prompt or inside a trace, with its own or
with other numbers; some hold only phrases that evaluation questions and thousands of rows share. Nothing else should
be dropped. Two rules are off, since they see some edited rows before near_duplicate does (a changed number makes a sum
wrong); what they would drop is computed all the same. Memory is that of the command and its processes together, sampled
twice a second (proportional set size, so that shared pages count once). Prints a table and writes
results/data_funnel.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import data_rows as made

RESULT = Path(__file__).with_name("results") / "data_funnel.json"
QUESTIONS = 1000
NEAR_SHARE = 0.01
PLANTED = ("prompt", "prompt, other numbers", "trace", "trace, other numbers", "phrase")
EACH = 100
"""Planted rows of each kind."""
RECIPE = """
name = "funnel"
stages = ["clean"]
threads = 1
[model]
device = "cpu"
tiny = {{ hidden = 32, layers = 1, heads = 2, mlp = 64, context = 64 }}
[verification]
workers = {workers}
[problems.questions]
path = "{folder}/questions.jsonl"
heldout = 1.0
[stage.clean]
kind = "clean"
evaluate = false
data = [{{ path = "{folder}/rows.jsonl" }}]
rules = {{ off = ["arithmetic", "finished"] }}
"""


def write(folder: Path, count: int) -> None:
    """rows.jsonl, questions.jsonl and planted.json, {a row's mark: what was planted in it}; what is there is kept."""
    if (folder / "planted.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    stream = random.Random(f"plan/{count}")
    asked = [made.question(random.Random(f"question/{n}"), 3 + n % 5) for n in range(QUESTIONS)]
    with (folder / "questions.jsonl").open("w") as file:
        for number, text in enumerate(asked):
            file.write(json.dumps({"id": f"q{number}", "prompt": text, "answer": number + 1}) + "\n")
    kinds = ["near"] * round(NEAR_SHARE * count) + [kind for kind in PLANTED for _ in range(EACH)]
    plan = dict(zip(stream.sample(range(count // 2, count), len(kinds)), kinds, strict=True))
    planted: dict[str, str] = {}
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            kind = plan.get(number, "")
            if kind == "near":
                row = made.edited(made.row(stream.randrange(count // 2)), stream.uniform(0.02, 0.08), stream)
            elif kind:
                row = made.contaminated(kind, stream.choice(asked), number, stream)
            else:
                row = made.row(number)
            if kind:
                planted[mark(row)] = kind
            file.write(json.dumps(row) + "\n")
    (folder / "planted.json").write_text(json.dumps(planted))


def mark(row: dict[str, Any]) -> str:
    prompt, turn = row["messages"]
    text = f"{prompt['content']}|{turn['reasoning_content']}|{turn['content']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Watch:
    """Peak memory of a process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self.peak, self._pid, self._ended = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.peak

    def _sample(self) -> None:
        while not self._ended.wait(0.5):
            self.peak = max(self.peak, sum(map(_memory, _family(self._pid))))


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for item in found:
        found += children.get(item, [])
    return found


def _memory(pid: int) -> int:
    """Proportional set size in bytes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


def measure(folder: Path, count: int, workers: int, scratch: Path) -> dict[str, Any]:
    recipe = scratch / f"{count}.toml"
    recipe.write_text(RECIPE.format(workers=workers, folder=folder))
    command = [sys.executable, "-m", "motet.cli", "run", str(recipe), "--runs", str(scratch / str(count))]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        watch = Watch(run.pid)
        _, told = run.communicate()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(told)
    stage = scratch / str(count) / "funnel" / "clean"
    rules = json.loads((stage / "funnel.json").read_text())["rules"]
    with (stage / "data.jsonl").open() as file:
        kept = {mark(json.loads(line)) for line in file}
    planted = json.loads((folder / "planted.json").read_text())
    of, missed = Counter(planted.values()), Counter(kind for key, kind in planted.items() if key in kept)
    clean = count - len(planted)
    return {
        "rows": count,
        "mebibytes": round((folder / "rows.jsonl").stat().st_size / 2**20, 1),
        "seconds": round(seconds, 1),
        "processor_seconds": round(sum(after[:2]) - sum(before[:2]), 1),
        "peak_mebibytes": round(watch.stop() / 2**20),
        "dropped": {kind: [of[kind] - missed[kind], of[kind]] for kind in ("near", *PLANTED)},
        "dropped_without_cause": [clean - (len(kept) - missed.total()), clean],
        "rules": {rule["rule"]: rule["dropped"] for rule in rules if rule["dropped"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="where the rows are made, and found when they were made before")
    parser.add_argument("--only-make", action="store_true", help="make the rows in --data and measure nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.data or Path(scratch) / "rows").resolve()
        for count in given.rows:
            write(folder / str(count), count)
        if given.only_make:
            return
        found = [measure(folder / str(count), count, given.workers, Path(scratch)) for count in given.rows]
    for item in found:
        print(
            f"{item['rows']:,} rows, {item['mebibytes']} MiB: {item['seconds']} s "
            f"({item['processor_seconds']} s of processor), {item['peak_mebibytes']} MiB"
        )
        for kind, (some, all_) in item["dropped"].items():
            print(f"  {kind:<22} {some} of {all_} dropped")
        print(
            f"  nothing planted        {item['dropped_without_cause'][0]} of {item['dropped_without_cause'][1]} dropped"
        )
        print(f"  {item['rules']}")
    machine = {"platform": platform.machine(), "python": platform.python_version(), "workers": given.workers}
    RESULT.write_text(json.dumps({"machine": machine, "measured": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
