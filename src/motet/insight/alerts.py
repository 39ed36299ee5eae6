"""What is worth a second look: the alarms of RL (`rl/alarms/`), and a few rules of the other stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from motet.base.recipe import Recipe
from motet.base.statistics import ALL
from motet.insight.facts import forecast, verdicts
from motet.insight.folder import RunFolder, StageFolder, rows
from motet.insight.verdicts import guessed, mean_of
from motet.insight.wording import interval, number, percent, plural, points, short, table
from motet.rl.alarms import Alarm, alarm_of
from motet.rl.alarms.monitor import FILE, Monitor

LATE = 0.05
"""Share of a stage's rollouts whose verdicts ran into the deadline that is worth a word (ours)."""


def alerts(run: RunFolder, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    found: list[str] = []
    if run.evaluated:
        found += _evaluation(run.evaluated[-1])
    for comparison in comparisons:
        if comparison["note"] and comparison["domains"]:
            found.append(f"{comparison['from']} and {comparison['to']}: {comparison['note']}")
    for stage in run.of_kind("sft"):
        found += _sft(stage)
    for stage in run.of_kind("filter"):
        found += _filter(stage)
    for stage in (*run.of_kind("synthesize"), *run.of_kind("clean"), *run.of_kind("filter"), *run.of_kind("rl")):
        found += _unscored(stage)
    for stage in run.of_kind("rl"):
        found += _rl(run, stage) + _forecast(stage) + _unproven_rewards(stage, comparisons)
    return found


def ends(stage: StageFolder, key: str) -> tuple[float, float] | None:
    """Means of the first and of the last fifth of a metric's steps; None below ten steps."""
    values = [value for row in stage.metrics if (value := number(row.get(key))) is not None]
    if len(values) < 10:
        return None
    fifth = len(values) // 5
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def _evaluation(stage: StageFolder) -> list[str]:
    found: list[str] = []
    advice = {
        "truncated": "cut at max_tokens and counted as not passed (raise evaluation.sampling.max_tokens, or read the "
        "longest ones)",
        "malformed": "malformed (the rollout browser shows why)",
    }
    for kind, text in advice.items():
        shares = {name: mean_of(stage, name, kind) or 0.0 for name in sorted(stage.domains) if name != ALL}
        many = [f"{percent(share)} of {name}" for name, share in shares.items() if share > 0.1]
        if many:
            found.append(f"Completions after {stage.name} that are {text}: {', '.join(many)}.")
    for name in sorted(stage.domains):
        row = table(stage.domains[name])
        told, given = guessed(row), number(table(row.get("guess")).get("given"))
        if told:
            rate = interval(row.get("pass_at_1"))
            found.append(
                f"{name} after {stage.name}: pass@1 {rate} is {told}, and {percent(given)} of the completions do. Take "
                "problems whose answers differ, teach them in SFT first, or leave the domain out."
            )
    unjudged = mean_of(stage, ALL, "unjudged")
    if unjudged:
        found.append(
            f"{plural(unjudged, 'completion')} after {stage.name} could not be judged and were left out: the log "
            "says which verifier failed."
        )
    return found


def _sft(stage: StageFolder) -> list[str]:
    sources = [table(s) for s in stage.data.get("sources") or []]
    dropped = sum(number(n) or 0 for s in sources for n in table(s.get("dropped")).values())
    rows = sum(number(s.get("rows")) or 0 for s in sources)
    if dropped > 0.2 * max(1, rows):
        return [f"{stage.name} dropped {dropped:,.0f} of {plural(rows, 'conversation')}: see the data funnel."]
    return []


def _filter(stage: StageFolder) -> list[str]:
    if table(stage.filter.get("live_share_before")) == {}:
        return []
    before = number(table(stage.filter.get("live_share_before")).get(ALL))
    after = number(table(stage.filter.get("live_share_after")).get(ALL))
    if before is not None and after is not None and after <= before:
        return [
            f"{stage.name} did not raise the share of live groups ({percent(before)} before, {percent(after)} after): "
            "the band is too wide, or n too small to place a problem in it."
        ]
    return []


def _rl(run: RunFolder, stage: StageFolder) -> list[str]:
    """What the run's own alarms said; of a run that recorded none, what the same rules see in its figures."""
    recorded = raised(stage.path)
    if not recorded and stage.metrics and not (stage.path / FILE).exists():
        recorded = _looked_at_now(run, stage)
    return [alarm.sentence() for alarm in recorded]


def _forecast(stage: StageFolder) -> list[str]:
    first = forecast(stage).get("first")
    if not first or first["groups"] < 100 or abs(first["seen"] - first["live"]) <= 0.1:
        return []
    return [
        f"{stage.name}: {percent(first['seen'])} of the first {plural(first['groups'], 'group')} were live, and its "
        f"filter had forecast {percent(first['live'])}: see that both sample alike, with the same weights."
    ]


def raised(stage: Path) -> list[Alarm]:
    """The alarms that STAGE/alarms.jsonl holds, without those that a later one of the same rule repeats."""
    found: dict[str, Alarm] = {}
    file = stage / FILE
    for _, row in rows(file) if file.exists() else ():
        try:
            if row["event"] == "alarm":
                alarm = alarm_of(row["alarm"])
                found.setdefault(alarm.rule, alarm)
        except (KeyError, TypeError, ValueError):  # torn by a kill
            continue
    return list(found.values())


def _looked_at_now(run: RunFolder, stage: StageFolder) -> list[Alarm]:
    try:
        recipe = Recipe.model_validate(run.resolved)
    except ValueError:  # a recipe of another version: its thresholds are not known
        return []
    monitor = Monitor(recipe, stage.name)
    found: dict[str, Alarm] = {}
    for row in stage.metrics:
        for alarm in monitor.see(row).raised:
            found.setdefault(alarm.rule, alarm)
    return list(found.values())


def _unscored(stage: StageFolder) -> list[str]:
    """The two kinds without a score, each with what to do about it."""
    counts = verdicts(stage).get("rollouts", {})
    advice = {
        "infra_error": "a verifier failed; the log says which, quarantine.jsonl holds the items that killed it",
        "invalid_problem": "`motet check` names the problems",
    }
    found = [
        f"{stage.name}: {plural(counts[kind], 'rollout')} could not be judged ({kind}) and were masked: {text}."
        for kind, text in advice.items()
        if counts.get(kind)
    ]
    late = counts.get("timeout", 0)
    if late > LATE * sum(counts.values()):
        found.append(
            f"{stage.name}: {plural(late, 'rollout')} of {sum(counts.values()):,} ran into the deadline of their "
            "verdict (timeout): the verifier hangs, verification.deadline_seconds is too short for it, or there are "
            "more verification.workers than cores."
        )
    return found


def _unproven_rewards(stage: StageFolder, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Domains whose training reward rose by 10 points while their held-out pass rate did not."""
    mine = [c for c in comparisons if c["to"] == stage.name and c["against"] == "previous"]
    held_out: dict[str, Any] = mine[0]["domains"] if mine else {}
    found: list[str] = []
    for domain, row in held_out.items():
        reward = ends(stage, f"reward/{domain}")
        if domain == ALL or reward is None or reward[1] - reward[0] < 0.1 or row["verdict"] == "better":
            continue
        found.append(
            f"{stage.name}: the training reward of {domain} rose from {short(reward[0])} to {short(reward[1])}, but "
            f"its held-out pass@1 did not ({points(row['difference']['mean'])} points): memorised problems or a "
            "reward that can be gamed. Read its rollouts."
        )
    return found
