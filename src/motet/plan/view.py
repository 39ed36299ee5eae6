"""The plan for a terminal: at most 110 columns."""

from __future__ import annotations

from motet.model.footprint import MARGIN
from motet.plan.probe import Probed, measured_factor
from motet.plan.report import COLUMNS, Plan, Row, StagePlan
from motet.plan.setup import Need

GIB = 2**30


def text(plan: Plan) -> str:
    machine, sizes = plan.machine, plan.sizes
    place = f"{machine.nodes} x {machine.gpus} GPUs of {machine.memory_gib:.1f} GiB" if plan.on_gpu else "CPU"
    lines = [
        f"{plan.name}: {plan.model}, {sizes.parameters / 1e9:.2f} B parameters ({sizes.layers} blocks of width "
        f"{sizes.width}, vocabulary {sizes.vocabulary:,}), {plan.dtype}",
        f"on {place}, of which {plan.usable / GIB:.1f} are planned with"
        + (f" ({100 * MARGIN:.0f} % are left for fragmentation)" if plan.on_gpu else ""),
    ]
    shown: dict[tuple[Row, ...], str] = {}
    for stage in plan.stages:
        lines += ["", *_stage(stage, plan)]
        if stage.table in shown:
            lines.append(f"  by mesh and policy: as {shown[stage.table]}")
        elif stage.table:
            shown[stage.table] = stage.work.name
            lines += _table(stage.table, plan.usable)
    return "\n".join(lines)


def _stage(stage: StagePlan, plan: Plan) -> list[str]:
    work = stage.work
    if stage.need is None:
        size = f"engine {stage.engine / GIB:.1f} GiB ({stage.engine_words})"
        return [f"{work.name} ({work.kind}): trains nothing; {size}"]
    need = stage.need
    shape = need.setup.shape
    mesh = " x ".join(map(str, shape))
    lines = [
        f"{work.name} ({work.kind}): rows of {work.tokens:,} tokens, at most {work.rows} a step; mesh {mesh}, "
        f"{_policies(need)}",
        *_parts(need),
        "  " + _verdict(need.spare),
    ]
    if stage.changed is not None:
        after = f"{_size(stage.changed.total)} GiB, {_verdict(stage.changed.spare)}"
        lines.append(f"  smallest change: {stage.change}: {after}")
    elif not stage.fits:
        lines.append("  no change of up to three settings makes it fit: more GPUs, or a smaller model")
    lines.append("  " + _host(need, plan))
    return lines


def _parts(need: Need) -> list[str]:
    """At the highest moment of a step: what lies there all along, what the row takes, what shares the GPU."""
    state, peak = need.forecast.state, need.forecast.peak
    where = {"head": "the head", "backward": "the backward pass of a block", "end": "the end of the backward pass"}
    steps = state.total > state.held(need.forecast.row) + peak.total
    held = {
        "weights": state.weights, "optimizer": state.optimizer,
        "gradients": state.gradients if steps else state.made(need.forecast.row),
        "gathered weights": 0 if steps else state.gathered,
    }  # fmt: skip
    row = {
        "kept by blocks": peak.kept, "a block at work": peak.working, "head and hidden states": peak.head,
        "gradients made": peak.gradients, "on the way": peak.passing,
    }  # fmt: skip
    beside = {"engine": need.engine.size, "reference": need.reference}
    inside = {"attention's sums": need.attention, "all-to-alls": need.exchanged}
    within = ", ".join(f"{name} {_size(size)}" for name, size in inside.items() if size and peak.working)
    lines = [
        "  state     " + _listed(held),
        f"  row       {_listed(row)}" + (f"\n            of which {within}" if within else ""),
        f"            highest at {where[peak.at]}" + (f"; beside it {_listed(beside)}" if any(beside.values()) else ""),
        f"  together  {_size(need.total)} GiB on the fullest GPU",
    ]
    if steps:
        lines.insert(3, "            the optimizer's step, without a row, is higher")
    return lines


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)


def _size(size: int) -> str:
    gib = size / GIB
    return f"{gib:.1f}" if gib >= 9.95 else f"{gib:.2f}" if gib >= 0.01 else f"{gib:.4f}"


def _policies(need: Need) -> str:
    return "recompute " + ", ".join(f"{count} x {policy}" for policy, count in need.policies.items())


def _verdict(spare: int) -> str:
    return f"fits, {_size(spare)} GiB to spare" if spare >= 0 else f"does NOT fit: {_size(-spare)} GiB too much"


def _host(need: Need, plan: Plan) -> str:
    host = need.host
    words = f"host memory of a node: {_size(host.saving)} GiB while a checkpoint is written"
    words += f", {_size(host.exporting)} at export"
    words += f", {_size(host.offloaded)} for offloaded inputs" if host.offloaded else ""
    limit = plan.machine.host_gib
    if limit is not None and host.most > limit * GIB:
        words += f"; {_size(int(host.most - limit * GIB))} more than its {limit:.0f}"
    return words


def _table(rows: tuple[Row, ...], usable: int) -> list[str]:
    """GiB by mesh and policy, and in brackets by how much it does not fit."""
    lines = [f"  {'mesh (replicate x shard x sp)':<31}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for row in rows:
        name = f"{row.shape}{' (asked)' if row.asked else ''}"
        lines.append(f"  {name:<31}" + "".join(f"{_cell(size, usable):>15}" for size in row.needs))
    return lines


def _cell(size: int, usable: int) -> str:
    return _size(size) if size <= usable else f"{_size(size)} (+{_size(size - usable)})"


def probed(name: str, found: Probed) -> str:
    """How far the prediction was from what two steps took."""
    kept = ", ".join(f"{count} x {policy}" for policy, count in found.policies.items())
    more = f", {found.reserved / GIB:.3f} reserved" if found.reserved else ""
    return (
        f"probe of {name}: predicted {found.forecast.total / GIB:.3f} GiB, measured {found.allocated / GIB:.3f}{more} "
        f"({100 * found.error:+.1f} %)\n  {kept}; {found.seconds:.2f} s a step; the row's bytes are multiplied by "
        f"{measured_factor(found):.3f} below"
    )
