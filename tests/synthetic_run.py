"""Writes a run folder as the stages write it, from a seed: three domains, two SFT stages, a filter, RL.

Numbers that tests rely on are in HELD_OUT and FUNNEL; everything else is drawn, with the shapes of a real run.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.records import Completion, Group, Problem, Rollout, Stop, Verdict, VerdictKind, encode
from motet.base.statistics import evaluate_groups

HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} <think>"
DOMAINS = ("code", "instruction", "math")
STAGES = ("base", "sft-1", "synthesize", "sft-2", "filter", "rl")
KINDS = {"base": "evaluate", "sft-1": "sft", "synthesize": "synthesize", "sft-2": "sft", "filter": "filter", "rl": "rl"}
HELD_OUT = {  # chance of a pass by stage and domain: instruction falls in RL, code hardly moves
    "base": {"math": 0.02, "code": 0.0, "instruction": 0.1},
    "sft-1": {"math": 0.25, "code": 0.2, "instruction": 0.75},
    "sft-2": {"math": 0.45, "code": 0.3, "instruction": 0.8},
    "rl": {"math": 0.75, "code": 0.33, "instruction": 0.45},
}
FUNNEL = [("correct/incorrect", 310), ("correct/malformed", 42), ("min_reasoning_tokens", 7), ("max_repetition", 28)]
RECIPE = """extends = "stable"
name = "synthetic"
seed = 7
stages = ["base", "sft-1", "synthesize", "sft-2", "filter", "rl"]

[model]
tiny = { layers = 4, width = 128 }   # a <tiny> model

