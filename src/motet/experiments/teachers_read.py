"""What the untouched student says of each teacher's traces: they are gathered, verified, rendered and read.

STUDENT/own-HASH.jsonl has what it wrote itself, STUDENT/scores.jsonl a line for each trace that it read (a journal: a
killed reading goes on), STUDENT/traces/NAME.jsonl the traces that a probe trains on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import jsonl
from motet.base.errors import UserError, naming
from motet.base.records import Group, Problem, Verdict, content_id, decode_problem
from motet.base.run import log, progress
from motet.data.chat import ChatFormat
from motet.data.conversations import read_conversations
from motet.data.pack import Sample
from motet.experiments import teachers_results as results
from motet.fit.traces import Trace, answer_tokens, measures, problem_key, sample_of, structure
from motet.model.rope import positions_of
from motet.stages.context import Context
from motet.verify.pool import Item
from motet.verify.structure import Parts, split

LEAST = 6
"""Problems that all teachers must have a trace of."""
SHOWN = 240
"""Tokens of an example that are kept, each with what the student thought of it."""
READ_AT_ONCE = 64


class Teacher(NamedTuple):
    name: str
    stage: Path | None = None
    """Folder of a synthesize stage."""
    label: str | None = None
    """Which of the stage's teachers, where it has several."""
    file: Path | None = None
    """Or a file of conversations."""


class Reading(NamedTuple):
    teachers: tuple[Teacher, ...]
    student: Path | None
    """Weights; None for those that the recipe starts from."""
    context: int
    """Longest trace in tokens, prompt included."""
    max_tokens: int
    """Of a packed row."""
    own: int
    """Traces that the student writes itself for each problem."""


class Gathered(NamedTuple):
    traces: list[Trace]
    told: dict[str, Any]
    """asked, kept, share kept, tokens written, tokens_per_kept, cost, cost_per_kept, dropped {reason: how many}."""
    problems: dict[str, Problem]
    """By `problem_key`, those that have a verifier."""


def read(reading: Reading, context: Context, home: Path) -> dict[str, Any]:
    """{"problems": how many, "context": longest trace in tokens, "teachers": {name: {"source", "file", "yield",
    "traces", "trace_tokens", "measures", "fit_differences", "rsr_differences", "answer_differences"}},
    "own": {"problems", "solved", "traces", "measures"}, "examples"}."""
    student = reading.student or context.base
    longest = min(reading.context, positions_of(student) or reading.context)
    gathered = {t.name: _gather(t, context, longest) for t in reading.teachers}
    common = set.intersection(*({trace.problem for trace in g.traces} for g in gathered.values()))
    if len(common) < LEAST:
        each = ", ".join(f"{name} {len({t.problem for t in g.traces})}" for name, g in gathered.items())
        raise UserError(
            f"the teachers have {len(common)} problems in common, and {LEAST} are needed (each has traces of: {each}). "
            'Ask them the same problems: in one synthesize stage with teachers and assign = "all", say.'
        )
    traces = {name: [t for t in g.traces if t.problem in common] for name, g in gathered.items()}
    problems = {key: problem for g in gathered.values() for key, problem in g.problems.items() if key in common}
    own = _own(reading, context, student, problems, home)
    rows = _scored({**traces, "": own}, context, student, reading.max_tokens, home)
    mine = rows.pop("")
    seed = context.recipe.seed
    measured = results.measured(rows, mine, seed)
    differences = {key: results.fit_differences(rows, seed, key) for key in ("fit", "rsr")}
    differences["answer"] = results.answer_differences(rows, seed)
    found: dict[str, Any] = {}
    for teacher in reading.teachers:
        name = teacher.name
        file = home / "traces" / f"{name}.jsonl"
        jsonl.write(file, ({"messages": list(t.messages)} for t in traces[name]))
        found[name] = {
            "source": "file" if teacher.file else "stage",
            "file": f"traces/{name}.jsonl",
            "yield": gathered[name].told,
            "traces": len(traces[name]),
            "trace_tokens": sum(row["tokens"] for row in rows[name]) / len(rows[name]),
            "measures": measured[name],
            **{f"{key}_differences": table[name] for key, table in differences.items()},
        }
    return {
        "problems": len(common),
        "context": longest,
        "teachers": found,
        "own": _own_summary(mine, problems, reading.own, seed),
        "examples": _examples(traces, min(common), context, student, reading.max_tokens),
    }


# ---- gathering


