"""`motet watch RUN`: a run folder in the terminal, live or once. It reads files alone: over ssh, and afterwards."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.insight.following import Following, document
from motet.insight.wording import count, duration, interval, number, percent, plural, short, table
from motet.rl.alarms.record import Alarm, alarm_of

if TYPE_CHECKING:
    from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 40
"""Characters of a curve."""
LABEL = 22
CURVES = {
    "rl": (
        ("reward", "reward/mean"), ("live groups", "groups/live_share"), ("held-out pass@1", "heldout/pass"),
        ("entropy", "rollout/entropy"), ("tokens a completion", "rollout/tokens_mean"),
        ("truncated", "rollout/truncated_share"), ("malformed", "rollout/malformed_share"),
        ("gradient norm", "optim/grad_norm"), ("engine - learner", "engine/logprob_diff_mean"),
        ("steps on a batch", "inner_steps"), ("sampled tokens/s", "tokens/sampled_per_second"),
    ),
    "sft": (
        ("loss", "loss/nll"), ("gradient norm", "optim/grad_norm"), ("learning rate", "optim/learning_rate"),
        ("tokens/s", "tokens/second"),
    ),
}  # fmt: skip
PHASES = {"generate": "sample", "judge": "judge", "anchor": "anchor", "reference": "reference", "train": "steps",
          "load": "load", "probe": "probe"}  # fmt: skip
"""Timed phases by the names that are shown."""


def once(folder: Path, width: int = 100) -> str:
    """One frame, plain text."""
    from rich.console import Console

    following = Following(folder)
    following.look()
    console = Console(width=width, color_system=None, highlight=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(frame(following, width))
    return captured.get().rstrip("\n")


def live(folder: Path, every: float = 2.0) -> None:
    """Until q, Ctrl-C, or for ever: a run that goes on is shown as it does."""
    from rich.console import Console
    from rich.live import Live

    following, console = Following(folder), Console(highlight=False)
    with _keys() as pressed, Live(console=console, screen=console.is_terminal, auto_refresh=False) as display:
        while True:
            following.look()
            display.update(frame(following, console.width, console.height), refresh=True)
            if pressed(every):
                return


def frame(following: Following, width: int, height: int | None = None) -> Text:
    """At most `width` columns, and `height` lines where it is given: the log gives way first."""
    from rich.text import Text

    lines = [*_head(following), *_stages(following)]
    name = following.current
    rows = following.rows.get(name or "", [])
    if name is not None and rows:
        settings = table(table(following.recipe.get("stage")).get(name))
        lines += [
            "",
            *_progress(name, rows, settings),
            *_curves(rows, str(settings.get("kind") or "rl")),
            *_phases(rows),
        ]
    alarms = _alarms(following)
    lines += [("", ""), *alarms] if alarms else []
    room = 8 if height is None else max(0, height - len(lines) - 2)
    told = [(f"  {line}", "dim") for line in list(following.log)[-room:]] if room else []
    lines += [("", ""), *told] if told else []
    text = Text(no_wrap=True, overflow="ellipsis")
    for given in lines[:height]:
        line, style = given if isinstance(given, tuple) else (given, "")
        text.append(_cut(line, width) + "\n", style)
    text.rstrip()
    return text


Line = str | tuple[str, str]
"""Text, or text and its style."""


def _head(following: Following) -> list[Line]:
    name = str(following.recipe.get("name") or following.folder.resolve().name)
    paused = any(_is_paused(events, following.rows.get(stage, [])) for stage, events in following.events.items())
    age = time.time() - following.touched
    if following.done:
        state, style = "done", "bold green"
    elif paused:
        state, style = "paused by an alarm", "bold red"
    elif following.stopped:
        state, style = "stopped by an error", "bold red"
    elif age > 120.0:
        state, style = f"nothing was written for {duration(age)}: stopped, or in a long step", "bold yellow"
    else:
        state, style = f"running, last written {duration(age)} ago", "bold"
    return [(f"{name}: {state}", style)]


def _is_paused(events: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last event is a pause, and no step was reported after it."""
    if not events or events[-1].get("event") != "pause":
        return False
    return not rows or (number(rows[-1].get("time")) or 0.0) <= (number(events[-1].get("time")) or 0.0)


