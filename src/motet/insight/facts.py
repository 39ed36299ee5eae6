"""A run folder as one plain document, report.json (docs/report-json.md says what every key means)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from motet.base.records import VERDICT_KINDS
from motet.base.statistics import ALL
from motet.insight.folder import RunFolder, StageFolder
from motet.insight.outcomes import Outcome
from motet.insight.verdicts import comparisons, headline
from motet.insight.wording import listing, number, table

FORMAT = 1
NOTHING: dict[str, Any] = {
    "pass_at_1": {"mean": None, "low": None, "high": None},
    "pass_at_k": {},
    "n": 0,
    "truncated": None,
    "malformed": None,
}
"""What every row of "evaluation" has at least."""


def facts(run: RunFolder, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Everything in report.json except "alerts", "rollouts" and "missing", which the caller adds."""
    found = comparisons(run.evaluated, outcomes)
    peaks = [value for s in run.stages if (value := number(s.manifest.get("peak_memory_bytes"))) is not None]
    return {
        "format": FORMAT,
        "name": run.name,
        "status": "complete" if run.stages and all(s.status == "done" for s in run.stages) else "unfinished",
        "stages": [{"name": s.name, "kind": s.kind, "status": s.status} for s in run.stages],
        "headline": headline(run.evaluated, found),
        "evaluation": {s.name: {d: {**NOTHING, **table(row)} for d, row in s.domains.items()} for s in run.evaluated},
        "evaluation_settings": {s.name: table(s.evaluation.get("settings")) for s in run.evaluated},
        "comparisons": found,
        "data": {s.name: _data(s.data) for s in run.stages if s.data},
        "funnel": {s.name: _funnel(s.funnel) for s in run.stages if s.funnel},
        "teachers": {s.name: wrote for s in run.stages if (wrote := teachers(s))},
        "sft": {s.name: _sft(s) for s in run.of_kind("sft") if s.metrics},
        "filter": _last_of({s.name: _filter(s.filter) for s in run.stages if s.filter}),
        "rl": _last_of({s.name: _rl(s) for s in run.of_kind("rl") if s.metrics}),
        "verdicts": {s.name: counts for s in run.stages if (counts := verdicts(s))},
        "seconds": {s.name: value for s in run.stages if (value := seconds(s)) is not None},
        "phases": {s.name: phases for s in run.stages if (phases := _phases(s))},
        "tokens": {s.name: tokens for s in run.stages if (tokens := _tokens(s))},
        "peak_memory_bytes": int(max(peaks)) if peaks else None,
        "lineage": run.lineage,
    }


def verdicts(stage: StageFolder) -> dict[str, dict[str, int]]:
    """{"rollouts" (of synthesize, filter, rl) or "evaluation": {kind: how many}}, every kind of the taxonomy named."""
    total = {kind: _total(stage, f"verdict/{kind}") for kind in VERDICT_KINDS}
    sources = {
        "rollouts": table(stage.funnel.get("verdicts")) or table(stage.filter.get("verdicts")) or total,
        "evaluation": table(table(stage.domains.get(ALL)).get("verdicts")),
    }
    counts = {name: {kind: number(row.get(kind)) for kind in VERDICT_KINDS} for name, row in sources.items()}
    return {
        name: {kind: int(value or 0) for kind, value in row.items()}
        for name, row in counts.items()
        if any(value is not None for value in row.values())
    }


def seconds(stage: StageFolder) -> float | None:
    """From the manifest; of an unfinished stage the recorded steps together, where they are more."""
    given = number(stage.manifest.get("seconds"))
    if stage.status == "done" and given is not None:
        return given
    known = [value for value in (given, _total(stage, "time/step")) if value is not None]
    return max(known) if known else None


