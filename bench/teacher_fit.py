"""Does the fit choose the teacher that the probe chooses? `motet experiment teachers` on pairs whose answer is clear.

    .venv/bin/python bench/teacher_fit.py                    # ten seeds of each pair on a tiny model
    .venv/bin/python bench/teacher_fit.py --smollm2 models   # three teachers of SmolLM2-135M-Instruct (`make models`)

Both add to bench/results/teacher_fit.json. A problem is a dial with eight positions, "5 + ~ - + + ~ ?": from 5 one up,
mirrored, one down, ...; where does it end? All traces are correct.

    close   the student has read mostly steps; teachers: steps, and the same steps in a notation that it hardly knows
    worked  the student has read mostly solutions without a step; teachers: steps, and solutions without a step.
            Steps teach more and surprise more: plain likelihood takes the other teacher
    few     as "worked" with a dial of three positions and a student that knows the steps well: a guess among few
            answers looks like a choice of words, and the fit is not expected to tell

SmolLM2's problems are chains of three or four one-digit sums, its teachers

    totals  running totals
    again   no step, but the problem said once more: quite what the model expects
    glib    no step, and a sentence that has nothing to do with the problem
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quickstart import machine

from motet.base import jsonl
from motet.base.load_recipe import load
from motet.base.recipe import Recipe
from motet.base.records import Problem
from motet.experiments import teachers
from motet.tasks import load_problem_set

ROOT = Path(__file__).parent.parent
RUNS = Path("runs")
"""From ROOT, where it is run: the order in which a file's rows are drawn depends on its path as it is given."""
OUT = ROOT / "bench" / "results" / "teacher_fit.json"
PROBLEMS, READ, MOVES = 2200, 1500, 6
"""Of the training problems the first READ are the student's, the next 200 the teachers'."""
LETTERS = "qwertyui"
GLIB = "It is easy to see where the dial comes to rest, so here is the answer."
STEPS = 90
STATISTICS = ("fit", "rsr", "surprisal", "answer")


class Pair(NamedTuple):
    better: str
    other: str
    shares: dict[str, float]
    """Of the styles that the student has read."""
    steps: int
    positions: int = 8


PAIRS = {
    "close": Pair("steps", "mirror", {"steps": 0.85, "mirror": 0.1, "glib": 0.05}, 120),
    "worked": Pair("steps", "glib", {"glib": 0.87, "steps": 0.13}, 200),
    "few": Pair("steps", "glib", {"glib": 0.6, "steps": 0.4}, 250, positions=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The fit against the probe.")
    parser.add_argument("--pairs", nargs="*", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(1, 11)))
    parser.add_argument("--smollm2", type=Path, metavar="MODELS", help="folder that `make models` filled")
    real = parser.add_argument_group("of --smollm2")
    real.add_argument("--teachers", nargs="*", choices=list(WRITERS), default=list(WRITERS), metavar="NAME",
                      help=f"the first is the one that ought to be better [{' '.join(WRITERS)}]")  # fmt: skip
    real.add_argument("--traces", type=int, default=256, help="of each teacher [256]")
    real.add_argument("--heldout", type=int, default=240, help="problems on which probes are evaluated [240]")
    real.add_argument("--probe-steps", type=int, default=96, help="of eight traces [96]")
    real.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="[cpu]")
    real.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products [float32]")
    real.add_argument("--dry", action="store_true", help="whether it runs at all: 8 traces, 4 problems, 1 step")
    real.add_argument("--threads", type=int, default=2, help="for the record [2]")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    out, models = options.out.resolve(), options.smollm2 and options.smollm2.resolve()
    os.chdir(ROOT)
    if models is not None:
        if options.dry:
            options.traces, options.heldout, options.probe_steps = 8, 4, 1
        kept(out, "smollm2", {"machine": machine(options.threads), **smollm2(models, options)})
        return
    for name in options.pairs:
        rows: dict[str, Any] = {}
        for seed in options.seeds:
            rows[str(seed)] = one(name, PAIRS[name], seed)
            kept(out, name, {"about": about(PAIRS[name]), "machine": machine(1), **counted(rows), "seeds": rows})
            print(name, seed, json.dumps(rows[str(seed)]), flush=True)
        print(name, counted(rows), flush=True)


def kept(out: Path, name: str, value: dict[str, Any]) -> None:
    """Puts it into the file beside what is there."""
    jsonl.write_json(out, {**(jsonl.read_json(out) if out.exists() else {}), name: value})


