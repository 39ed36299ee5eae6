"""Kills the quickstart with SIGKILL once in every stage, starts it again, and compares with an uninterrupted run.

    .venv/bin/python bench/kill_everywhere.py runs/quickstart-seed1

The argument is a finished run of the same recipe and seed. Prints, for every stage, where it was killed,
then whether the final evaluation and the final weights are the same.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from motet.base import jsonl

ROOT = Path(__file__).parent.parent
NAME = "quickstart-killed"
RUN = ROOT / "runs" / NAME


def main(reference: Path) -> None:
    shutil.rmtree(RUN, ignore_errors=True)
    seed = jsonl.read_json(reference / "resolved.json")["seed"]
    command = [sys.executable, "-m", "motet.cli", "run", "recipes/quickstart.toml", f"name={NAME}", f"seed={seed}"]
    signs = {
        "base": "evaluation-*.part.jsonl",
        "sft-1": "checkpoints/step-000200",
        "synthesize": "groups.part.jsonl",
        "sft-2": "evaluation-*.part.jsonl",
        "filter": "groups.part.jsonl",
        "rl": "rollouts/step-00017.jsonl",
    }
    for stage, sign in signs.items():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(p.stat().st_size or p.is_dir() for p in (RUN / stage).glob(sign)):
            if process.poll() is not None:
                raise SystemExit(f"{stage}: the run ended before it could be killed")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = [row["step"] for _, row in jsonl.read(RUN / "metrics.jsonl") if row["stage"] == stage]
        checkpoints = sorted(p.name for p in (RUN / stage / "checkpoints").glob("step-*"))
        print(f"killed in {stage}: steps done {max(rows, default=0)}, newest checkpoint {checkpoints[-1:] or 'none'}")
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours, theirs = (jsonl.read_json(run / "report.json") for run in (RUN, reference))
    for stage, domains in theirs["evaluation"].items():
        same = ours["evaluation"][stage]["all"]["pass_at_1"] == domains["all"]["pass_at_1"]
        print(f"{stage}: pass@1 {ours['evaluation'][stage]['all']['pass_at_1']['mean']:.4f}, equal: {same}")
    print(f"weights equal: {weights(RUN) == weights(reference)}; report: {ours['status']}, missing: {ours['missing']}")


def weights(run: Path) -> bytes:
    return (run / "rl" / "model" / "model.safetensors").read_bytes()


if __name__ == "__main__":
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
