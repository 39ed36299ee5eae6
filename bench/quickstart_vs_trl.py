"""The quickstart's SFT and RL by motet and by TRL: the same model, data, rewards and number of steps on the same CPU.

    python bench/quickstart_vs_trl.py --repeats 3      # alternating: motet, TRL, motet, TRL, ...

Each repeat has its own seed and runs, one process after the other:

1. `motet run bench/quickstart.toml`: base model, SFT, filter, RL
2. what motet trained on, written to files: the rows of every step, as text and as tokens (not timed)
3. SFTTrainer from the same base model on the same rows in the same order, and once more with TRL's grouping by length,
   which saves padding but fills a batch with one kind of conversation
4. GRPOTrainer on the same problems, from TRL's own SFT and once more from motet's
5. all models evaluated by motet, on the same held-out problems with the same seeds (not timed)

Three scopes are timed. `train`: the loop alone (TRL: trainer.train(); motet: from the start of the first step to the
end of the last), rollouts, judging and loading of weights included. `stage`: data, loading and saving too. `process`:
the whole process with its imports; motet's includes making the problems and the filter, which TRL is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.base.recipe import Recipe, RlStage, SftStage
from motet.base.records import Group, decode_group, encode
from motet.base.statistics import compare_groups

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "quickstart.toml"
SFT, RL = "sft-1", "rl"
PACKAGES = ("motet", "trl", "torch", "transformers", "accelerate", "datasets")
MODELS = ("motet-sft", "trl-sft", "trl-sft-grouped", "motet-rl", "trl-rl", "trl-rl-from-motet-sft")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The quickstart by motet and by TRL on this CPU.")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="of the recipe, for both sides")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat; each later one has the next")
    parser.add_argument("--sft-steps", type=int, help="fewer than the recipe's, for a trial")
    parser.add_argument("--rl-steps", type=int, help="fewer than the recipe's, for a trial")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, for both sides")
    parser.add_argument("--cores", type=int, nargs="*", help="numbers of the cores to run on")
    parser.add_argument(
        "--other-cores", type=int, nargs="*", help="where TRL's two further runs go on at the same time"
    )
    parser.add_argument("--sft-variant", default="padded", help="padded, grouped or padding_free")
    parser.add_argument("--rl-variant", default="micro_batches", help="or whole_batches, static_cache, continuous")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "bench", help="emptied first")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quickstart_vs_trl.json")
    options = parser.parse_args(argv)
    overrides = [*options.overrides]
    overrides += [f"stage.{SFT}.steps={options.sft_steps}"] if options.sft_steps else []
    overrides += [f"stage.{RL}.steps={options.rl_steps}"] if options.rl_steps else []
    shutil.rmtree(options.work, ignore_errors=True)
    repeats = []
    for index in range(options.repeats):
        seed = options.seed + index
        bench = _Bench(options.work / f"seed-{seed}", [*overrides, f"seed={seed}"], options)
        repeats.append({"seed": seed, **bench.run()})
    result = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": options.threads, "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "command": " ".join(["python bench/quickstart_vs_trl.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": time.strftime("%Y-%m-%d"),
        "recipe": load(RECIPE, overrides).model_dump(mode="json", exclude={"seed"}),
        "repeats": repeats,
        "summary": summary(repeats),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write_json(options.out, result)
    print(table(result))
    print(f"\nwritten to {options.out}")
    return 0


class _Bench:
    """One repeat: what is run, where its files lie, how long it took."""

    def __init__(self, work: Path, overrides: list[str], options: argparse.Namespace) -> None:
        self._work, self._overrides, self._options = work, overrides, options
        self._motet = work / "motet"

    def run(self) -> dict[str, Any]:
        name = f"seed {self._overrides[-1].removeprefix('seed=')}"
        sized = [f"threads={self._options.threads}", *self._overrides]
        command = [sys.executable, "-m", "motet.cli", "run", str(RECIPE), *sized, "--runs", str(self._work)]
        seconds = self._call(f"{name}: motet", command)
        result = {"motet": motet_figures(self._motet) | {"process": seconds}}
        self._self("export", f"{name}: data for TRL")
        base, sft = self._motet / "base-model", self._motet / SFT / "model"
        variants = self._options.sft_variant, self._options.rl_variant

        def main_chain() -> dict[str, Any]:
            return {
                "trl-sft": self._trl("sft", "trl-sft", base, name, variants[0]),
                "trl-rl": self._trl("rl", "trl-rl", self._work / "trl-sft", name, variants[1]),
            }

        def other_chain() -> dict[str, Any]:
            return {
                "trl-sft-grouped": self._trl("sft", "trl-sft-grouped", base, name, "grouped", other=True),
                "trl-rl-from-motet-sft": self._trl("rl", "trl-rl-from-motet-sft", sft, name, variants[1], other=True),
            }

        with ThreadPoolExecutor(2 if self._options.other_cores else 1) as executor:
            for chain in [executor.submit(main_chain), executor.submit(other_chain)]:
                result |= chain.result()
        self._self("evaluate", f"{name}: evaluation")
        return {**result, "accuracy": jsonl.read_json(self._work / "accuracy.json")}

    def _trl(self, kind: str, label: str, model: Path, name: str, variant: str, other: bool = False) -> dict[str, Any]:
        seconds = self._self(f"trl-{kind}", f"{name}: {label}", str(model), label, variant, other=other)
        return {**jsonl.read_json(self._work / f"{label}.json"), "process": seconds}

    def _self(self, part: str, title: str, *extra: str, other: bool = False) -> float:
        command = [sys.executable, str(HERE / "quickstart_vs_trl.py"), "--part", part, str(self._work)]
        return self._call(title, [*command, json.dumps(self._overrides), *extra], other)

    def _call(self, title: str, command: list[str], other: bool = False) -> float:
        """Seconds of the whole process."""
        self._work.mkdir(parents=True, exist_ok=True)
        threads = str(self._options.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        cores = self._options.other_cores if other else self._options.cores
        print(title, flush=True)
        began = time.perf_counter()
        with (self._work / "log.txt").open("a") as log:
            code = subprocess.run(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            ).returncode
        if code:
            tail = (self._work / "log.txt").read_text()[-3000:]
            raise SystemExit(f"{tail}\n{title}: failed with {code}; all output is in {self._work / 'log.txt'}")
        return time.perf_counter() - began


def part(name: str, work: Path, overrides: list[str], extra: list[str]) -> None:
    """What runs in a process of its own."""
    recipe = load(RECIPE, overrides)
    if name == "export":
        export(recipe, work)
    elif name == "evaluate":
        evaluate(recipe, work)
    else:
        sys.path.insert(0, str(HERE))
        import trl_side

        model, label, variant = extra
        train: Callable[..., dict[str, Any]] = trl_side.sft if name == "trl-sft" else trl_side.rl
        data = work / ("sft.jsonl" if name == "trl-sft" else "rl.jsonl")
        figures = train(recipe, SFT if name == "trl-sft" else RL, data, Path(model), work / label, variant)
        jsonl.write_json(work / f"{label}.json", figures)


def export(recipe: Recipe, work: Path) -> None:
    """The rows of every step as motet drew them: sft.jsonl and rl.jsonl."""
    from motet.base.run import Run
    from motet.stages import sft
    from motet.stages.context import Context

    with Run(work / "motet", console=False) as run:
        context = Context(recipe, run, work / "motet" / "base-model")
        sft_stage, rl_stage = recipe.stage[SFT], recipe.stage[RL]
        assert isinstance(sft_stage, SftStage) and isinstance(rl_stage, RlStage)

        def text(tokens: tuple[int, ...]) -> str:
            return str(context.tokenizer.decode(list(tokens), skip_special_tokens=False))

        rows = []
        conversations = sft.prepare(SFT, sft_stage, context, context.base)
        for step in range(sft_stage.steps):
            for sample in conversations.draw(step):
                start = sample.loss_mask.index(True)
                texts = {"prompt": text(sample.tokens[:start]), "completion": text(sample.tokens[start:])}
                rows.append({**texts, "tokens": sample.tokens, "num_prompt": start})
        jsonl.write(work / "sft.jsonl", rows)
        problems = context.mixture(rl_stage.problems, RL)
        drawn = [p for step in range(rl_stage.steps) for p in problems.draw(step, rl_stage.prompts_per_step)]
        prompts = [context.chat.prompt(p.messages) for p in drawn]
        rows = [{"prompt": text(t), "tokens": t, "problem": encode(p)} for t, p in zip(prompts, drawn, strict=True)]
        jsonl.write(work / "rl.jsonl", rows)


def evaluate(recipe: Recipe, work: Path) -> None:
    """accuracy.json: pass@1 of every model by domain, and the paired differences motet - TRL."""
    from motet.base.run import Run
    from motet.stages import evaluate as evaluation
    from motet.stages.context import Context

    motet = work / "motet"
    places = {"motet-sft": motet / SFT / "model", "motet-rl": motet / RL / "model"}
    result: dict[str, Any] = {}
    groups: dict[str, list[Group]] = {}
    with Run(work / "evaluation", console=False) as run:
        context = Context(recipe, run, motet / "base-model")
        for name in MODELS:
            summary = evaluation.run(name, context, places.get(name, work / name))
            result[name] = {domain: row["pass_at_1"] | {"n": row["n"]} for domain, row in summary["domains"].items()}
            rows = jsonl.read(context.folder(name) / "evaluation.jsonl")
            groups[name] = [decode_group(row) for _, row in rows]
        context.close()
    result["motet - trl"] = {
        f"{ours} - {theirs}": compare_groups(groups[theirs], groups[ours])
        for ours, theirs in [("motet-sft", "trl-sft"), ("motet-rl", "trl-rl"), ("motet-rl", MODELS[-1])]
    }
    jsonl.write_json(work / "accuracy.json", result)


def motet_figures(folder: Path) -> dict[str, Any]:
    """From the run's own records: metrics.jsonl has the end of every step, manifests the seconds of every stage."""
    rows = [row for _, row in jsonl.read(folder / "metrics.jsonl")]
    figures: dict[str, Any] = {"threads": jsonl.read_json(folder / "lineage.json")["threads"]}
    for stage in (SFT, RL):
        own = [row for row in rows if row["stage"] == stage]
        manifest = jsonl.read_json(folder / stage / "manifest.json")
        figures[stage] = {
            "train": own[-1]["time"] - own[0]["time"] + own[0]["time/step"],
            "stage": manifest["seconds"],
            "steps": len(own),
            "peak_memory_bytes": manifest["peak_memory_bytes"],
        }
        if stage == SFT:
            figures[stage]["loss_mean"] = statistics.fmean(row["loss/nll"] for row in own)
        else:
            parts = ("generate", "anchor", "train", "load")
            figures[stage] |= {f"seconds_{p}": sum(row.get(f"time/{p}", 0.0) for row in own) for p in parts}
            figures[stage]["reward_by_step"] = [round(row["reward/mean"], 4) for row in own]
    figures["filter"] = {"stage": jsonl.read_json(folder / "filter" / "manifest.json")["seconds"]}
    return figures