def about(pair: Pair) -> dict[str, Any]:
    return {"better": pair.better, "other": pair.other, "student_read": pair.shares, "student_steps": pair.steps,
            "probe_steps": STEPS, "positions": pair.positions}  # fmt: skip


def one(name: str, pair: Pair, seed: int) -> dict[str, Any]:
    """One student, its two teachers read and probed."""
    began = time.perf_counter()
    run = RUNS / f"teacher-fit-{name}-{seed}"
    data = RUNS / "teacher-fit-data" / f"{name}-{seed}"
    recipe = prepared(data, run.name, pair, seed)
    files = {style: data / f"{style}-traces.jsonl" for style in (pair.better, pair.other)}
    report = teachers.run(recipe, RUNS, files=files, student="student", probe="like", steps=STEPS, own=1, console=False)
    shutil.rmtree(run)
    return {**figures(report, (pair.better, pair.other)), "seconds": round(time.perf_counter() - began, 1)}


def prepared(data: Path, name: str, pair: Pair, seed: int) -> Recipe:
    """Writes problems and traces, and returns the recipe that reads them."""
    shutil.rmtree(data, ignore_errors=True)
    problems = dials(pair.positions, seed)
    jsonl.write(data / "dial.jsonl", problems)
    styles = {style: write(pair.positions) for style, write in STYLES.items()}
    settings = [f"name={name}", f"seed={seed}", f"problems.dial.path={json.dumps(str(data / 'dial.jsonl'))}"]
    recipe = load(ROOT / "bench" / "teacher_fit.toml", settings)
    train = load_problem_set("dial", recipe.problems["dial"], seed).train
    for style, write in styles.items():
        jsonl.write(data / f"{style}.jsonl", conversations(train[:READ], write))
        jsonl.write(data / f"{style}-traces.jsonl", conversations(train[READ : READ + 200], write))
    mixture = [f"{{path={json.dumps(str(data / f'{style}.jsonl'))}, weight={share}}}"
               for style, share in pair.shares.items()]  # fmt: skip
    settings += [f"stage.student.steps={pair.steps}", f"stage.student.data=[{', '.join(mixture)}]"]
    return load(ROOT / "bench" / "teacher_fit.toml", settings)


