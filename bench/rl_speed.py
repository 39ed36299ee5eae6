"""The quickstart's RL stage in this tree against the same stage in another commit: seconds a phase, tokens, result.

    python bench/rl_speed.py                            # 3 rounds against dd5cb23: about 15 minutes on two cores
    python bench/rl_speed.py --against FOLDER           # a checkout, or any commit
    python bench/rl_speed.py --steps 3 --rounds 1 --heldout 0 --out speed.json     # a dry run

It writes bench/results/rl_speed.json. Each side runs its own recipes/quickstart.toml with its own code, in a process
of its own, in turns. Both begin with the same weights (sft-2) and the same filtered problems, which this tree makes
once (`--start RUN`: a finished run of the quickstart instead). The random numbers are those of the recipe, so both
sample the same completions until the last bits of the weights make one of them differ.

Seconds are the sums of the stage's own timers over all steps; `stage` is all of it, from loading to the exported model,
`processor` the processor time that it took with the verifiers' workers, threads that wait for each other included.
`others` is the share of the machine's processor time that went to other programs meanwhile: a figure to judge the
seconds by.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "results" / "rl_speed.json"
PHASES = ("generate", "judge", "anchor", "train", "load", "step")
NAMES = {"generate": "sample", "train": "steps", "step": "whole step"}
"""What the table calls a timer, where that is another word."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The quickstart's RL stage, here and in another commit.")
    parser.add_argument("--against", default="dd5cb23", help="a checkout's folder, or a commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--heldout", type=int, default=1, help="0: the final weights are not evaluated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a run folder with sft-2/model and filter/")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.start, options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = options.start or begin(folder)
        trees = {"this": ROOT, "other": checkout(options.against, folder / "other")}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for round_ in range(options.rounds):
            for name in ("other", "this"):
                runs[name].append(run(trees[name], start, folder / f"{name}-{round_}", options))
                print(f"round {round_ + 1}, {name}: {runs[name][-1]['seconds']}", file=sys.stderr)
        results = {
            "command": " ".join(["python bench/rl_speed.py", *shown(sys.argv[1:])]),
            "against": options.against if not Path(options.against).is_dir() else commit_of(Path(options.against)),
            "machine": machine(options.threads),
            **compared(runs),
            "runs": runs,
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def begin(folder: Path) -> Path:
    """The stages before RL, by this tree."""
    stages = "stages=['base','sft-1','synthesize','sft-2','filter']"
    command = [sys.executable, "-m", "motet.cli", "run", str(ROOT / "recipes" / "quickstart.toml"), stages]
    run = subprocess.run([*command, "name=start", "--runs", str(folder)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"the stages before RL failed:\n{run.stderr[-2000:]}")
    return folder / "start"


def checkout(against: str, folder: Path) -> Path:
    """`against` itself where it is a folder; else the files of that commit, in `folder`."""
    if Path(against).is_dir():
        return Path(against).resolve()
    folder.mkdir()
    archive = subprocess.run(["git", "archive", against], cwd=ROOT, stdout=subprocess.PIPE)
    if archive.returncode:
        raise SystemExit(f"--against {against}: neither a folder nor a commit of this repository")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def run(tree: Path, start: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The stage in a process of its own, which imports motet from `tree`."""
    own = ["--steps", str(options.steps), "--threads", str(options.threads), "--heldout", str(options.heldout)]
    command = [sys.executable, __file__, "--side", str(folder), "--start", str(start.resolve()), *own]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: the stage failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side(folder: Path, start: Path, options: argparse.Namespace) -> dict[str, Any]:
    """In the child, in the root of the tree that it runs."""
    import torch

    from motet.base import jsonl
    from motet.base.load_recipe import load
    from motet.base.run import Run
    from motet.stages import evaluate, rl
    from motet.stages.context import Context

    recipe = load(Path("recipes/quickstart.toml"), [f"stage.rl.steps={options.steps}", f"threads={options.threads}"])
    torch.set_num_threads(options.threads)
    model = start / "sft-2" / "model"
    shutil.copytree(start / "filter", folder / "filter")
    with Run(folder, console=False) as run:
        context = Context(recipe, run, model)
        before, began = busy(), time.perf_counter()
        rl.run("rl", recipe.stage["rl"], context, model)  # type: ignore[arg-type]
        seconds, after = time.perf_counter() - began, busy()
        score = evaluate.run("rl", context, folder / "rl" / "model")["domains"] if options.heldout else {}
        context.close()
    rows = [row for _, row in jsonl.read(folder / "metrics.jsonl")]
    spent = {phase: sum(row.get(f"time/{phase}", 0.0) for row in rows) for phase in PHASES}
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": {
            phase: round(value, 2)
            for phase, value in {**spent, "stage": seconds, "processor": after[1] - before[1]}.items()
        },
        "step_median": statistics.median(row["time/step"] for row in rows),
        "others": round(others(before, after), 3),
        "peak_memory_bytes": used.ru_maxrss * 1024,
        "steps": len(rows),
        "inner_steps": sum(row.get("inner_steps", 0) for row in rows),
        **counted(folder / "rl" / "rollouts"),
        "scored_tokens": sum(row.get("tokens/scored", 0) for row in rows),
        "reward_first": rows[0]["reward/mean"],
        "reward_last_ten": statistics.fmean(row["reward/mean"] for row in rows[-10:]),
        "heldout": {domain: row["pass_at_1"] for domain, row in score.items()},
    }


def counted(rollouts: Path) -> dict[str, int]:
    """Rollouts of all steps, their completions' tokens."""
    found = [
        rollout
        for file in sorted(rollouts.glob("step-*.jsonl"))
        for line in file.read_text().splitlines()
        for rollout in json.loads(line)["rollouts"]
    ]
    return {"rollouts": len(found), "tokens": sum(len(rollout["completion"]["tokens"]) for rollout in found)}


def busy() -> tuple[float, float]:
    """Seconds of processor time: all of the machine's, and of this process with its children, ended or not."""
    fields = [float(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    own = sum(times(int(pid.name)) for pid in Path("/proc").iterdir() if pid.name.isdigit() and ours(int(pid.name)))
    return (sum(fields) - fields[3] - fields[4]) / tick, own / tick


def ours(pid: int) -> bool:
    """Whether a process is this one or one of its children, theirs, and so on."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def times(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(float, fields[11:15]))


def others(before: tuple[float, float], after: tuple[float, float]) -> float:
    whole, own = after[0] - before[0], after[1] - before[1]
    return max(0.0, (whole - own) / whole) if whole else 0.0


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds by side, and this tree's share of the other's."""
    medians = {
        name: {phase: statistics.median(run["seconds"][phase] for run in side) for phase in side[0]["seconds"]}
        for name, side in runs.items()
    }
    ratio = {
        phase: round(value / medians["other"][phase], 3)
        for phase, value in medians["this"].items()
        if medians["other"][phase] >= 0.5
    }
    pairs = zip(runs["this"], runs["other"], strict=True)
    rounds = [round(mine["seconds"]["stage"] / other["seconds"]["stage"], 3) for mine, other in pairs]
    return {"medians": medians, "ratio": ratio, "ratio_by_round": rounds}


def table(results: dict[str, Any]) -> str:
    medians, lines = results["medians"], ["| | other | this | ratio |", "| --- | --- | --- | --- |"]
    for phase in (*PHASES, "stage", "processor"):
        ratio = results["ratio"].get(phase, "")
        row = (NAMES.get(phase, phase), medians["other"][phase], medians["this"][phase], ratio)
        lines.append("| {} | {:.1f} s | {:.1f} s | {} |".format(*row))
    first = {name: side[0] for name, side in results["runs"].items()}
    for key in ("rollouts", "tokens", "scored_tokens", "inner_steps", "reward_last_ten"):
        lines.append(f"| {key.replace('_', ' ')} | {first['other'][key]:.6g} | {first['this'][key]:.6g} | |")
    for domain in first["this"]["heldout"]:
        rates = ["{mean:.3f} [{low:.3f}, {high:.3f}]".format(**first[s]["heldout"][domain]) for s in ("other", "this")]
        lines.append(f"| held out, {domain} | {rates[0]} | {rates[1]} | |")
    shares = {name: [run["others"] for run in side] for name, side in results["runs"].items()}
    return "\n".join(
        [*lines, "", f"ratio of the stage by round: {results['ratio_by_round']}; other programs: {shares}"]
    )


def machine(threads: int) -> dict[str, Any]:
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"cpu": names[0] if names else platform.processor(), "cores": threads, **versions}


def commit_of(folder: Path) -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return found.stdout.strip() or folder.name


def shown(arguments: Sequence[str]) -> list[str]:
    """Without the folders of this machine."""
    return [Path(argument).name if "/" in argument else argument for argument in arguments]


if __name__ == "__main__":
    main()