def summary(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the repeats; a ratio is the quotient of two such means, > 1 where motet is faster."""
    seconds = {
        scope: _means([_seconds(repeat, scope) for repeat in repeats]) for scope in ("train", "stage", "process")
    }
    pairs = [("motet sft", "trl sft"), ("motet sft", "trl sft grouped")]
    pairs += [("motet rl", "trl rl"), ("motet rl", "trl rl from motet sft")]
    pairs += [("motet sft + rl", "trl sft + rl"), ("motet sft + rl", "trl sft grouped + rl")]
    ratios = {
        scope: {f"{theirs} / {ours}": row[theirs] / row[ours] for ours, theirs in pairs if ours in row}
        for scope, row in seconds.items()
    }
    rates = [{m: {d: row["mean"] for d, row in r["accuracy"][m].items()} for m in MODELS} for r in repeats]
    return {"seconds": seconds, "ratios": ratios, "accuracy": {m: _means([r[m] for r in rates]) for m in MODELS}}


def _seconds(repeat: dict[str, Any], scope: str) -> dict[str, float]:
    if scope == "process":
        row = {"motet sft + rl": repeat["motet"]["process"]}
    else:
        row = {"motet sft": repeat["motet"][SFT][scope], "motet rl": repeat["motet"][RL][scope]}
        row["motet sft + rl"] = row["motet sft"] + row["motet rl"]
        row["trl rl from motet sft"] = repeat["trl-rl-from-motet-sft"][scope]
        for name in ("trl sft", "trl sft grouped", "trl rl"):
            row[name] = repeat[name.replace(" ", "-")][scope]
    row["trl sft + rl"] = repeat["trl-sft"][scope] + repeat["trl-rl"][scope]
    row["trl sft grouped + rl"] = repeat["trl-sft-grouped"][scope] + repeat["trl-rl"][scope]
    return row


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def table(result: dict[str, Any]) -> str:
    """What a reader wants first: seconds, seconds a step, the ratio, pass@1 of the result."""
    total, machine = result["summary"], result["machine"]
    train, accuracy, repeats = total["seconds"]["train"], total["accuracy"], result["repeats"]
    steps = {SFT: repeats[0]["motet"][SFT]["steps"], RL: repeats[0]["motet"][RL]["steps"]}
    domains = [d for d in accuracy["motet-rl"] if d != "all"]
    versions = "  ".join(f"{name} {v}" for name, v in result["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {versions}",
        f"{len(repeats)} repeat(s); SFT {steps[SFT]} steps, RL {steps[RL]} steps; seconds are of training alone",
        "",
        f"{'':28}{'seconds':>9}{'s/step':>9}{'TRL/motet':>11}{'pass@1':>9}" + "".join(f"{d:>13}" for d in domains),
    ]
    ours = {"trl sft": "motet sft", "trl sft grouped": "motet sft"}
    ours |= {"trl rl": "motet rl", "trl rl from motet sft": "motet rl"}
    rows = [(model.replace("-", " "), model, SFT if "rl" not in model.split("-") else RL) for model in MODELS]
    for name, model, stage in rows:
        ratio = f"{train[name] / train[ours[name]]:11.2f}" if name in ours else f"{'':11}"
        rates = "".join(f"{accuracy[model][d]:13.3f}" for d in domains)
        lines.append(
            f"{name:28}{train[name]:9.1f}{train[name] / steps[stage]:9.3f}{ratio}{accuracy[model]['all']:9.3f}{rates}"
        )
    lines.append("")
    for scope, seconds in total["seconds"].items():
        a, b, c = (seconds[name] for name in ("motet sft + rl", "trl sft + rl", "trl sft grouped + rl"))
        lines.append(
            f"{'SFT + RL, ' + scope:28}motet {a:7.1f} s  TRL {b:7.1f} s  TRL/motet {b / a:5.2f}"
            f"  (grouped {c:7.1f} s, {c / a:5.2f})"
        )
    for repeat in repeats:
        for name, comparison in repeat["accuracy"]["motet - trl"].items():
            row = comparison["all"]["difference"]
            interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
            lines.append(f"seed {repeat['seed']}  pass@1 {name}: {row['mean']:+.3f} {interval}")
    return "\n".join(lines)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5:])
    else:
        sys.exit(main())