[stage.rl]
kind = "rl"
steps = 24
problems = [{ stage = "filter" }]
"""


TEACHERS = {
    "big": {"problems": 170, "traces": 680, "tokens": 90_000, "correct": 510, "kept": 408, "requests": 190,
            "failures": {"status 429": 18, "timeout": 2}, "input_tokens": 20_400, "output_tokens": 91_800,
            "cost": 1.5, "unsure": 0.132},
    "own": {"problems": 86, "traces": 344, "tokens": 41_000, "correct": 300, "kept": 205},
}  # fmt: skip


def write_run(folder: Path, problems: int = 24, seed: int = 1, extra_text: str = "") -> Path:
    """A finished run; `extra_text` is put into prompts, completions, details and examples."""
    random_ = random.Random(seed)
    (folder).mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    jsonl.write_json(folder / "resolved.json", _resolved())
    jsonl.write_json(folder / "lineage.json", _lineage())
    metrics = _sft("sft-1", 2.6, random_) + _sft("sft-2", 1.1, random_) + _rl(random_)
    jsonl.write(folder / "metrics.jsonl", metrics)
    for stage in HELD_OUT:
        groups = [_group(stage, domain, i, random_, extra_text) for domain in DOMAINS for i in range(problems)]
        jsonl.write(folder / stage / "evaluation.jsonl", map(encode, groups))
        settings = {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 256, "sets": list(DOMAINS)}
        summary = {**evaluate_groups(groups, 500, 1), "settings": settings, "seconds": 11.5}
        jsonl.write_json(folder / stage / "evaluation.json", summary)
    for number, stage in enumerate(STAGES):
        jsonl.write_json(folder / stage / "manifest.json", _manifest(stage, number))
    for stage, rows in (("sft-1", 1800), ("sft-2", 613)):
        jsonl.write_json(folder / stage / "data.json", _data(rows))
    jsonl.write_json(folder / "synthesize" / "funnel.json", _funnel(extra_text))
    jsonl.write_json(folder / "synthesize" / "teachers.json", TEACHERS)
    jsonl.write_json(folder / "filter" / "filter.json", _filter())
    for step in range(1, 25):
        groups = [_group("sft-2", domain, 100 + step, random_, extra_text, 8, step) for domain in DOMAINS]
        jsonl.write(folder / "rl" / "rollouts" / f"step-{step:05d}.jsonl", map(encode, groups))
    return folder


def _resolved() -> dict[str, Any]:
    stage: dict[str, Any] = {name: {"kind": kind} for name, kind in KINDS.items()}
    stage["rl"] |= {"steps": 24, "prompts_per_step": 16, "group_size": 8}
    stage["sft-1"]["steps"] = stage["sft-2"]["steps"] = 40
    return {"name": "synthetic", "seed": 7, "stages": list(STAGES), "stage": stage, "threads": 2}


def _lineage() -> dict[str, Any]:
    return {
        "motet": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "platform": "Linux-6.18-x86_64",
        "device": "cpu",
        "command": "motet run recipes/synthetic.toml seed=7",
        "started": "2026-11-20T10:00:00+00:00",
        "threads": 2,
        "seed": 7,
    }


def _manifest(stage: str, number: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "kind": KINDS[stage],
        "status": "done",
        "hash": f"{number:02d}c4a9e17b60d352",
        "inputs": {"recipe": "51be9a02", "weights": f"{number:02d}77f1aa"},
        "seconds": 20.0 + 35.0 * number,
        "peak_memory_bytes": 900_000_000 + 100_000_000 * number,
        "finished": f"2026-11-20T10:{5 + number:02d}:00+00:00",
        "outputs": ["model"] if KINDS[stage] in ("sft", "rl") else [],
        "summary": {},
    }


def _data(rows: int) -> dict[str, Any]:
    return {
        "sources": [
            {"name": "addition", "rows": rows, "weight": 3.0, "dropped": {"longer than context": 12}},
            {"name": "synthesize", "rows": 400, "weight": 1.0, "dropped": {}},
        ],
        "conversations": rows + 388,
        "tokens_mean": 71.3,
        "context": 256,
    }


def _funnel(extra: str) -> dict[str, Any]:
    left, rules = 1024, []
    for rule, dropped in FUNNEL:
        left -= dropped
        example = {"prompt": f"12 + 7 = ? {extra}", "text": f"<think>12 + 7 is 20</think>20 {extra}"}
        example["detail"] = f"20 is not 19 {extra}"
        rules.append({"rule": rule, "dropped": dropped, "left": left, "examples": [example]})
    domains = {"math": {"asked": 512, "kept": 402}, "code": {"asked": 256, "kept": 98}}
    domains["instruction"] = {"asked": 256, "kept": left - 500}
    return {"asked": 1024, "problems": 256, "rules": rules, "kept": left, "domains": domains}


def _filter() -> dict[str, Any]:
    band = {"alpha": 0.2, "beta": 0.8, "low": 1, "high": 4}
    narrow = {"alpha": 0.2, "beta": 0.4, "low": 1, "high": 2}
    return {
        "n": 5,
        "bands": {"math": band, "code": band, "instruction": narrow},
        "histogram": {
            "math": [30, 22, 18, 14, 21, 61],
            "code": [88, 20, 9, 8, 5, 12],
            "instruction": [9, 8, 14, 22, 40, 99],
        },
        "kept": {"math": 75, "code": 42, "instruction": 22, "all": 139},
        "of": {"math": 166, "code": 142, "instruction": 192, "all": 500},
        "unscored": 3,
        "live_share_before": {"math": 0.45, "code": 0.3, "instruction": 0.44, "all": 0.4},
        "live_share_after": {"math": 0.84, "code": 0.71, "instruction": 0.77, "all": 0.79},
        "live_share_before_interval": {
            "all": {"mean": 0.4, "low": 0.36, "high": 0.44},
            "math": {"mean": 0.45, "low": 0.37, "high": 0.53},
        },
        "live_share_after_interval": {"all": {"mean": 0.79, "low": 0.72, "high": 0.85}},
    }


def _sft(stage: str, start: float, random_: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "time": 1e9 + step,
            "stage": stage,
            "step": step,
            "loss/nll": 0.2 + start * math.exp(-step / 9) + random_.gauss(0, 0.03),
            "optim/learning_rate": 1e-3 * min(1, step / 10),
            "optim/grad_norm": 1.5 + random_.random(),
            "tokens/trained": 1000 + step,
            "tokens/second": 5200.0,
            "time/step": 0.5,
        }
        for step in range(1, 41)
    ]


def _rl(random_: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 25):
        rise = 1 - math.exp(-step / 10)
        passes = {"math": 0.45 + 0.35 * rise, "code": 0.3 + 0.1 * rise, "instruction": 0.4 + 0.5 * rise}
        passes = {d: min(1.0, max(0.0, p + random_.gauss(0, 0.04))) for d, p in passes.items()}
        row: dict[str, Any] = {"time": 1e9 + step, "stage": "rl", "step": step, "reward/mean": sum(passes.values()) / 3}
        for domain, value in passes.items():
            row |= {f"reward/{domain}": value, f"pass/{domain}": value}
            row[f"groups/live_share/{domain}"] = 0.8 - 0.4 * rise * value
        for inner in (1, 2, 3, 4):
            row[f"policy/ratio_mean/{inner}"] = 1.0 + 0.001 * inner
            row[f"policy/ratio_std/{inner}"] = (inner - 1) * 0.02 + random_.random() * 0.01 * (inner > 1)
        row |= {
            "groups/live_share": 0.79 - 0.3 * rise,
            "groups/all_correct_share": 0.1 + 0.25 * rise,
            "groups/all_wrong_share": 0.11 + 0.05 * rise,
            "rollout/truncated_share": 0.05 - 0.03 * rise,
            "rollout/malformed_share": 0.04 * (1 - rise),
            "rollout/unjudged": 0,
            "rollout/tokens_mean": 60 + 20 * rise + random_.gauss(0, 2),
            "rollout/tokens_max": 256,
            "policy/entropy": 0.6 - 0.35 * rise + random_.gauss(0, 0.01),
            "policy/kl_to_anchor": 0.002 + 0.001 * random_.random(),
            "policy/clip_low_share": 0.004 + 0.002 * random_.random(),
            "policy/clip_high_share": 0.009 + 0.004 * random_.random(),
            "engine/logprob_diff_mean": 2e-6 * (1 + random_.random()),
            "engine/logprob_diff_max": 4e-4 * (1 + random_.random()),
            "optim/grad_norm": 0.4 + 0.1 * random_.random(),
            "optim/learning_rate": 1e-5,
            "inner_steps": 4,
            "time/generate": 3.5,
            "time/judge": 0.4,
            "time/train": 2.1,
            "time/anchor": 0.5,
            "time/load": 0.1,
            "time/step": 6.75,
        }
        rows.append(row)
    return rows


def _group(
    stage: str, domain: str, number: int, random_: random.Random, extra: str, rollouts: int = 4, version: int = 0
) -> Group:
    rate = HELD_OUT[stage][domain]
    chance = min(1.0, max(0.0, random.Random(f"{domain}{number}").gauss(0, 0.2) + rate)) if rate else 0.0
    prompt = f"{domain} problem {number}: what is {number} + {number + 5}? Put the answer into a box. {extra}"
    problem = Problem(f"{domain}-{number}", ({"role": "user", "content": prompt},), "math", str(2 * number + 5), domain)
    return Group(problem, tuple(_rollout(problem, chance, random_, extra, version) for _ in range(rollouts)))


def _rollout(problem: Problem, chance: float, random_: random.Random, extra: str, version: int) -> Rollout:
    wrong: tuple[VerdictKind, ...] = ("incorrect", "incorrect", "incorrect", "truncated", "malformed", "no_answer")
    kind: VerdictKind = "correct" if random_.random() < chance else random_.choice(wrong)
    answer = str(problem.reference) if kind == "correct" else str(random_.randint(1, 99))
    work = "\n".join(f"Step {i}: add the digits and carry {i % 2}." for i in range(1, random_.randint(2, 9)))
    text = f"<think>\n{work}\n</think>\nThe answer is \\boxed{{{answer}}}. {extra}"
    details = {"correct": "", "incorrect": f"{answer} is not {problem.reference}", "truncated": "cut at 256 tokens"}
    tokens = tuple(range(len(text) // 4)) if kind != "truncated" else tuple(range(256))
    logprobs = tuple(-random_.random() for _ in tokens)
    detail = details.get(kind, f"no single box ({kind})") + extra
    verdict = Verdict(kind, float(kind == "correct"), answer, detail)
    stop: Stop = "length" if kind == "truncated" else "end"
    return Rollout((1, 2, 3), Completion(text, tokens, logprobs, stop, version), verdict)
