"""`motet inspect DATA MODEL`: what a model would learn from conversations, token by token, and what is wrong with it.

The checks are those that an SFT stage runs (`motet.data.doctor`), here in full on every conversation. Nothing is
trained, and no weights are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from motet.base.errors import UserError
from motet.base.load_recipe import built, load
from motet.base.recipe import Recipe, SftSource, SftStage
from motet.data import doctor
from motet.data.chat import ChatFormat
from motet.data.conversations import Conversation, conversations
from motet.data.prepare import pieces
from motet.model.load import load_tokenizer
from motet.model.rope import positions_of
from motet.tasks import load_problem_set
from motet.verify.structure import OPEN

ABOUT = {
    "row": "the row can be read and rendered",
    "mask": "something is learned, and not everything",
    "think": "a learned turn has one think block, opened once and closed once",
    "end": "a learned turn ends with a stop token, and has none before",
    "prompt": "what stands before a turn is what generation would see",
    "text": "nothing was cut, by the tokenizer or by the template",
}
EXAMPLES = 3
"""Refused conversations of each check that are shown."""


def source_of(
    data: str, model: str, recipe: Path | None, overrides: tuple[str, ...], columns: dict[str, str], split: str
) -> tuple[Recipe, SftSource, SftStage]:
    """Where the conversations are and how the recipe renders them.

    `data` is a path or hub id; with a recipe, also what one of its sft sources is called: a problem set or a stage.
    """
    if recipe is None:
        source: dict[str, Any] = {"path": data, "columns": columns, "split": split}
        tree = {"stages": ["sft"], "model": {"path": model}, "stage": {"sft": {"kind": "sft", "data": [source]}}}
        loaded = built(tree, list(overrides), "motet inspect")
    else:
        loaded = load(recipe, list(overrides))
    stages = [stage for stage in loaded.stage.values() if isinstance(stage, SftStage)]
    if not stages:
        raise UserError(f"{recipe}: the recipe has no sft stage, whose context and chat could be looked at")
    for stage in stages:
        for own in stage.data:
            if data in (own.problems, own.stage, own.path):
                return loaded, own, stage
    if recipe is not None and (data in loaded.problems or data in loaded.stage) and not Path(data).exists():
        named = [own.problems or own.stage or own.path for stage in stages for own in stage.data]
        raise UserError(
            f"{data}: the recipe has a table of this name, but no sft stage reads it as data; they read "
            f"{', '.join(dict.fromkeys(map(str, named)))}"
        )
    return loaded, SftSource(path=data, columns=columns, split=split), stages[0]


def inspect(
    source: SftSource, stage: SftStage, recipe: Recipe, model: str, runs: Path, rows: int, most: int, full: bool
) -> dict[str, Any]:
    """{data, model, end_token, think, context, checked, more, tokens_*, longer, checks, shown, notes, refused}.

    `rows` conversations are shown; at most `most` are checked, 0: all of them; `full`: none of their tokens are left
    out of what is shown.
    """
    chat = ChatFormat(load_tokenizer(model), recipe.chat)
    items = conversations(
        source, lambda name: load_problem_set(name, recipe.problems[name], recipe.seed), runs / recipe.name
    )
    context = _context(stage, model)
    found = _Found(chat, context, rows, full)
    more = False
    for item in items:
        if most and found.checked == most:
            more = True
            break
        found.add(item)
    return {
        "data": source.problems or source.stage or source.path,
        "model": model,
        "end_token": chat.tokenizer.decode([chat.end_token]),
        "stop_tokens": sorted(chat.tokenizer.decode([token]) for token in chat.stop_tokens),
        "think": chat.config.think,
        "open_think": chat.config.open_think,
        "context": context,
        "checked": found.checked,
        "more": more,
        **found.figures(),
    }


def _context(stage: SftStage, model: str) -> int:
    """That of an sft stage on this model: where the recipe says nothing, at most the positions that there are."""
    if "context" in stage.model_fields_set:
        return stage.context
    try:
        positions = stage.rope.positions if stage.rope is not None else positions_of(model)
    except UserError:  # a tokenizer without a model
        positions = None
    return min(stage.context, positions or stage.context)


class _Found:
    def __init__(self, chat: ChatFormat, context: int, rows: int, full: bool) -> None:
        self.checked = 0
        self._chat, self._context, self._rows, self._full = chat, context, rows, full
        self._refused: dict[str, list[dict[str, str]]] = {check: [] for check in ABOUT}
        self._count = dict.fromkeys(ABOUT, 0)
        self._wrong = self._tokens = self._learned = self._longest = self._longer = self._unknown = self._apart = (
            self._examples
        ) = 0
        self._shown: list[dict[str, Any]] = []

    def add(self, item: Conversation | UserError) -> None:
        self.checked += 1
        place = item.place or item.id if isinstance(item, Conversation) else ""
        try:
            if isinstance(item, UserError):
                raise item
            examples, findings = doctor.rendered(self._chat, item.messages)
        except UserError as error:
            examples, findings = [], [doctor.Finding("row", str(error))]
        self._wrong += bool(findings)
        for check in {finding.check for finding in findings}:
            self._count[check] += 1
        for finding in findings:
            if len(self._refused[finding.check]) < EXAMPLES:
                self._refused[finding.check].append({"place": place, "detail": finding.detail})
        for example in examples:
            self._examples += 1
            self._tokens += len(example.tokens)
            self._learned += sum(example.loss_mask)
            self._longest = max(self._longest, len(example.tokens))
            self._longer += len(example.tokens) > self._context
            self._unknown += self._chat.tokenizer.unk_token_id in example.tokens
        if isinstance(item, Conversation) and examples:
            self._apart += self._template_differs(item)
            if len(self._shown) < self._rows:
                self._show(place, examples, findings)

    def figures(self) -> dict[str, Any]:
        return {
            "refused": self._wrong,
            "tokens": self._tokens,
            "tokens_mean": self._tokens / max(1, self._examples),
            "tokens_max": self._longest,
            "learned_share": self._learned / max(1, self._tokens),
            "longer": self._longer,
            "checks": [
                {"check": check, "about": about, "refused": self._count[check], "examples": self._refused[check]}
                for check, about in ABOUT.items()
            ],
            "shown": self._shown,
            "notes": self._notes(),
        }

    def _show(self, place: str, examples: Iterable[Any], findings: Iterable[doctor.Finding]) -> None:
        for example in examples:
            limits = (len(example.tokens), 0) if self._full else ()
            wrong = [f"{finding.check}: {finding.detail}" for finding in findings]
            self._shown.append({"place": place, "findings": wrong, **pieces(self._chat, example, *limits)})

    def _template_differs(self, item: Conversation) -> bool:
        """Whether the template's own rendering of the whole does not begin with what generation sees."""
        last = max(i for i, message in enumerate(item.messages) if message["role"] == "assistant")
        whole = self._chat.template_text(item.messages[: last + 1])
        return not whole.startswith(self._chat.prompt_text(item.messages[:last]).removesuffix(OPEN))

    def _notes(self) -> list[str]:
        notes = []
        if self._longer:
            notes.append(
                f"{self._longer} training examples are longer than context = {self._context}: an sft stage drops and "
                "counts them, it never cuts them"
            )
        if self._unknown:
            notes.append(f"{self._unknown} training examples hold characters that the tokenizer does not know")
        if self._apart:
            notes.append(
                f"{self._apart} of {self.checked} conversations: the template's own rendering of the whole does not "
                "begin with the prompt that generation sees. motet trains on that prompt and the turn; tools that "
                "train on the template's rendering teach something else"
            )
        return notes
