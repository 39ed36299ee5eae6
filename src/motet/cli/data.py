"""Commands on data: problems, conversations, answers, verdicts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from motet.cli.root import cli


def _judging(function: Any) -> Any:
    positive = click.FloatRange(0, min_open=True)
    for decorate in (
        click.option("--memory-mb", type=click.IntRange(64), help="Address space of one worker [4096]."),
        click.option("--sandbox", help="How programs are kept in: a value of verification.sandbox [auto]."),
        click.option("--deadline", type=positive, help="Seconds for one verdict [10]."),
        click.option("--workers", type=click.IntRange(1), help="Processes that judge [2]."),
    ):
        function = decorate(function)
    return function


@cli.command()
@click.argument("problems", metavar="PROBLEMS")
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@_judging
@click.option("--verifier", help="Of a file whose rows do not tell theirs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def check(problems: str, overrides: tuple[str, ...], verifier: str | None, as_json: bool, **limits: Any) -> None:
    """Prove the verifiers on your own problems: a data file, or a recipe with all its sources. Trains nothing.

    Every gold answer must be judged correct, and nonsense, empty, echoing, repeated, many-answer and malformed
    completions must not. Exit status 0: fine; 1: something was found; 2: it could not be done.
    """
    from motet.base.run import console_log
    from motet.tasks import check_view, checking

    sources, loaded = checking.sources_of(problems, overrides, verifier)
    with console_log(), checking.pool_of(loaded, **limits) as pool:
        found = checking.run(sources, pool, loaded)
    if as_json:
        click.echo(json.dumps(checking.as_json(found), indent=1))
    else:
        check_view.show(found)
    sys.exit(1 if found.counts or not found.tallies else 0)


@cli.command()
@click.argument("data")
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@click.option("--rows", type=click.IntRange(0), default=3, help="Conversations shown token by token [3].")
@click.option("--check", "most", type=click.IntRange(0), default=1000, help="Conversations checked; 0: all [1000].")
@click.option("--full", is_flag=True, help="Show every token of long conversations too.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Whose chat and sft stage count; DATA may be "
              "the name of a problem set or stage that an sft stage reads.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Our field and the file's column.")
@click.option("--split", default="train", help="Split of a hub data set [train].")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of all runs.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page too.")
@click.option("--plain", is_flag=True, help="Without colour.")
def inspect(data: str, model: str, overrides: tuple[str, ...], rows: int, most: int, full: bool, recipe: Path | None,
            columns: tuple[str, ...], split: str, runs: Path, html: Path | None, plain: bool) -> None:  # fmt: skip
    """What MODEL would learn from the conversations of DATA, token by token, and what is wrong with it.

    Exit status 0: fine; 1: something is refused; 2: it could not be done.
    """
    from motet.base.errors import UserError
    from motet.insight import inspection, inspection_view

    wrong = [text for text in columns if "=" not in text]
    if wrong:
        raise UserError(f"--column {wrong[0]}: write it as FIELD=COLUMN, messages=chat say")
    mapping = dict(text.split("=", 1) for text in columns)
    loaded, source, stage = inspection.source_of(data, model, recipe, overrides, mapping, split)
    found = inspection.inspect(source, stage, loaded, model, runs, rows, most, full)
    click.echo(inspection_view.text(found, colour=not plain and sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if html is not None:
        inspection_view.write(html, found)
        click.echo(f"page: {html}")
    sys.exit(1 if found["refused"] else 0)


@cli.command()
@click.argument("rows", metavar="ROWS")
@_judging
@click.option("--out", metavar="FILE", default="-", help="Where verdicts go; a file that holds some is gone on with.")
@click.option("--overwrite", is_flag=True, help="Judge all rows again.")
@click.option("--resume", is_flag=True, help="Go on although ROWS is newer than the verdicts.")
@click.option("--think", type=click.Choice(["optional", "required", "open", "off"]), default="optional",
              help="The think block; open: its first tag is the prompt's.")  # fmt: skip
@click.option("--truncated-reward", type=float, help="Score of a truncated completion; unset, it has none.")
@click.option("--quarantine", type=click.Path(path_type=Path), help="Where items go that kill a verifier.")
def judge(rows: str, out: str, overwrite: bool, resume: bool, think: str, truncated_reward: float | None,
          quarantine: Path | None, **limits: Any) -> None:  # fmt: skip
    """Judge a file of answers, one JSON object a line: {id, verifier, reference, completion}; - is standard input.

    One verdict for each line, in order: {id, kind, score, answer, detail, seconds}. Killed, the same command goes on.
    """
    from motet.base.run import console_log
    from motet.verify import tool

    with console_log(), tool.pool_of(**limits, quarantine=quarantine) as pool:
        click.echo(tool.run(rows, out, pool, tool.rules_of(think, truncated_reward), overwrite, resume), err=True)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def audit(file: Path, as_json: bool) -> None:
    """How far a judge of facts and a person agree: FILE is an audit.jsonl that the person has filled in, or its stage's
    folder."""
    from motet.funnel import audit as auditing

    found = auditing.agreement(file)
    click.echo(json.dumps(found, indent=1) if as_json else auditing.text(found))


@cli.command()
def tasks() -> None:
    """List the built-in problem sets."""
    from motet.tasks import describe_tasks

    click.echo(describe_tasks())


@cli.command()
def suites() -> None:
    """List the named evaluation suites with their settings."""
    from motet.tasks.suites import describe_suites

    click.echo(describe_suites())
