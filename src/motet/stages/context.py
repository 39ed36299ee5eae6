"""What a stage is given: the recipe, the run folder, and makers of the parts it works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Engine as EngineConfig
from motet.base.recipe import FilterStage, Mix, Recipe, RlStage, TrainingStage
from motet.base.recipe.names import nearest, unknown_name
from motet.base.records import Problem, decode_problem, seed_of
from motet.base.run import Run, log
from motet.data.chat import ChatFormat
from motet.data.mix import Mixture, Part, weight_of
from motet.engine.protocol import Engine
from motet.fit.tokens import Student
from motet.model.load import load_tokenizer
from motet.model.rope import positions_of
from motet.rl.rollouts import Sampler
from motet.stages.shared import SharedSampler
from motet.tasks import ProblemSplit, load_problem_set
from motet.tasks.stored import stored
from motet.train.learner import Learner
from motet.train.world import World
from motet.verify.pool import Pool
from motet.verify.sandbox import announce

if TYPE_CHECKING:
    from motet.engine.vllm import Lender

TEMPLATE = 4096
"""Bytes that a chat template may add to the turns (ours)."""


@dataclass
class Context:
    recipe: Recipe
    run: Run
    base: Path | str
    """The weights that the recipe starts from: a Hugging Face folder or hub id."""
    world: World = field(default_factory=World)
    """The processes of this run: what writes, samples or judges is for `world.first`."""
    _splits: dict[str, ProblemSplit] = field(default_factory=dict)
    _samplers: WeakSet[Sampler] = field(default_factory=WeakSet)

    def folder(self, stage: str) -> Path:
        return self.run.stage(stage)

    def split(self, name: str) -> ProblemSplit:
        """A problem set, read once."""
        if name not in self._splits:
            self._splits[name] = load_problem_set(name, self.recipe.problems[name], self.recipe.seed, self.run.folder)
            split = self._splits[name]
            dropped = "".join(f", {count} dropped ({reason})" for reason, count in split.dropped.items())
            log.info("problems %s: %d to train, %d held out%s", name, len(split.train), len(split.heldout), dropped)
            if "code" in split.train.verifiers() | split.heldout.verifiers():
                announce(self.recipe.verification.sandbox)
        return self._splits[name]

    def mixture(self, mixes: Sequence[Mix], stage: str) -> Mixture[Problem]:
        """Training problems by weight. A filter stage named without a domain shares its weight evenly among domains."""
        parts: list[Part[Problem]] = []
        for place, mix in enumerate(mixes):
            if mix.stage is not None:
                rows = jsonl.read(self.folder(mix.stage) / "problems.jsonl")
                problems = stored((decode_problem(row) for _, row in rows), self.run.folder)
            else:
                assert mix.problems is not None
                problems = self.split(mix.problems).train
            name = mix.problems or mix.stage or ""
            found = problems.by_domain()
            domains = {domain: own for domain, own in found.items() if mix.domain in (None, domain)}
            if not domains:
                raise UserError(f"stage.{stage}.problems[{place}]: {self._empty(mix, sorted(found))}")
            parts += [
                Part(f"{name}/{domain}", own, weight_of(mix.weight), f"{place}") for domain, own in domains.items()
            ]
        return Mixture(parts, seed_of(self.recipe.seed, stage))

    def _empty(self, mix: Mix, domains: list[str]) -> str:
        """Why a share of a mixture has no problem, and what to do."""
        name = mix.problems or mix.stage or ""
        if domains:
            return (
                f"{name!r} has no training problem in the domain {mix.domain!r}: {nearest(mix.domain or '', domains)}"
                "take this share of the mixture out, or name a domain that there is"
            )
        assert mix.problems is not None, "a filter stage that keeps nothing ends with an error"
        held = len(self.split(name).heldout)
        return (
            f"{name!r} has no training problem: all {held:,} are held out (problems.{name}.heldout = "
            f"{self.recipe.problems[name].heldout:g}); lower it, or give it more problems"
        )

    def refuse_unknown_domains(self, stage: str, named: Mapping[str, Iterable[str]], mixes: Sequence[Mix]) -> None:
        """Raises UserError where a setting of `stage` names a domain that none of its problems ever had. `named`: the
        domains by setting. A domain of which a filter has kept nothing is known; one that every share of the mixture
        leaves out by its own `domain` is not."""
        known = self._domains(stage, mixes) if any(named.values()) else {}
        used = [domain for domain, left_out in known.items() if not left_out]
        for key, domains in named.items():
            for domain in sorted(set(domains) - set(used)):
                place = f"stage.{stage}.{key}"
                if domain not in known:
                    raise UserError(unknown_name(place, domain, used, "a domain of the stage's problems"))
                raise UserError(
                    f"{place}: {domain!r} is set here and none of its problems is used: {known[domain]} leaves them "
                    f"out. Take {domain!r} out of {key}, or give the mixture a share of it"
                )

    def refuse_domain_settings(self, stage: str, config: RlStage) -> None:
        """The same for all settings of an RL stage that name domains."""
        weights = config.algorithm.domain_weights
        named: dict[str, Iterable[str]] = {"domain_rewards": config.domain_rewards, "algorithm.domain_weights": weights}
        self.refuse_unknown_domains(stage, named, config.problems)

    def refuse_long_prompts(self, stage: str, problems: Iterable[Problem], max_tokens: int, model: Path | str) -> None:
        """Raises UserError where a prompt and `max_tokens` are more than the engine's window: before anything is
        sampled, not in the step that draws it. A text has no more tokens than bytes: where the window is wide, few
        are tokenised."""
        windows = {"model": positions_of(model), "engine": self.recipe.engine.context}
        whose, window = min(((k, v) for k, v in windows.items() if v is not None), key=lambda w: w[1], default=("", 0))
        if not window:
            return
        count, too_long, longest = 0, 0, (0, "")
        least = max_tokens + TEMPLATE + len((self.recipe.chat.system or "").encode())
        for problem in problems:
            count += 1
            if sum(len(m["content"].encode()) for m in problem.messages) + least > window:
                tokens = len(self.chat.prompt(problem.messages))
                too_long += tokens + max_tokens > window
                longest = max(longest, (tokens, problem.id))
        if too_long:
            tokens, name = longest
            raise UserError(
                f"stage.{stage}.problems: {name!r} is too long: a prompt of {tokens} tokens and sampling.max_tokens = "
                f"{max_tokens} are {tokens + max_tokens} positions, over the {whose}'s {window}. It is the longest of "
                f"{too_long:,} such problems of {count:,}. Lower sampling.max_tokens, leave such problems out, or take "
                "a model with a larger window."
            )

    def _domains(self, stage: str, mixes: Sequence[Mix]) -> dict[str, str]:
        """Domains of the problem sets of a mixture, those behind filter stages included, each with the setting that
        leaves all of its problems out; empty where they are used."""
        found: dict[str, str] = {}
        for place, mix in enumerate(mixes):
            source = self.recipe.stage[mix.stage] if mix.stage is not None else None
            if isinstance(source, FilterStage):
                own = self._domains(mix.stage or "", source.problems)
            else:
                own = dict.fromkeys(self.split(mix.problems or "").train.by_domain(), "")
            for domain, left_out in own.items():
                if mix.domain is not None and domain != mix.domain:
                    left_out = left_out or f'stage.{stage}.problems[{place}].domain = "{mix.domain}"'
                found[domain] = left_out and found.get(domain, left_out)
        return found

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.base)

    @cached_property
    def chat(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, self.recipe.chat)

    @cached_property
    def pool(self) -> Pool:
        config = self.recipe.verification
        quarantine = self.run.folder / "quarantine.jsonl"
        limits = (config.deadline_seconds, config.sandbox, config.test_seconds)
        return Pool(config.workers, *limits, quarantine, memory_bytes=config.memory_mb << 20)

    def learner(self, stage: str, config: TrainingStage, model: Path | str, total_steps: int) -> Learner:
        self._make_room(self.recipe.engine if isinstance(config, RlStage) else None)  # which samples beside it
        return Learner(
            model,
            self.recipe.model,
            config.optimizer,
            total_steps,
            lora=config.lora,
            mesh=self.recipe.mesh,
            world=self.world,
            notes=self.folder(stage),
            seed=seed_of(self.recipe.seed, stage, "adapters"),
            any_length=True,
        )

    def reference(self, stage: str, config: TrainingStage, model: Path | str) -> Learner:
        """The weights that a stage starts from, for their log-probabilities alone: without adapters, and without the
        float32 copies that an optimizer would step on."""
        plain = self.recipe.model.model_copy(update={"weights": self.recipe.model.dtype})
        return Learner(
            model, plain, config.optimizer, 1, None, self.recipe.mesh, self.world, self.folder(stage), any_length=True
        )

    def student(self, model: Path | str) -> Student:
        self._make_room()
        return Student(model, self.recipe.model)

    def sampler(self, model: Path | str, engine: EngineConfig | None = None) -> Sampler:
        """An engine on `model` (a teacher may be elsewhere), with the chat format and the pool of verifiers."""
        config = engine or self.recipe.engine
        chat = self.chat
        if (
            config.kind in ("transformers", "vllm") and config.model is not None
        ):  # a local teacher: its own tokens and template
            model, chat = config.model, ChatFormat(load_tokenizer(config.model), self.recipe.chat)
        made = Sampler(self._engine(model, config, chat, scored=engine is None), chat, self.pool)
        self._samplers.add(made)
        return made

    def shared_sampler(self, model: Path | str) -> Sampler:
        """The same for a stage that all processes run: the first one samples and judges."""
        if self.world.size == 1:
            return self.sampler(model)
        return SharedSampler(self.world, lambda: self.sampler(model))

    def _engine(self, model: Path | str, config: EngineConfig, chat: ChatFormat, scored: bool) -> Engine:
        if config.kind == "endpoint":
            from motet.engine.endpoint import EndpointEngine

            return EndpointEngine(config, scored=scored, open_think=chat.config.open_think)
        if config.kind == "scripted":
            from motet.engine.scripted import ScriptedEngine

            assert config.script is not None
            return ScriptedEngine(Path(config.script), chat.encode, chat.end_token)
        if config.kind == "vllm":
            if self.world.size > 1 and not (config.python or config.urls):
                raise UserError(
                    f'engine.kind = "vllm": {self.world.size} processes share the learner, and vLLM would be in one of '
                    "them; give it a server of its own (engine.python) or servers that run (engine.urls)"
                )
            return self._lender.lend(model, self.recipe.model, chat, config)
        from motet.engine.transformers import TransformersEngine

        self._make_room()
        return TransformersEngine(model, self.recipe.model, chat, config.batch_size)

    def _make_room(self, but: EngineConfig | None = None) -> None:
        """Engines that were kept for a later stage give their memory back, but for one."""
        if "_lender" in self.__dict__:
            self._lender.give_back(but)

    @cached_property
    def _lender(self) -> Lender:
        from motet.engine.vllm import Lender

        return Lender()

    def close(self) -> None:
        for sampler in self._samplers:
            sampler.leave()
        if "pool" in self.__dict__:
            self.pool.close()
        if "_lender" in self.__dict__:
            self._lender.close()