def _gather(teacher: Teacher, context: Context, longest: int) -> Gathered:
    found = _of_stage(teacher) if teacher.stage is not None else _of_file(teacher, context)
    kept = []
    for trace in found.traces:
        reason = _unfit(trace, context.chat, longest)
        if reason is None:
            kept.append(trace)
        else:
            found.told["dropped"][reason] = found.told["dropped"].get(reason, 0) + 1
    told = found.told | {"kept": len(kept), "share": len(kept) / max(1, found.told["asked"])}
    for spent in ("tokens", "cost"):
        told[f"{spent}_per_kept"] = told[spent] / len(kept) if told.get(spent) is not None and kept else None
    log.info("%s: %d of %d traces are kept", teacher.name, len(kept), told["asked"])
    if not kept:
        raise UserError(f"{teacher.name}: none of its {told['asked']} traces is of use: {told['dropped']}")
    return Gathered(kept, told, found.problems)


def _unfit(trace: Trace, chat: ChatFormat, longest: int) -> str | None:
    """Why the student cannot be trained on a trace."""
    try:
        sample = sample_of(trace, chat)
    except UserError:
        return "not reasoning and answer"
    return "longer than the context" if len(sample.tokens) > longest else None


def _of_stage(teacher: Teacher) -> Gathered:
    """The verified traces of a synthesize stage, and what it asked for."""
    assert teacher.stage is not None
    asked, tokens, problems, verdicts = 0, 0, dict[str, Problem](), Counter[str]()
    for _, row in jsonl.read(teacher.stage / "groups.jsonl"):
        if teacher.label is not None and row["problem"]["metadata"].get("teacher") != teacher.label:
            continue
        problem = decode_problem(row["problem"])
        problems[problem_key(problem.messages)] = problem
        for rollout in row["rollouts"]:
            asked += 1
            tokens += len(rollout["completion"]["tokens"])
            verdicts[rollout["verdict"]["kind"]] += 1
    rows = [row for _, row in jsonl.read(teacher.stage / "data.jsonl")
            if teacher.label is None or row.get("teacher") == teacher.label]  # fmt: skip
    traces = [Trace(problem_key(row["messages"][:-1]), tuple(row["messages"])) for row in rows]
    bill = _bill(teacher)
    correct = verdicts.pop("correct", 0)
    dropped = dict(sorted(verdicts.items()))
    if correct > len(traces):
        dropped["a rule of the funnel"] = correct - len(traces)
    told = {"asked": asked, "verified": asked, "tokens": bill.get("output_tokens") or tokens or None,
            "cost": bill.get("cost"), "dropped": dropped}  # fmt: skip
    return Gathered(traces, told, problems)


def _bill(teacher: Teacher) -> dict[str, Any]:
    assert teacher.stage is not None
    path = teacher.stage / "teachers.json"
    bills = jsonl.read_json(path) if path.exists() else {}
    return dict(bills.get(teacher.label, {}) if teacher.label is not None else next(iter(bills.values()), {}))


def _of_file(teacher: Teacher, context: Context) -> Gathered:
    """Given traces. One whose question is a problem of the recipe is judged by its verifier, and left out where it is
    held out; any other is taken as it is, without the system prompt that its teacher had."""
    assert teacher.file is not None
    with naming(f"--traces {teacher.name}"):
        asked_of = {problem_key(conversation.messages[:-1]) for conversation in read_conversations(str(teacher.file))}
    sides = [context.split(name) for name in context.recipe.problems]
    known = {key: p for side in sides for p in side.train if (key := problem_key(p.messages)) in asked_of}
    held = {key for side in sides for p in side.heldout if (key := problem_key(p.messages)) in asked_of}
    asked, verified, tokens, dropped = 0, 0, 0, Counter[str]()
    traces, problems = list[Trace](), dict[str, Problem]()
    for conversation in read_conversations(str(teacher.file)):
        *before, last = conversation.messages
        key = problem_key(before)
        asked += 1
        tokens += len(context.chat.encode(last.get("reasoning_content", "") + last["content"]))
        if key in held:
            dropped["held out"] += 1
            continue
        problem = known.get(key)
        if problem is not None:
            verified += 1
            kind = _verdict(problem, last, context)
            if kind != "correct":
                dropped[kind] += 1
                continue
            problems[key] = problem
        turns = problem.messages if problem is not None else tuple(m for m in before if m["role"] != "system")
        traces.append(Trace(key, (*turns, last)))
    if verified:
        context.pool.verdicts_stand()
    told = {"asked": asked, "verified": verified, "tokens": tokens, "cost": None, "dropped": dict(dropped)}
    return Gathered(traces, told, problems)


def _verdict(problem: Problem, turn: Mapping[str, str], context: Context) -> str:
    chat = context.chat
    try:
        text = chat.completion_text(turn)
    except UserError:
        return "malformed"
    item = Item(problem, text, "end", chat.config.think, chat.config.open_think)
    verdict: Verdict = context.pool.submit(item).result()
    return verdict.kind


# ---- the student


