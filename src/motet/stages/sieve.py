"""A stage's rows through the data funnel: STAGE/data.jsonl, what passed, and STAGE/funnel.json, what each rule took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import UserError, naming
from motet.base.recipe import Engine, RuleId, Sampling, TraceRules
from motet.base.records import Group, Message, Problem, Verdict, content_id, count_kinds, seed_of
from motet.base.run import log
from motet.data.chat import ChatFormat
from motet.engine.protocol import Recorded, Request, SamplingParams
from motet.funnel import rules as table
from motet.funnel.candidate import Candidate
from motet.funnel.contamination import Index
from motet.funnel.scan import Settings, Source
from motet.funnel.sift import clear, sift
from motet.rl.rollouts import Sampler
from motet.stages.context import Context
from motet.verify.structure import split

JUDGING = Sampling(temperature=0.0, max_tokens=4096)
CONTAMINATION: tuple[RuleId, ...] = ("contamination_13", "contamination_8", "contamination_numbers")


def run(
    name: str,
    source: Source,
    rules: TraceRules,
    context: Context,
    model: Path | str,
    open_think: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes data.jsonl last: with it the stage is done. `more` is put into funnel.json, whose numbers it may replace.
    `model` is what a judge without a model of its own would be. Raises UserError when no row passes."""
    folder = context.folder(name)
    chat = context.recipe.chat
    sets = evaluation_questions(context) if any(map(rules.is_on, CONTAMINATION)) else {}
    settings = Settings(rules, Index(sets), chat.think, open_think)
    asker = None if rules.judge is None else _Asker(context, model, rules.judge, folder / "judge.jsonl")
    under_way, done = folder / "funnel", folder / "passed.jsonl"
    try:
        funnel = sift(source, settings, under_way, done, context.recipe.verification.workers, asker)
        if asker is not None:
            asker.write_bill(folder / "judge.json")
    finally:
        if asker is not None:
            asker.close()
    against = {label: len(problems) for label, problems in sets.items()}
    funnel = {"kind": context.recipe.stage[name].kind, **funnel, "against": against, **(more or {})}
    jsonl.write_json(folder / "funnel.json", funnel)
    if not funnel["kept"]:
        took = ", ".join(f"{r['rule']} took {r['dropped']}" for r in funnel["rules"] if r["dropped"])
        what = "row" if funnel["kind"] == "clean" else "trace"
        raise UserError(f"stage.{name}: no {what} of {funnel['asked']} passed: {took}. See {folder / 'funnel.json'}.")
    done.replace(folder / "data.jsonl")
    clear(under_way)
    log.info("%s: %d of %d rows passed", name, funnel["kept"], funnel["asked"])


def of_groups(groups: Sequence[Group], rules: TraceRules, chat: ChatFormat) -> Source:
    """The rollouts of problems as rows for the funnel."""

    def rows(start: int) -> Iterator[Candidate]:
        return islice((c for group in groups for c in _of_group(group, rules, chat)), start, None)

    return rows


def verdicts(groups: Sequence[Group]) -> dict[str, int]:
    return count_kinds(rollout.verdict.kind for group in groups for rollout in group.rollouts)


def evaluation_questions(context: Context) -> dict[str, Sequence[Problem]]:
    """The problems of everything that the recipe evaluates, by name."""
    from motet.tasks.suites import supply

    sets = context.recipe.evaluation.sets
    if not sets:
        return {name: held for name in context.recipe.problems if (held := context.split(name).heldout)}
    found: dict[str, Sequence[Problem]] = {}
    for place, item in enumerate(sets):
        if item.problems is not None:
            found[item.problems] = context.split(item.problems).heldout[: item.count]
        elif item.suite is not None:
            with naming(f"evaluation.sets[{place}]"):
                found[item.suite] = list(supply(item.suite, item.path, item.count))
    return found


def _of_group(group: Group, rules: TraceRules, chat: ChatFormat) -> Iterator[Candidate]:
    problem = group.problem
    prompt = len(chat.prompt(problem.messages)) if table.tokens_needed(rules) else 0
    more = {"teacher": problem.metadata["teacher"]} if "teacher" in problem.metadata else {}
    for number, rollout in enumerate(group.rollouts):
        text = rollout.completion.text
        turn, reasoning = assistant_turn(text, chat)
        yield Candidate(
            id=f"{problem.id}#{number}",
            problem=problem.id,
            domain=problem.domain,
            messages=(*problem.messages, turn),
            turns=(text,),
            stop=rollout.completion.stop,
            verdict=rollout.verdict,
            verifier=problem.verifier,
            # in the student's tokens, whoever the teacher is, and the end-of-turn token
            tokens=prompt + len(chat.encode(text)) + 1 if prompt else None,
            reasoning_tokens=len(chat.encode(reasoning)) if prompt else None,
            more=more,
        )


def assistant_turn(text: str, chat: ChatFormat) -> tuple[Message, str]:
    """(the turn with its reasoning apart, its reasoning); a text of another structure is all content."""
    parts = split(text, chat.config.think, chat.config.open_think)
    if isinstance(parts, Verdict):
        return {"role": "assistant", "content": text}, ""
    turn = {"role": "assistant", "content": parts.answer}
    return ({**turn, "reasoning_content": parts.reasoning} if parts.reasoning else turn), parts.reasoning


class _Asker:
    """The judge of a recipe as a function of texts; its engine starts with the first question. What is asked of a text
    depends on the text alone, so that a killed stage asks the same again, and a reply that is on disk answers it."""

    def __init__(self, context: Context, model: Path | str, engine: Engine, file: Path) -> None:
        self._context, self._model, self._engine, self._file = context, model, engine, file
        self._sampler: Sampler | None = None

    def __call__(self, texts: Sequence[str]) -> list[str]:
        sampler = self._started()
        turns = [({"role": "user", "content": text},) for text in texts]
        seeds = [seed_of(self._context.recipe.seed, "judge", content_id(text)) for text in texts]
        requests = [Request(sampler.chat.prompt(turn), turn, seed) for turn, seed in zip(turns, seeds, strict=True)]
        params = SamplingParams(JUDGING.temperature, JUDGING.top_p, JUDGING.max_tokens)
        replies = [""] * len(texts)
        for index, completion in sampler.engine.generate(requests, params):
            replies[index] = completion.text
        return replies

    def write_bill(self, file: Path) -> None:
        """What the judge took, where it is paid for: earlier processes included."""
        if self._engine.kind == "endpoint":
            engine = self._started().engine
            assert isinstance(engine, Recorded)
            jsonl.write_json(file, engine.bill())

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.engine.close()

    def _started(self) -> Sampler:
        if self._sampler is None:
            self._sampler = self._context.sampler(self._model, self._engine)
            if isinstance(self._sampler.engine, Recorded):
                self._sampler.engine.keep(self._file)
        return self._sampler
