"""Commands before a run: what fits where, and what changes nothing but speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from motet.cli.root import cli, load


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[a.b=value]...")
@click.option("--nodes", type=click.IntRange(1), help="Computers [machine.nodes].")
@click.option("--gpus", type=click.IntRange(1), help="GPUs of each [machine.gpus].")
@click.option("--memory", type=click.FloatRange(0, min_open=True), help="GiB of a GPU [machine.memory_gib].")
@click.option("--probe", is_flag=True, help="Run two steps of each stage's longest row here, and correct the plan.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, in bytes.")
def plan(recipe: Path, overrides: tuple[str, ...], nodes: int | None, gpus: int | None, memory: float | None,
         probe: bool, as_json: bool) -> None:  # fmt: skip
    """Say what fits where, before the run: memory of each stage on each GPU, by mesh and by what is recomputed.

    Needs no GPU and no weights, only the model's configuration or model.sizes. Exit status 1: a stage does not fit.
    """
    from motet.plan import probe as probing
    from motet.plan.report import as_json as jsonable
    from motet.plan.report import plan_of, planner_of
    from motet.plan.sizing import positions_of
    from motet.plan.view import probed, text
    from motet.plan.work import works_of

    loaded = load(recipe, overrides)
    planner = planner_of(loaded, nodes, gpus, memory)
    if probe:
        for name, found in probing.probe_stages(planner, works_of(loaded, positions_of(loaded.model))):
            words = f"probe of {name}: {found}" if isinstance(found, str) else probed(name, found)
            click.echo(words, err=as_json)
    made = plan_of(loaded, planner)
    click.echo(json.dumps(jsonable(made), indent=1) if as_json else text(made))
    sys.exit(0 if made.fits else 1)


@cli.command()
@click.argument("model")
@click.option(
    "--mesh", "meshes", multiple=True, metavar="R,S,P", help="dp_replicate,dp_shard,sp to examine; repeatable."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["packing", "rows", "head", "recompute", "resume", "processes"]),
    help="Examine this alone; repeatable.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where [auto].")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[bfloat16 on a GPU, else float32]")
def doctor(model: str, meshes: tuple[str, ...], only: tuple[str, ...], device: str, dtype: str | None) -> None:
    """Prove on MODEL, a folder, a hub id or "tiny", that packing, micro-batches, the loss head, recomputation, several
    processes and resume change nothing but speed.

    Checks run in processes of their own. Exit status 1: something differs; 2: a mesh that --mesh asks for was not run.
    """
    from motet.base.errors import UserError
    from motet.doctor import examine, view

    axes = [tuple(int(part) if part.strip().isdigit() else 0 for part in mesh.split(",")) for mesh in meshes]
    for mesh, given in zip(axes, meshes, strict=True):
        if len(mesh) != 3 or min(mesh) < 1:
            raise UserError(f"--mesh {given}: give dp_replicate,dp_shard,sp, 1,2,2 say")
    if meshes and only and "processes" not in only:
        raise UserError(f"--mesh {meshes[0]} is for the check of processes; add --only processes, or leave it out")
    with examine.scratch() as place:
        case = examine.case_of(model, device, dtype, Path(place))
        click.echo(view.title(model, case))
        found = []
        for one in examine.examine(case, Path(place), only, [(r, s, p) for r, s, p in axes]):
            found.append(one)
            click.echo(view.lines(one))
    click.echo(view.summary(found))
    asked = [finding for one in found if meshes and one.check == "processes" for finding in one.findings]
    if any(finding.failed for one in found for finding in one.findings):
        sys.exit(1)
    sys.exit(2 if any(finding.status == "not run" for finding in asked) else 0)
