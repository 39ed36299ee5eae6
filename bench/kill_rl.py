"""Kills RL runs with SIGKILL at random moments, and compares each, gone on with, with a run that nobody killed.

    python bench/kill_rl.py                             # 20 runs, then 5 with overlap: about 25 minutes on two cores
    python bench/kill_rl.py --runs 0 --overlap 0 --vllm .venv-vllm/bin/python     # 3 with a vLLM server, 1 killing it

It writes bench/results/kill_rl.json, each part into what the file holds of the others.

A run is that of tests/micro.py's recipe on one thread: spell and say a number of two digits, from the weights of one
SFT stage that is done once. S = 4 (two passes of two minibatches), KL to a reference, refill, retirement, held-out
probes, a checkpoint every tenth step. A moment is drawn evenly over the seconds of the uninterrupted stage; every
fourth run is killed a second time at a moment of what is left. Then the same recipe is run to its end.

Sampled in the process (`embedded`, and `overlap`, one-step-off), these must be equal: the SHA-256 of the exported
weights; every file of rollouts and of probes, byte by byte; the state of the problems; every row of metrics.jsonl but
for times. With vLLM, whose sums depend on what is computed side by side, every rollout that was on disk when the run
was killed must be in the finished one as it was, each step must hold each of its problems' samples once, and
metrics.jsonl must have counted as many.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import killing  # noqa: E402
import micro  # noqa: E402

OUT = ROOT / "bench" / "results" / "kill_rl.json"
SETTINGS = [
    "threads=1", "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]", "stage.rl.evaluate=false",
    "stage.rl.prompts_per_step=16", "stage.rl.group_size=8", "stage.rl.optimizer.learning_rate=2e-3",
    "stage.rl.checkpoint_every=10",
]  # fmt: skip
EMBEDDED = [
    "stage.rl.algorithm.passes=2", "stage.rl.algorithm.minibatches=2", "stage.rl.algorithm.kl=0.01",
    "stage.rl.refill=0.5", "stage.rl.retire_at=0.95", "stage.rl.return_after=5", "stage.rl.probe_every=5",
    "stage.rl.probe=20",
]  # fmt: skip
SERVED = ["engine.kind='vllm'", "engine.eager=true", "engine.batch_size=32", "stage.rl.checkpoint_every=2"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact resume of RL, killed at random moments.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--overlap", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, model = prepared(folder)
        base = [*model, *SETTINGS]
        embedded = [*base, *EMBEDDED, f"stage.rl.steps={options.steps}"]
        overlap = [*embedded, "stage.rl.overlap=true"]
        for name, count, overrides in (("embedded", options.runs, embedded), ("overlap", options.overlap, overlap)):
            if count:
                results[name] = {**killed(recipe, overrides, folder / name, count, options.seed), **about()}
                save(options.out, results)
        if options.vllm:
            served = [f"engine.python='{Path(options.vllm).absolute()}'", "stage.rl.steps=8"]
            results["vllm"] = {**with_vllm(recipe, [*base, *SERVED, *served], folder / "vllm"), **about()}
            save(options.out, results)
    print("\n\n".join(table(name, part) for name, part in results.items()))
    if any(row["differs"] for part in results.values() for row in part["runs"]):
        raise SystemExit("a run that was killed did not end as it had to")


def prepared(folder: Path) -> tuple[Path, list[str]]:
    """The recipe, and the settings that make it begin with the weights of an SFT stage, which is run here."""
    recipe = micro.write_recipe(folder)
    # heads of 32: vLLM has no CPU kernel for narrower ones
    tiny = "model={device='cpu', tiny={hidden=64, layers=2, heads=2, mlp=96, context=64}}"
    command = [sys.executable, "-m", "motet.cli", "run", str(recipe), "stages=['sft']", "name=start", tiny]
    subprocess.run([*command, "stage.sft.steps=40", "--runs", str(folder)], check=True, capture_output=True)
    return recipe, [f"model={{path='{folder / 'start' / 'sft' / 'model'}', device='cpu'}}"]


def killed(recipe: Path, overrides: list[str], folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Sampled in the process: bit for bit."""
    found = killing.kill(recipe, overrides, folder, count, f"{folder.name} {seed}", twice=4)
    rewards = [row["reward/mean"] for row in killing.rows_of(folder / "whole")]
    learnt = {"first_ten": sum(rewards[:10]) / 10, "last_ten": sum(rewards[-10:]) / 10}
    return {**found, "steps": len(rewards), "reward": learnt}


# ---- sampled by vLLM: none lost, none counted twice


