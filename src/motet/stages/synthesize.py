"""Verified synthetic traces: ask a teacher (or the model itself), keep what passes every rule, count the rest."""

from __future__ import annotations

from pathlib import Path

from motet.base.recipe import SynthesizeStage
from motet.stages import sieve, teachers
from motet.stages.context import Context


def run(name: str, config: SynthesizeStage, context: Context, model: Path | str) -> None:
    folder = context.folder(name)
    if not (folder / "data.jsonl").exists():
        groups = teachers.ask(name, config, context, model)
        source = sieve.of_groups(groups, config.rules, context.chat)
        more = {"problems": len(groups), "verdicts": sieve.verdicts(groups)}
        sieve.run(name, source, config.rules, context, model, context.recipe.chat.open_think, more)
    teachers.count_kept(folder)
