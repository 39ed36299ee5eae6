"""The plan for a terminal: at most 110 columns."""

from __future__ import annotations

from motet.model.footprint import MARGIN
from motet.plan.probe import Probed, measured_factor
from motet.plan.report import COLUMNS, Plan, Row, StagePlan
from motet.plan.setup import Need, Sampling
from motet.plan.sizing import parameters_in_words

GIB = 2**30


def text(plan: Plan) -> str:
    machine, sizes = plan.machine, plan.sizes
    place = f"{machine.nodes} x {machine.gpus} GPUs of {machine.memory_gib:.1f} GiB" if plan.on_gpu else "CPU"
    lines = [
        f"{plan.name}: {plan.model}, {parameters_in_words(sizes.parameters)} ({sizes.layers} blocks of width "
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
    work, need = stage.work, stage.need
    if need is None:
        who, engine = work.engine_key.removeprefix(f"stage.{work.name}."), stage.engine
        lines = [f"{work.name} ({work.kind}): trains nothing; {who} {_size(engine.size)} GiB ({engine.words})"]
        if engine.unknown:
            lines.append(f"  whether it fits cannot be told: {engine.unknown}")
        elif stage.alone:
            lines.append(f"  {_of_engine(stage.alone)}")
    else:
        mesh = " x ".join(map(str, need.setup.shape))
        lines = [
            f"{work.name} ({work.kind}): rows of {work.tokens:,} tokens, at most {work.rows} a step; mesh {mesh}, "
            f"{_policies(need)}",
            *_parts(need),
            "  " + _whole_verdict(need),
            *_host(need),
        ]
        if stage.alone is not None and (need.sampling is None or stage.alone.spare < 0):
            size = f"{_size(stage.alone.total)} GiB ({stage.alone.engine.words})"
            lines += [f"  evaluated by an engine of {size}", f"            {_of_engine(stage.alone)}"]
    if stage.changed is not None:
        after = f"{_size(stage.changed.total)} GiB, {_verdict(stage.changed.spare)}"
        lines.append(f"  smallest change: {stage.change}: {after}")
    elif not stage.fits:
        lines.append("  no change of up to three settings makes it fit: more GPUs, or a smaller model")
    return lines


def _whole_verdict(need: Need) -> str:
    step = need.usable - need.total
    if step >= 0 > need.spare:
        return f"a step {_verdict(step)}; while the engine samples it does NOT fit"
    return _verdict(need.spare)


def _of_engine(sampling: Sampling) -> str:
    """Whether it fits, and where not, why."""
    if sampling.engine.least > sampling.engine.size:
        return f"does NOT fit: its weights and one completion take {_size(sampling.engine.least)} GiB"
    return _verdict(sampling.spare)


def _parts(need: Need) -> list[str]:
    """At the highest moment of a step: what lies there all along, what the row takes, what shares the GPU."""
    state, peak = need.forecast.state, need.forecast.peak
    where = {
        "forward": "the forward pass of a block", "head": "the head", "backward": "the backward pass of a block",
        "end": "the end of the backward pass",
    }  # fmt: skip
    steps = state.total > state.held(need.forecast.row) + peak.total
    held = {
        "weights": state.weights, "optimizer": state.optimizer - (0 if steps else state.away),
        "gradients": state.gradients if steps else state.made(need.forecast.row),
        "gathered weights": 0 if steps else state.gathered,
    }  # fmt: skip
    row = {
        "kept by blocks": peak.kept, "a block at work": peak.working, "head and hidden states": peak.head,
        "gradients made, moments back" if state.away else "gradients made": peak.gradients, "on the way": peak.passing,
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
    if need.setup.engine is not None:
        lines[-1:-1] = _engine(need)
    if steps:
        lines.insert(3, "            the optimizer's step, without a row, is higher")
    return lines


def _engine(need: Need) -> list[str]:
    """Who samples between the steps."""
    between = need.sampling
    if between is None:
        return [f"  engine    0 ({need.engine.words})"]
    learner = f"beside {_size(between.learner)} of the learner"
    lines = [f"  engine    {_size(between.engine.size)} while it samples ({between.engine.words}), {learner}"]
    if not need.engine.size:
        lines.append(f"            {need.engine.words}")
    return lines if between.spare >= 0 else [*lines, f"            {_of_engine(between)}"]


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)


def _size(size: int) -> str:
    gib = size / GIB
    return "0" if not size else f"{gib:.1f}" if gib >= 9.95 else f"{gib:.2f}" if gib >= 0.01 else f"{gib:.4f}"


def _policies(need: Need) -> str:
    return "recompute " + ", ".join(f"{count} x {policy}" for policy, count in need.policies.items())


def _verdict(spare: int) -> str:
    return f"fits, {_size(spare)} GiB to spare" if spare >= 0 else f"does NOT fit: {_size(-spare)} GiB too much"


def _host(need: Need) -> list[str]:
    host = need.host
    words = f"  host memory of a node: {_size(host.saving)} GiB while a checkpoint is written"
    lines = [words + f", {_size(host.exporting)} at export"]
    besides = _listed({"offloaded inputs": host.offloaded, "an engine asleep": host.asleep})
    lines += [f"            besides {besides}"] if besides else []
    if need.host_spare < 0 and need.host_usable is not None:
        lines.append(f"            does NOT fit: {_size(-need.host_spare)} GiB more than its {_size(need.host_usable)}")
    return lines


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