def _stages(following: Following) -> list[Line]:
    lines: list[Line] = []
    for name in following.stages:
        manifest = following.manifests.get(name, {})
        kind = str(table(table(following.recipe.get("stage")).get(name)).get("kind") or manifest.get("kind") or "")
        status = str(manifest.get("status") or "to come")
        rows, told = following.rows.get(name, []), ""
        if status == "running" and following.stopped:
            status = "stopped"
        if status in ("running", "stopped") and rows:
            told = plural(len(rows), "step")
        evaluated = table(table(_evaluation(following.folder / name).get("domains")).get("all"))
        passed = f"pass@1 {interval(evaluated.get('pass_at_1'))}" if evaluated else ""
        seconds = duration(manifest["seconds"]) if status == "done" and "seconds" in manifest else told
        style = {"done": "green", "running": "bold"}.get(status, "dim")
        lines.append((f"  {name:<16.16}{kind:<12}{status:<10}{seconds:>14}  {passed}", style))
    return lines


def _evaluation(folder: Path) -> dict[str, Any]:
    return document(folder / "evaluation.json")


def _progress(name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Line]:
    step, total = int(rows[-1]["step"]), number(settings.get("steps"))
    times = [value for row in rows[-20:] if (value := number(row.get("time/step"))) is not None]
    text = f"{name}: step {step}"
    if total:
        share = min(1.0, step / total)
        filled = round(CURVE * share)
        text += f" of {total:,.0f}  {'█' * filled}{'·' * (CURVE - filled)} {percent(share, 0)}"
        if times and step < total:
            text += f", {duration((total - step) * sum(times) / len(times))} left"
    return [(text, "bold")]


def _curves(rows: Sequence[Mapping[str, Any]], kind: str) -> list[Line]:
    lines: list[Line] = []
    for label, key in CURVES.get(kind, CURVES["rl"]):
        values = [value for row in rows if (value := number(row.get(key))) is not None]
        if values:
            first, last = short(values[0]), short(values[-1])
            lines.append(f"  {label:<{LABEL}}{curve(values):<{CURVE}}  {last:>9}  (first {first})")
    return lines


def curve(values: Sequence[float], width: int = CURVE) -> str:
    """Means of equal parts of the values as blocks, from the smallest to the largest. 1, 2, 3 in three: "▁▄█"."""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[3] * len(means)
    return "".join(BLOCKS[int((mean - low) / (high - low) * (len(BLOCKS) - 1))] for mean in means)


def _phases(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Where the last steps' time went."""
    recent = rows[-20:]
    total = sum(number(row.get("time/step")) or 0.0 for row in recent)
    if not total:
        return []
    spent = {told: sum(number(row.get(f"time/{name}")) or 0.0 for row in recent) for name, told in PHASES.items()}
    parts = [f"{told} {percent(seconds / total, 0)}" for told, seconds in spent.items() if seconds / total >= 0.005]
    speed = number(recent[-1].get("tokens/second"))
    text = f"  a step takes {duration(total / len(recent))}" + (f": {', '.join(parts)}" if parts else "")
    return [text + (f"; {count(speed)} tokens/s" if speed is not None else "")]


def _alarms(following: Following) -> list[Line]:
    """The newest of each rule, with its likeliest cause and what to change; then what was done about them."""
    lines: list[Line] = []
    for name, events in following.events.items():
        newest: dict[str, Alarm] = {}
        for event in events:
            try:
                alarm = alarm_of(table(event.get("alarm")))
            except (KeyError, TypeError, ValueError):
                continue
            newest[alarm.rule] = alarm
            if event.get("event") == "rolled back":
                lines.append((f"  {name} was rolled back from step {alarm.step} to {event.get('to')}", "yellow"))
        for alarm in list(newest.values())[-3:]:
            cause = alarm.causes[0]
            lines.append((f"  ALARM {name} step {alarm.step} {alarm.rule}: {alarm.seen}", "bold red"))
            lines.append((f"    likely: {cause.text}", "red"))
            lines += [(f"    change: {line}", "") for line in cause.change]
    return lines


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"


@contextmanager
def _keys() -> Iterator[Any]:
    """Gives a function that waits so many seconds and says whether q was pressed meanwhile."""

    def waits(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    if not sys.stdin.isatty():
        yield waits
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", "\x03", ""):
                return True
        return False

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