def with_vllm(recipe: Path, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Three runs killed in their sampling, another whose server is killed."""
    rows = []
    for number, (step, whom) in enumerate([(2, "run"), (4, "run"), (7, "run"), (3, "server")], 1):
        run = folder / f"killed-{number}"
        words = [sys.executable, "-m", "motet.cli", "run", str(recipe), f"name={run.name}", *overrides]
        command = [*words, "--runs", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        journal = run / "rl" / "rollouts" / f"step-{step:05d}.part.jsonl"
        while len(killing.whole_lines(journal)) < 8:
            ended(process, process.poll())
            time.sleep(0.002)
        servers = descendants(process.pid, "vllm_worker.py")
        if whom == "server":
            os.killpg(servers[0], signal.SIGKILL)
            kill, held = killing.seen(run), recorded(run)
            ended(process, process.wait() or None)
        else:
            process.kill()
            process.wait()
            kill, held = killing.seen(run), recorded(run)
            time.sleep(5)  # the server ends by itself
            kill["servers_left"] = sum(Path(f"/proc/{pid}").exists() for pid in servers)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows.append({"killed": whom, "kills": [kill], "on_disk": len(held), "differs": miscounted(run, held)})
        print(f"vllm {number}: {rows[-1]}", file=sys.stderr, flush=True)
    return {"steps": len(killing.rows_of(run)), "runs": rows}


def ended(process: subprocess.Popen[bytes], status: int | None) -> None:
    """Says why, where a run ended that ought not to have."""
    if status is not None:
        assert process.stderr is not None
        raise SystemExit(f"the run ended with {status}:\n{process.stderr.read().decode()[-2000:]}")


def recorded(run: Path) -> dict[tuple[str, str, int], Any]:
    """Every rollout on disk by (file's step, problem, index), those of journals and of finished files."""
    found: dict[tuple[str, str, int], Any] = {}
    for path in sorted((run / "rl" / "rollouts").glob("*.jsonl"), key=lambda path: ".part" not in path.name):
        step, seen_so_far = path.name.split(".")[0], Counter[str]()
        for row in killing.whole_lines(path):
            if "rollouts" not in row:
                found[step, row["problem"], row["index"]] = row["rollout"]
                continue
            for rollout in row["rollouts"]:
                problem = row["problem"]["id"]
                found[step, problem, seen_so_far[problem]] = rollout
                seen_so_far[problem] += 1
    return found


def miscounted(run: Path, held: dict[tuple[str, str, int], Any]) -> list[str]:
    """What is not as it has to be in a finished run, in words."""
    final, wrong = recorded(run), []
    lost = [key for key, rollout in held.items() if final.get(key) != rollout]
    if lost:
        wrong.append(f"{len(lost)} of {len(held)} rollouts that were on disk are not in the finished run")
    rows = killing.rows_of(run)
    if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append(f"the steps of metrics.jsonl are {[row['step'] for row in rows]}")
    for row in rows:
        own = [rollout for key, rollout in final.items() if key[0] == f"step-{row['step']:05d}"]
        tokens = sum(len(rollout["completion"]["tokens"]) for rollout in own)
        if (len(own), row["rollout/count"], row["tokens/sampled"]) != (128, 128, tokens):
            wrong.append(f"step {row['step']}: {len(own)} rollouts of {tokens} tokens on disk, {row['rollout/count']} "
                         f"of {row['tokens/sampled']} counted")  # fmt: skip
    return wrong


def descendants(pid: int, word: str) -> list[int]:
    """Process ids below `pid` whose command line holds `word`, the eldest first."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {pid}, []
    for child in sorted(parents):
        if parents[child] in below:
            below.add(child)
            if word in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


# ---- what is said of it


def about() -> dict[str, Any]:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python bench/kill_rl.py", *words])
    return {"command": command, "cpu": names[0] if names else platform.processor(),
            "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip


def save(out: Path, results: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def table(name: str, part: dict[str, Any]) -> str:
    titles = ("run", "killed", "second", "it said", "step", "its folder shows", "checkpoint", "in journals", "equal")
    lines = [f"{name}: {part['steps']} steps", "| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for number, row in enumerate(part["runs"], 1):
        for kill in row["kills"]:
            told = [row.get("killed", "run"), kill.get("second", ""), kill.get("said", "")]
            told += [kill["step"], kill["shown"], kill["checkpoint"] or "none", kill["recorded"]]
            lines.append("| " + " | ".join(map(str, (number, *told, "; ".join(row["differs"]) or "yes"))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
