"""Evaluation on held-out problems: k completions each, pass@k and avg@k with bootstrap intervals, by domain."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.recipe import Sampling
from motet.base.records import Group, Problem, decode_group, encode
from motet.base.run import log
from motet.base.statistics import evaluate_groups
from motet.stages.context import Context


def run(name: str, context: Context, model: Path | str) -> dict[str, Any]:
    """Writes evaluation.jsonl (every completion) and evaluation.json (the figures) into the stage's folder."""
    folder, config = context.folder(name), context.recipe.evaluation
    done = folder / "evaluation.json"
    if done.exists():
        return jsonl.read_json(done)
    began = time.perf_counter()
    sampler = context.sampler(model)
    groups: list[Group] = []
    settings = []
    for label, problems, samples, sampling in sets(context):
        file = folder / f"evaluation-{label}.jsonl"
        settings.append({"set": label, "problems": len(problems), "samples": samples, **sampling.model_dump()})
        # the same stream for every stage: paired comparisons share their random numbers
        stream = (context.recipe.seed, "evaluation", label)
        if file.exists():
            groups += [decode_group(row) for _, row in jsonl.read(file)]
            continue
        groups += sampler.groups(problems, samples, sampling, stream, file, f"{name} evaluation {label}")
    sampler.engine.close()
    jsonl.write(folder / "evaluation.jsonl", (encode(group) for group in groups))
    for label, *_ in sets(context):
        (folder / f"evaluation-{label}.jsonl").unlink(missing_ok=True)
    summary = evaluate_groups(groups, config.bootstrap, context.recipe.seed)
    summary["settings"] = settings
    summary["seconds"] = time.perf_counter() - began
    jsonl.write_json(done, summary)
    for domain, row in summary["domains"].items():
        interval = row["pass_at_1"]
        log.info("%s %-12s pass@1 %.3f [%.3f, %.3f]  n %d  truncated %.2f  malformed %.2f", name, domain,
                 interval["mean"], interval["low"], interval["high"], row["n"], row["truncated"], row["malformed"])  # fmt: skip
    return summary


def sets(context: Context) -> list[tuple[str, list[Problem], int, Sampling]]:
    """(label, problems, k, sampling) of everything that the recipe wants evaluated."""
    config = context.recipe.evaluation
    chosen: list[tuple[str, list[Problem], int, Sampling]] = []
    if not config.sets:
        for name in context.recipe.problems:
            held = list(context.split(name).heldout)
            if held:
                chosen.append((name, held, config.samples, config.sampling))
    for item in config.sets:
        if item.problems is not None:
            problems = list(context.split(item.problems).heldout)
            chosen.append((item.problems, problems[: item.count], config.samples, config.sampling))
        else:
            from motet.tasks.suites import load_suite

            assert item.suite is not None
            suite = load_suite(item.suite, item.path, item.count)
            chosen.append((item.suite, list(suite.problems), suite.samples, suite.sampling))
    return chosen
