"""Evaluation on held-out problems: k completions each, pass@k and avg@k with bootstrap intervals, by domain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import naming
from motet.base.recipe import Sampling
from motet.base.records import Group, Problem, encode
from motet.base.run import log
from motet.base.statistics import evaluate_groups
from motet.stages.context import Context
from motet.verify.figures import instruction_figures
from motet.verify.guessing import guess_figures, no_better


def run(name: str, context: Context, model: Path | str) -> dict[str, Any]:
    """Writes evaluation.jsonl (every completion) and evaluation.json (the figures) into the stage's folder."""
    folder, config = context.folder(name), context.recipe.evaluation
    done = folder / "evaluation.json"
    if done.exists():
        return jsonl.read_json(done)
    began = time.perf_counter()
    chosen = [item for item in sets(context) if item[1]]
    if not chosen:
        log.info("%s: nothing is held out, so nothing is evaluated", name)
        return {}
    sampler = context.sampler(model)
    groups: list[Group] = []
    settings = []
    for label, problems, samples, sampling in chosen:
        file = folder / f"evaluation-{label}.jsonl"
        settings.append({"set": label, "problems": len(problems), "samples": samples, **sampling.model_dump()})
        # the same stream for every stage: paired comparisons share their random numbers
        stream = (context.recipe.seed, "evaluation", label)
        groups += sampler.groups(problems, samples, sampling, stream, file, f"{name} evaluation {label}")
    sampler.engine.close()
    jsonl.write(folder / "evaluation.jsonl", (encode(group) for group in groups))
    summary = evaluate_groups(groups, config.bootstrap, context.recipe.seed)
    for domain, figures in instruction_figures(
        groups, context.recipe.chat.think, context.recipe.chat.open_think
    ).items():
        summary["domains"][domain]["instructions"] = figures
    for domain, guess in guess_figures(groups).items():
        row = summary["domains"][domain]
        row["guess"] = {**guess, "no_better": no_better(row["pass_at_1"]["low"], guess["share"])}
    summary["settings"] = settings
    summary["seconds"] = time.perf_counter() - began
    jsonl.write_json(done, summary)
    for part in settings:
        (folder / f"evaluation-{part['set']}.jsonl").unlink(missing_ok=True)
    for domain, row in summary["domains"].items():
        mean, low, high = (row["pass_at_1"][key] for key in ("mean", "low", "high"))
        rate = "not judged" if mean is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        shares = f"truncated {row['truncated']:.2f}  malformed {row['malformed']:.2f}"
        log.info("%s %-12s pass@1 %s  n %d  %s", name, domain, rate, row["n"], shares)
        guess = row.get("guess", {})
        if guess.get("no_better"):
            log.info("%s %-12s no better than always answering %s: %.3f", name, domain, guess["answer"], guess["share"])
        if "instructions" in row:
            four = [
                row["instructions"][level][how] for level in ("prompts", "instructions") for how in ("strict", "loose")
            ]
            log.info(
                "%s %-12s prompts strict %.3f loose %.3f  instructions strict %.3f loose %.3f", name, domain, *four
            )
    return summary


def sets(context: Context) -> list[tuple[str, Sequence[Problem], int, Sampling]]:
    """(label, problems, k, sampling) of everything that the recipe wants evaluated."""
    config = context.recipe.evaluation
    chosen: list[tuple[str, Sequence[Problem], int, Sampling]] = []
    if not config.sets:
        for name in context.recipe.problems:
            held = context.split(name).heldout
            if held:
                chosen.append((name, held, config.samples, config.sampling))
    for place, item in enumerate(config.sets):
        if item.problems is not None:
            label, samples, sampling = item.problems, config.samples, config.sampling
            problems: Sequence[Problem] = context.split(item.problems).heldout[: item.count]
        else:
            from motet.tasks.suites import load_suite

            assert item.suite is not None
            with naming(f"evaluation.sets[{place}]"):
                suite = load_suite(item.suite, item.path, item.count)
            label, problems, samples, sampling = item.suite, suite.problems, suite.samples, suite.sampling
            for reason, count in suite.dropped.items():
                log.warning("suite %s: %d problems cannot be judged and are left out: %s", label, count, reason)
        if item.max_tokens is not None:
            sampling = sampling.model_copy(update={"max_tokens": item.max_tokens})
        chosen.append((label, problems, item.samples or samples, sampling))
    return chosen