def _last_of(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last stage's numbers at the top, every stage's under "stages"; empty without a stage."""
    if not stages:
        return {}
    name = list(stages)[-1]
    return {"stage": name, **stages[name], "stages": stages}


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Without the examples, which belong on the page."""
    sources = [{k: v for k, v in table(s).items() if k != "examples"} for s in listing(data.get("sources"))]
    return {**data, "sources": sources}


def _funnel(funnel: Mapping[str, Any]) -> dict[str, Any]:
    """Without the examples, which belong on the page."""
    rules = [{k: v for k, v in table(rule).items() if k != "examples"} for rule in listing(funnel.get("rules"))]
    return {**{k: v for k, v in funnel.items() if k != "rules"}, "rules": rules}


def teachers(stage: StageFolder) -> dict[str, dict[str, Any]]:
    """Who wrote a stage's traces, and its judge of facts: {name: {kind, problems, requests, failures, input_tokens,
    output_tokens, traces, correct, kept, yield, cost, unsure, cost_per_kept, tokens_per_kept}}; None where a number
    is not known. yield: kept of the traces asked for; cost: the most that was spent, what is unsure included."""
    found = {name: _teacher(table(row), "teacher") for name, row in stage.teachers.items()}
    return {**found, **({"judge of facts": _teacher(stage.judge, "judge")} if stage.judge else {})}


def _teacher(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    known = {key: number(row.get(key)) for key in ("problems", "requests", "input_tokens", "traces", "correct", "kept",
                                                   "unsure")}  # fmt: skip
    kept, traces, cost = known["kept"], known["traces"], number(row.get("cost"))
    output = number(row.get("output_tokens")) or number(row.get("tokens"))
    spent = None if cost is None else cost + (known["unsure"] or 0.0)
    return {
        "kind": kind,
        **known,
        "failures": sum(number(count) or 0.0 for count in table(row.get("failures")).values()),
        "output_tokens": output,
        "yield": kept / traces if kept is not None and traces else None,
        "cost": spent,
        "cost_per_kept": spent / kept if spent is not None and kept else None,
        "tokens_per_kept": output / kept if output is not None and kept else None,
    }


def _sft(stage: StageFolder) -> dict[str, Any]:
    losses = [value for row in stage.metrics if (value := number(row.get("loss/nll"))) is not None]
    return {
        "steps": len(stage.metrics),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
    }


def _filter(filtered: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of all domains together, then by domain."""
    keys = ("live_share_before", "live_share_forecast", "live_share_after", "kept", "of")
    values = {key: table(filtered.get(key)) for key in keys}
    names = sorted({name for column in values.values() for name in column if name != ALL})
    return {
        **{key: values[key].get(ALL) for key in keys},
        **_live(filtered, ALL),
        **{key: filtered.get(key) for key in ("method", "n", "group_size", "rollouts", "rollouts_mean")},
        "unscored": filtered.get("unscored"),
        "bands": table(filtered.get("bands")),
        "histogram": table(filtered.get("histogram")),
        "domains": {name: {**{key: values[key].get(name) for key in keys}, **_live(filtered, name)} for name in names},
    }


def _live(filtered: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """The intervals of the live shares; None where they were not measured."""
    names = ("live_share_before_interval", "live_share_forecast_interval", "live_share_after_interval")
    return {name: table(filtered.get(name)).get(domain) for name in names}


def _rl(stage: StageFolder) -> dict[str, Any]:
    used = [value for row in stage.metrics if (value := number(row.get("inner_steps"))) is not None]
    mean = sum(used) / len(used) if used else None
    return {
        "steps": len(stage.metrics),
        "of": stage.settings.get("steps"),
        "inner_steps": int(mean) if mean is not None and mean.is_integer() else mean,
        "updates": int(sum(used)),
        "seconds": _total(stage, "time/step"),
        "reward_first": number(stage.metrics[0].get("reward/mean")),
        "reward_last": number(stage.metrics[-1].get("reward/mean")),
        "forecast": forecast(stage),
    }


FIRST_GROUPS = 200
"""As many of RL's first groups are held against the filter's forecast: later ones are of a model that has learnt."""


def forecast(stage: StageFolder) -> dict[str, Any]:
    """Of the live groups of an RL stage, {"first" or "all": {groups, live, seen}}: what its filter expected of their
    problems, and what was; empty without a filter."""
    rows = [[number(row.get(f"forecast/{key}")) for key in ("groups", "live", "seen")] for row in stage.metrics]
    known = [(g, live, seen) for g, live, seen in rows if g and live is not None and seen is not None]
    enough = next((i + 1 for i in range(len(known)) if sum(r[0] for r in known[: i + 1]) >= FIRST_GROUPS), len(known))
    found = {}
    for label, chosen in (("first", known[:enough]), ("all", known)):
        groups = sum(r[0] for r in chosen)
        if groups:
            live, seen = (sum(r[0] * r[i] for r in chosen) / groups for i in (1, 2))
            found[label] = {"groups": int(groups), "live": live, "seen": seen}
    return found


def _phases(stage: StageFolder) -> dict[str, float]:
    names = sorted({key for row in stage.metrics for key in row if key.startswith("time/") and key != "time/step"})
    phases = {name.removeprefix("time/"): _total(stage, name) or 0.0 for name in names}
    evaluation = number(stage.evaluation.get("seconds"))
    return phases if evaluation is None else {**phases, "evaluate": evaluation}


def _tokens(stage: StageFolder) -> dict[str, int]:
    """trained (SFT), sampled (RL: mean length x prompts_per_step x group_size), evaluated."""
    found: dict[str, float | None] = {"trained": _total(stage, "tokens/trained")}
    prompts, group = number(stage.settings.get("prompts_per_step")), number(stage.settings.get("group_size"))
    lengths = _total(stage, "rollout/tokens_mean")
    if prompts and group and lengths is not None:
        found["sampled"] = lengths * prompts * group
    everything = table(stage.domains.get(ALL))
    mean, rollouts = number(everything.get("tokens_mean")), number(everything.get("rollouts"))
    if mean is not None and rollouts:
        found["evaluated"] = mean * rollouts
    return {name: round(value) for name, value in found.items() if value is not None}


def _total(stage: StageFolder, key: str) -> float | None:
    values = [value for row in stage.metrics if (value := number(row.get(key))) is not None]
    return sum(values) if values else None
