"""The quickstart with three seeds and two controls: what `recipes/quickstart.toml` shows, committed as data.

    .venv/bin/python bench/quickstart.py          # about 20 minutes on two cores; writes bench/results/quickstart.json

Controls, both from seed 1's weights before RL: SFT continued for as many seconds as RL took, on the conversations
of the second SFT stage; and RL with its rewards permuted among all rollouts of a batch, which leaves nothing to learn.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from motet.base import jsonl

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs"
RECIPE = ROOT / "recipes" / "quickstart.toml"
SEEDS = (1, 2, 3)


def main() -> None:
    results: dict[str, Any] = {
        "command": "python bench/quickstart.py",
        "machine": machine(),
        "seeds": {},
        "controls": {},
    }
    for seed in SEEDS:
        report = run(f"quickstart-seed{seed}", f"seed={seed}")
        results["seeds"][str(seed)] = figures(report, "sft-2", "rl")
        results["versions"] = {key: report["lineage"][key] for key in ("motet", "python", "torch", "transformers")}
        jsonl.write_json(ROOT / "bench" / "results" / "quickstart.json", results)
    first = jsonl.read_json(RUNS / f"quickstart-seed{SEEDS[0]}" / "report.json")
    copy(f"quickstart-seed{SEEDS[0]}", "quickstart-shuffled")
    shuffled = run("quickstart-shuffled", f"seed={SEEDS[0]}", "stage.rl.algorithm.shuffle_rewards=true")
    results["controls"]["rl with shuffled rewards"] = figures(shuffled, "sft-2", "rl")
    seconds = jsonl.read_json(RUNS / f"quickstart-seed{SEEDS[0]}" / "report.json")["rl"]["seconds"]
    rate = [
        r["time/step"]
        for _, r in jsonl.read(RUNS / f"quickstart-seed{SEEDS[0]}" / "metrics.jsonl")
        if r["stage"] == "sft-2"
    ]
    steps = round(seconds / (sum(rate) / len(rate)))
    copy(f"quickstart-seed{SEEDS[0]}", "quickstart-more-sft")
    names = ["base", "sft-1", "synthesize", "sft-2", "filter", "sft-3"]
    stage = jsonl.read_json(RUNS / f"quickstart-seed{SEEDS[0]}" / "resolved.json")["stage"]["sft-2"]
    data = (
        "["
        + ", ".join(
            "{"
            + ", ".join(f"{k} = {v!r}" for k, v in s.items() if k in ("problems", "stage", "weight") and v is not None)
            + "}"
            for s in stage["data"]
        )
        + "]"
    )
    more = run(
        "quickstart-more-sft",
        f"seed={SEEDS[0]}",
        f"stages={names}",
        'stage.sft-3.kind="sft"',
        f"stage.sft-3.steps={steps}",
        f"stage.sft-3.batch_size={stage['batch_size']}",
        f"stage.sft-3.context={stage['context']}",
        "stage.sft-3.optimizer.learning_rate=5e-4",
        f"stage.sft-3.data={data}".replace("'", '"'),
    )
    results["controls"]["sft continued for the seconds of rl"] = {**figures(more, "sft-2", "sft-3"), "steps": steps}
    results["rl_seconds"] = first["rl"]["seconds"]
    jsonl.write_json(ROOT / "bench" / "results" / "quickstart.json", results)


def run(name: str, *overrides: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "motet.cli", "run", str(RECIPE), f"name={name}", *overrides, "--runs", str(RUNS)]
    subprocess.run(command, check=True, cwd=ROOT)
    return jsonl.read_json(RUNS / name / "report.json")


def copy(source: str, target: str) -> None:
    """The same stages up to RL: a run of `target` finds them done and does only what differs."""
    shutil.rmtree(RUNS / target, ignore_errors=True)
    shutil.copytree(RUNS / source, RUNS / target, ignore=shutil.ignore_patterns("rl"))


def figures(report: dict[str, Any], before: str, after: str) -> dict[str, Any]:
    evaluation = report["evaluation"]
    rows: dict[str, Any] = {
        stage: {domain: row["pass_at_1"] for domain, row in domains.items()} for stage, domains in evaluation.items()
    }
    return {
        "pass_at_1": rows,
        "gain_points": 100 * (rows[after]["all"]["mean"] - rows[before]["all"]["mean"]),
        "filter": {k: report["filter"][k] for k in ("live_share_before", "live_share_after", "kept", "of")},
        "seconds": report["seconds"],
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
