"""`motet report RUN`: report.json, one self-contained report.html and a terminal summary from a run folder.

It reads files and changes nothing but its own two. An unfinished or killed run is reported as far as it went, and what
is missing is said.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.records import VERDICT_KINDS
from motet.insight import browse, page, panels, verdicts, wording
from motet.insight.alerts import alerts
from motet.insight.compare import compare_runs
from motet.insight.facts import facts
from motet.insight.folder import RunFolder, StageFolder, read_run
from motet.insight.outcomes import evaluation_outcomes, rl_outcomes
from motet.insight.terminal import terminal_summary
from motet.insight.wording import listing, number, table

__all__ = ["compare_runs", "terminal_summary", "write_report"]

HERE = Path(__file__).parent
RECIPE_CHARACTERS = 40_000
EXAMPLE_CHARACTERS = 1_200
EXAMPLES = 3
"""Examples shown of what a data rule dropped."""


def write_report(folder: Path) -> dict[str, Any]:
    """Writes FOLDER/report.json and FOLDER/report.html and returns the former. UserError where it is no run folder."""
    run = read_run(folder)
    outcomes = {stage.name: evaluation_outcomes(stage, run.missing) for stage in run.evaluated}
    trained = [stage for stage in run.of_kind("rl") if stage.metrics or stage.manifest]
    choices = browse.choose(outcomes, rl_outcomes(trained[-1], run.missing) if trained else [])
    report = facts(run, outcomes)
    report |= {"alerts": alerts(run, report["comparisons"]), "rollouts": browse.named(choices), "missing": run.missing}
    shown = {heading: browse.entries(chosen) for heading, chosen in choices.items()}
    jsonl.write_json(folder / "report.json", report)
    temporary = folder / "report.html.tmp"
    temporary.write_text(_page(run, report, shown), encoding="utf-8", errors="replace")
    temporary.replace(folder / "report.html")
    return report


def _page(run: RunFolder, report: Mapping[str, Any], shown: Mapping[str, list[browse.Entry]]) -> str:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    # a key that a killed run did not write reads as a dash, so an undefined value must pass through the filters
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=ChainableUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = (HERE / "report.js").read_text(encoding="utf-8")
    for form in (wording.percent, wording.interval, wording.points, wording.count, wording.duration, wording.size,
                 wording.short, wording.plural):  # fmt: skip
        environment.filters[form.__name__] = _typeset(form)
    environment.filters |= {
        "typeset": wording.typeset,
        "capped": wording.capped,
        "domain_title": verdicts.title,
        "guessed": verdicts.guessed,
    }
    styles = panels.domain_styles(run)
    return environment.get_template("report.html.j2").render(
        report=report,
        run=run,
        styles=styles,
        script=script,
        script_hash="sha256-" + b64encode(sha256(script.encode()).digest()).decode(),
        kinds=VERDICT_KINDS,
        domains=verdicts.order({name: None for row in report["evaluation"].values() for name in row}),
        verdict=[(c, verdicts.by_call(c)) for c in verdicts.shown(report["comparisons"])],
        steps=[c for c in report["comparisons"] if c["against"] == "previous"][::-1],
        pass_panels=panels.pass_panels(run, styles),
        funnels=[_funnel(stage) for stage in run.stages if stage.funnel],
        sources=[(stage, _sources(stage)) for stage in run.stages if stage.data],
        difficulty=[(stage.name, panels.difficulty_panels(stage, styles)) for stage in run.stages if stage.filter],
        sft_panels=panels.sft_panels(run),
        rl=[(stage.name, panels.rl_panels(stage, styles)) for stage in run.of_kind("rl") if stage.metrics],
        rollouts=shown,
        guide=browse.GUIDE,
        costs=_costs(run, report),
        recipe=wording.capped(run.recipe, RECIPE_CHARACTERS),
        resolved=wording.capped(json.dumps(run.resolved, indent=1, ensure_ascii=False), RECIPE_CHARACTERS),
    )


def _typeset(form: Callable[..., str]) -> Callable[..., str]:
    return lambda *given: wording.typeset(form(*given))


def _funnel(stage: StageFolder) -> dict[str, Any]:
    """Rows of the funnel with the width of their bar, and up to EXAMPLES of what each rule dropped."""
    asked = number(stage.funnel.get("asked")) or 0.0
    rules = []
    for rule in map(table, listing(stage.funnel.get("rules"))):
        examples = [_example(table(given)) for given in listing(rule.get("examples"))[:EXAMPLES]]
        share = (number(rule.get("left")) or 0.0) / asked if asked else 0.0
        rules.append({**rule, "share": share, "examples": examples})
    return {"name": stage.name, **stage.funnel, "rules": rules, "domains": table(stage.funnel.get("domains"))}


def _example(given: Mapping[str, Any]) -> dict[str, str]:
    return {key: wording.capped(str(given.get(key) or ""), EXAMPLE_CHARACTERS) for key in ("prompt", "text", "detail")}


def _sources(stage: StageFolder) -> list[dict[str, Any]]:
    rows = []
    for source in map(table, listing(stage.data.get("sources"))):
        dropped = [f"{wording.count(n)} {reason}" for reason, n in table(source.get("dropped")).items() if n]
        shown = [(given, page.token_view(given)) for given in map(table, listing(source.get("examples")))]
        weight = wording.weight(source.get("weight"))
        rows.append({**source, "dropped": ", ".join(dropped) or "none", "weight": weight, "shown": shown})
    return rows


def _costs(run: RunFolder, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    longest = max(report["seconds"].values(), default=0.0)
    rows = []
    for stage in run.stages:
        spent = report["seconds"].get(stage.name)
        rows.append(
            {
                "name": stage.name,
                "status": stage.status,
                "seconds": spent,
                "share": spent / longest if spent and longest else 0.0,
                "phases": sorted(report["phases"].get(stage.name, {}).items(), key=lambda item: -item[1]),
                "tokens": report["tokens"].get(stage.name, {}),
                "memory": stage.manifest.get("peak_memory_bytes"),
                "hash": stage.manifest.get("hash") or "-",
                "inputs": table(stage.manifest.get("inputs")),
                "finished": stage.manifest.get("finished") or "-",
            }
        )
    return rows