def _own(
    reading: Reading, context: Context, student: Path | str, problems: Mapping[str, Problem], home: Path
) -> list[Trace]:
    """The student's own correct traces of the problems that have a verifier."""
    if not reading.own or not problems:
        return []
    asked = [problems[key] for key in sorted(problems)]
    sampling, stream = context.recipe.evaluation.sampling, (context.recipe.seed, "teachers", "own")
    made_of = content_id(_mark(context, student), sampling.model_dump_json(), str(reading.own), *sorted(problems))
    file = home / f"own-{made_of}.jsonl"
    sampler = context.sampler(student)
    try:
        groups = sampler.groups(asked, reading.own, sampling, stream, file, "the student's own traces")
    finally:
        sampler.engine.close()
    return [trace for group in groups for trace in _correct(group, context.chat)]


def _correct(group: Group, chat: ChatFormat) -> Iterator[Trace]:
    for rollout in group.rollouts:
        parts = split(rollout.completion.text, chat.config.think, chat.config.open_think)
        if rollout.verdict.kind == "correct" and isinstance(parts, Parts):
            turn = {"role": "assistant", "content": parts.answer}
            if parts.reasoning:
                turn["reasoning_content"] = parts.reasoning
            yield Trace(problem_key(group.problem.messages), (*group.problem.messages, turn))


def _own_summary(rows: Sequence[results.Row], problems: Mapping[str, Problem], own: int, seed: int) -> dict[str, Any]:
    return {
        "problems": len(problems) if own else 0,
        "solved": len({row["problem"] for row in rows}),
        "traces": len(rows),
        "measures": results.measured({"own": rows}, [], seed)["own"] if rows else None,
    }


def _scored(
    traces: Mapping[str, Sequence[Trace]], context: Context, student: Path | str, max_tokens: int, home: Path
) -> dict[str, list[dict[str, Any]]]:
    """One row for each trace: its problem, measures and structure. Those on disk are not read again."""
    mark = _mark(context, student)
    with jsonl.Journal(home / "scores.jsonl") as journal:
        known = {row["key"]: row for row in journal.rows if row["student"] == mark}
        todo = {t.key: t for group in traces.values() for t in group if t.key not in known}
        if todo:
            reader, ordered = context.student(student), list(todo.values())
            starts = range(0, len(ordered), READ_AT_ONCE)
            for start in progress(starts, len(starts), "the student reads"):
                part = ordered[start : start + READ_AT_ONCE]
                for index, said in reader.read([sample_of(t, context.chat) for t in part], max_tokens):
                    trace = part[index]
                    row = {"key": trace.key, "student": mark, "problem": trace.problem,
                           **measures(said, answer_tokens(trace, context.chat)),
                           **structure(trace, context.chat)}  # fmt: skip
                    known[trace.key] = row
                    journal.append(row)
    return {name: [known[t.key] for t in group] for name, group in traces.items()}


def _mark(context: Context, student: Path | str) -> str:
    """Which weights these are, the hash of what made them or their name, and how they see a conversation."""
    folder = Path(student)
    stamps = (folder.parent / "manifest.json", folder.with_name(folder.name + ".json"))
    made = [str(jsonl.read_json(stamp)["hash"]) for stamp in stamps if stamp.exists()]
    return content_id(made[0] if made else str(student), context.recipe.chat.model_dump_json(), context.chat.template)


def _examples(
    traces: Mapping[str, Sequence[Trace]], problem: str, context: Context, student: Path | str, max_tokens: int
) -> dict[str, Any]:
    """One problem's trace of each teacher, token by token: {name: {"prompt", "tokens": [[text, surprisal, rank]]}}."""
    chosen = {name: next(t for t in group if t.problem == problem) for name, group in traces.items()}
    samples = [sample_of(trace, context.chat) for trace in chosen.values()]
    said = dict(context.student(student).read(samples, max_tokens))
    found = {}
    for index, (name, trace) in enumerate(chosen.items()):
        tokens = _texts(samples[index], context.chat)[:SHOWN]
        pairs = zip(said[index].surprisal_N.tolist(), said[index].rank_N.tolist(), strict=True)
        found[name] = {
            "prompt": trace.messages[-2]["content"] if len(trace.messages) > 1 else "",
            "tokens": [[text, round(s, 3), r] for text, (s, r) in zip(tokens, pairs, strict=False)],
        }
    return found


def _texts(sample: Sample, chat: ChatFormat) -> list[str]:
    """Each scored token's text. A byte of a character that several tokens share shows as a replacement character."""
    scored = [token for token, trained in zip(sample.tokens, sample.loss_mask, strict=True) if trained]
    return [str(chat.tokenizer.decode([t], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for t in scored]  # fmt: skip