def figures(report: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Of each teacher what each statistic says, and which one it would choose; which one the probe chose. Differences
    are the first teacher's to each other."""
    rows = {}
    for name in names:
        row = report["teachers"][name]
        keys = ("fit", "rsr", "surprisal", "surprisal_p95", "improbable", "rank", "top1", "top10", "answer", "length",
                "step_distance")  # fmt: skip
        rows[name] = {key: row["measures"][key] and round(row["measures"][key]["mean"], 4) for key in keys}
        rows[name] |= {"probe": row["probe"]["pass_at_1"]["mean"], "against_untouched": row["probe"]["student"]}
    first, *others = names
    probe, fit = report["teachers"][first]["probe"]["others"], report["teachers"][first]["fit_differences"]
    alone = others[0] if len(others) == 1 else None
    return {
        "untouched": report["student"]["pass_at_1"]["mean"],
        "teachers": rows,
        "probe_difference": probe[alone] if alone else {name: probe[name] for name in others},
        "fit_difference": fit[alone] if alone else {name: fit[name] for name in others},
        "chosen": {"probe": report["ranking"]["probe"][0], **{key: lowest(rows, key) for key in STATISTICS}},
        "advice": report["advice"],
    }


def lowest(rows: Mapping[str, dict[str, Any]], key: str) -> str:
    return min(rows, key=lambda name: rows[name][key])


def counted(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """In how many seeds the probe told the teachers apart, and each statistic chose as the probe did."""
    found = list(rows.values())
    told = [row for row in found if row["probe_difference"]["low"] > 0 or row["probe_difference"]["high"] < 0]
    same = {key: sum(row["chosen"][key] == row["chosen"]["probe"] for row in found) for key in STATISTICS}
    return {"of": len(found), "probe_significant": len(told), "as_probe": same}


# ---- the dial


def dials(positions: int, seed: int) -> list[dict[str, Any]]:
    """Rows of [problems.NAME]: prompt, answer, and reasoning in all styles by turns: the tiny model's tokenizer is made
    of them."""
    stream, rows, seen = random.Random(seed), list[dict[str, Any]](), set[str]()
    while len(rows) < PROBLEMS:
        start, moves = stream.randrange(positions), "".join(stream.choice("+-~") for _ in range(MOVES))
        prompt = f"{start} {' '.join(moves)} ?"
        if prompt not in seen:
            seen.add(prompt)
            write = list(STYLES.values())[len(rows) % len(STYLES)](positions)
            rows.append({"prompt": prompt, "answer": str(moved(prompt, positions)[-1][1]), "reasoning": write(prompt)})
        elif len(seen) == positions * 3**MOVES:
            break
    return rows


def moved(prompt: str, positions: int) -> list[tuple[str, int]]:
    """Each move, and where the dial stands after it: "5 + ~ ?" of eight is (+, 6), (~, 2)."""
    first, *moves, _ = prompt.split()
    now, found = int(first), list[tuple[str, int]]()
    for move in moves:
        now = {"+": now + 1, "-": now - 1, "~": -now}[move] % positions
        found.append((move, now))
    return found


Style = Callable[[str], str]


def steps(positions: int) -> Style:
    """ "5 + ~ ?": "+6 ~2" """
    return lambda prompt: " ".join(f"{move}{place}" for move, place in moved(prompt, positions))


def mirror(positions: int) -> Style:
    """ "5 + ~ ?": "y;u/+;e/~": places as letters, each with the move that led there after it."""

    def write(prompt: str) -> str:
        first = LETTERS[int(prompt.split()[0])]
        return ";".join([first, *(f"{LETTERS[place]}/{move}" for move, place in moved(prompt, positions))])

    return write


STYLES: dict[str, Callable[[int], Style]] = {"steps": steps, "mirror": mirror, "glib": lambda _: lambda _: GLIB}


def conversations(problems: Sequence[Problem], write: Style) -> list[dict[str, Any]]:
    return [{"messages": [*p.messages, {"role": "assistant", "reasoning_content": write(p.messages[-1]["content"]),
                                        "content": p.metadata["solution"]["answer"]}]} for p in problems]  # fmt: skip


# ---- a real model


WRITERS: dict[str, Callable[[Problem], str]] = {
    "totals": lambda problem: str(problem.metadata["solution"]["reasoning"]),
    "again": lambda problem: str(problem.messages[-1]["content"]),
    "glib": lambda problem: "It is easy to see what this comes to.",
}


def smollm2(models: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Teachers of chains of sums for the model as it was published; probes and evaluation are greedy, in one batch."""
    began = time.perf_counter()
    names, held = options.teachers, options.heldout
    name = f"teacher-fit-smollm2-{'-'.join(names)}-{options.traces}-{held}-{options.probe_steps}-{options.dtype}"
    data = RUNS / "teacher-fit-data" / name
    settings = [
        f"name={name}", f"model.path={json.dumps(str(models / 'SmolLM2-135M-Instruct'))}",
        f"model.device={options.device}", f"model.dtype={options.dtype}", "stages=['base']",
        "stage.sft-1.batch_size=8", f"evaluation.sets=[{{problems='sums', count={held}}}]", "evaluation.samples=1",
        "evaluation.sampling={temperature=0, max_tokens=96}", f"engine.batch_size={min(held, 240)}",
        "problems.sums.args={dataset='chain_sum', min_terms=3, max_terms=4, min_digits=1, max_digits=1}",
        f"problems.sums.count={2 * (options.traces + held) + 100}", "problems.sums.heldout=0.4",
        "problems.school.count=1", "problems.school.heldout=0.0", "problems.letters.count=20",
        "problems.wording.count=20", f"problems.school.args.folder={json.dumps(str(models / 'packages'))}",
    ]  # fmt: skip
    recipe = load(ROOT / "recipes" / "smollm2.toml", settings)
    chosen = load_problem_set("sums", recipe.problems["sums"], recipe.seed).train[: options.traces]
    solved = {p.messages[-1]["content"]: p for p in chosen}
    for style in names:
        write = WRITERS[style]
        jsonl.write(data / f"{style}.jsonl", conversations(chosen, lambda prompt, w=write: w(solved[prompt])))
    files = {style: data / f"{style}.jsonl" for style in names}
    report = teachers.run(recipe, RUNS, files=files, student="base", probe="sft-1", steps=options.probe_steps, own=0)
    return {"seconds": round(time.perf_counter() - began, 1), "device": card(options.device), "dtype": options.dtype,
            "steps": options.probe_steps, "batch_size": 8, "problems": report["problems"], "heldout": report["heldout"],
            **figures(report, names)}  # fmt: skip


def card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device != "cpu" else "cpu"


if __name__ == "__main__":
    main()
