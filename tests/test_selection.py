"""Which problems RL samples: the posterior of their difficulty, those that rest, refills, probes, rewards by domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.recipe import Algorithm, Rewards, RlStage
from motet.base.records import Completion, Group, Problem, Rollout, Verdict, VerdictKind, decode_group
from motet.base.run import Run, Timers, log
from motet.base.statistics import evaluate_groups
from motet.data.mix import Mixture, Part
from motet.rl.experience import build
from motet.rl.posterior import Evidence, Posterior
from motet.stages.context import Context
from motet.stages.probe import Probe
from motet.stages.selection import Selection


def problem(name: str, domain: str = "math") -> Problem:
    return Problem(name, ({"role": "user", "content": name},), "math", "1", domain)


def group(name: str, right: int, wrong: int, cut: int = 0, domain: str = "math") -> Group:
    kinds: list[VerdictKind] = ["correct"] * right + ["incorrect"] * wrong + ["truncated"] * cut
    scores = {"correct": 1.0, "incorrect": 0.0, "truncated": None}
    rollouts = [Rollout((5,), Completion("x", (7, 1), (-0.5, -0.5), "end", 0), Verdict(k, scores[k])) for k in kinds]
    return Group(problem(name, domain), tuple(rollouts))


# ---- the posterior


def test_the_expected_pass_rate_is_the_mean_of_a_beta_distribution_that_forgets_half() -> None:
    posterior = Posterior([group("a", 3, 2)], None, 5)
    assert posterior.table["a"].rate == pytest.approx(4 / 7)
    posterior.observe(1, [group("a", 8, 0, cut=3), group("b", 0, 2)])
    assert posterior.table["a"] == Evidence("math", 9.5, 1.0, 1, 0)
    assert posterior.table["a"].rate == pytest.approx(10.5 / 12.5)
    assert posterior.table["b"].rate == pytest.approx(1 / 4)
    assert posterior.rate_mean() == pytest.approx((0.84 + 0.25) / 2)


def test_a_problem_that_is_solved_rests_and_comes_back_by_age() -> None:
    posterior = Posterior([], 0.8, 3)
    posterior.observe(4, [group("solved", 8, 0), group("hard", 0, 8)])
    assert [posterior.rests("solved", step) for step in (5, 7, 8)] == [True, True, False]
    assert not posterior.rests("hard", 5) and not posterior.rests("unknown", 5)
    assert (posterior.resting(5), posterior.resting(8)) == (1, 0)
    # back, it is retired again only by what it then shows: 4 + 2 of 4 + 8 is below 0.8
    posterior.observe(8, [group("solved", 2, 6)])
    assert not posterior.rests("solved", 9)
    posterior.observe(9, [group("solved", 30, 0)])
    assert posterior.rests("solved", 10)


def test_without_a_threshold_nothing_rests() -> None:
    posterior = Posterior([], None, 3)
    posterior.observe(1, [group("solved", 50, 0)])
    assert not posterior.rests("solved", 2)


def test_the_table_written_and_read_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    posterior = Posterior([group("a", 1, 2)], 0.7, 3)
    for step in range(1, 8):
        posterior.observe(step, [group("a", step % 3, 1), group("b", 5, step % 2, domain="code")])
    jsonl.write(tmp_path / "state.jsonl", posterior.rows(7))
    other = Posterior([], 0.7, 3)
    other.load(row for _, row in jsonl.read(tmp_path / "state.jsonl"))
    assert other.table == posterior.table
    assert {row["step"] for row in posterior.rows(7)} == {7}


def test_the_mean_rate_is_the_same_in_the_order_of_sampling_and_of_the_table_on_disk() -> None:
    """1/2 + 2/3 + 1/3, added in this order, is 1.4999999999999998."""
    posterior = Posterior([], None, 3)
    posterior.observe(1, [group("c", 0, 0, cut=1), group("b", 1, 0), group("a", 0, 1)])
    resumed = Posterior([], None, 3)
    resumed.load(posterior.rows(1))
    assert list(posterior.table) == ["c", "b", "a"] and list(resumed.table) == ["a", "b", "c"]
    assert posterior.rate_mean() == resumed.rate_mean() == 0.5


# ---- what a step draws


class ScriptedSampler:
    """Stands for engine and verifiers: `right(problem id, call)` of each group's four rollouts are correct."""

    engine: Any = None

    def __init__(self, right: Callable[[str, int], int]) -> None:
        self.right = right
        self.calls: list[list[str]] = []

    def groups(self, problems: Any, n: int, sampling: Any, stream: Any, file: Path, title: str) -> list[Group]:
        self.calls.append([p.id for p in problems])
        found = [group(p.id, r, n - r, domain=p.domain) for p in problems for r in [self.right(p.id, len(self.calls))]]
        from motet.base.records import encode

        jsonl.write(file, (encode(g) for g in found))
        return found


@pytest.fixture
def make_curriculum(micro_recipe: Path, tmp_path: Path) -> Iterator[Callable[..., Selection]]:
    """A selection over problems a0..a9 of domain a and b0..b4 of domain b, four problems a step."""
    opened: list[Run] = []

    def make(folder: str = "run", **settings: Any) -> Selection:
        recipe = micro.recipe(micro_recipe, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]")
        config = recipe.stage["rl"].model_copy(update={"prompts_per_step": 4, "group_size": 4, **settings})
        assert isinstance(config, RlStage)
        run = Run(tmp_path / folder, console=False)
        opened.append(run)
        context = Context(recipe, run, tmp_path)
        parts = [Part(d, [problem(f"{d}{i}", d) for i in range(n)], 1.0) for d, n in (("a", 10), ("b", 5))]
        context.mixture = lambda *_: Mixture(parts, 1)  # type: ignore[method-assign]
        return Selection("rl", config, context)

    yield make
    for run in opened:
        run.close()


def domains(names: list[str]) -> list[str]:
    return sorted(name[0] for name in names)


def test_problems_that_rest_are_replaced_inside_their_domain_and_the_quota_holds(
    make_curriculum: Callable[..., Selection],
) -> None:
    selection = make_curriculum(retire_at=0.7, return_after=2)
    solved = {"a0", "a1", "a2", "a3", "b0"}
    sampler: Any = ScriptedSampler(lambda name, _: 4 if name in solved else 2)
    rested = 0
    for step in range(12):
        _, metrics = selection.sample(sampler, step)
        drawn = sampler.calls[-1]
        assert domains(drawn) == ["a", "a", "b", "b"] and len(set(drawn)) == 4
        recent = {name for names in sampler.calls[-3:-1] for name in names}
        assert not solved & recent & set(drawn)  # solved in one of the last two steps, it rests
        rested += metrics["problems/replaced"]
        assert metrics["problems/exhausted"] == 0
    assert rested > 0
    assert len({name for names in sampler.calls for name in names} & solved) > 2
    assert sum(names.count("a0") for names in sampler.calls) >= 1


def test_a_domain_with_nothing_else_left_is_asked_what_rests_and_says_so(
    make_curriculum: Callable[..., Selection], caplog: pytest.LogCaptureFixture
) -> None:
    selection = make_curriculum(retire_at=0.7, return_after=50)
    sampler: Any = ScriptedSampler(lambda name, _: 4 if name[0] == "b" else 2)
    log.propagate = True
    with caplog.at_level("INFO", logger=log.name):
        found = [selection.sample(sampler, step)[1] for step in range(5)]
    assert [row["problems/exhausted"] for row in found[:2]] == [0, 0] and found[-1]["problems/exhausted"] == 2
    assert all(domains(names) == ["a", "a", "b", "b"] for names in sampler.calls)
    assert "2 retired problems of b were asked again: no others are left" in caplog.text


def test_without_a_threshold_a_step_draws_what_the_mixture_draws(make_curriculum: Callable[..., Selection]) -> None:
    selection = make_curriculum()
    sampler: Any = ScriptedSampler(lambda *_: 4)
    metrics = [selection.sample(sampler, step)[1] for step in range(3)]
    mixture = selection._context.mixture([], "rl")
    assert sampler.calls == [[p.id for p in mixture.draw(step, 4)] for step in range(3)]
    assert set(metrics[0]) == {"problems/known", "problems/rate_mean"}


def test_an_engine_that_failed_and_was_brought_back_is_counted_in_its_step(
    make_curriculum: Callable[..., Selection],
) -> None:
    sampler: Any = ScriptedSampler(lambda *_: 2)
    sampler.engine = SimpleNamespace(mended=0)
    selection, found = make_curriculum(), list[float]()
    for mended in (0, 2, 2, 3):
        sampler.engine.mended = mended
        found.append(selection.sample(sampler, len(found))[1]["engine/failures"])
    assert found == [0.0, 2.0, 0.0, 1.0]


def test_groups_without_a_signal_are_refilled_until_the_batch_is_whole(
    make_curriculum: Callable[..., Selection],
) -> None:
    sampler: Any = ScriptedSampler(lambda _, call: 0 if call == 1 else 2)
    groups, metrics = make_curriculum(refill=2.0).sample(sampler, 0)
    assert [len(names) for names in sampler.calls] == [4, 4]
    assert (len(groups), metrics["groups/refilled"], metrics["groups/refilled_live"]) == (8, 4, 4)
    assert len({g.problem.id for g in groups}) == 8 and metrics["groups/refill_short"] == 0


def test_the_budget_of_a_refill_ends_and_the_step_goes_on(
    make_curriculum: Callable[..., Selection], caplog: pytest.LogCaptureFixture
) -> None:
    sampler: Any = ScriptedSampler(lambda *_: 0)
    selection = make_curriculum(refill=1.5)
    log.propagate = True
    with caplog.at_level("INFO", logger=log.name):
        groups, metrics = selection.sample(sampler, 0)
    assert len(groups) <= 4 + 6 and metrics["groups/refilled_live"] == 0 and metrics["groups/refill_short"] == 4
    assert sum(map(len, sampler.calls[1:])) == metrics["groups/refilled"] > 0
    assert "0 of 4 groups have a signal; the budget of refill is used up" in caplog.text


def test_a_batch_that_is_whole_is_not_refilled(make_curriculum: Callable[..., Selection]) -> None:
    sampler: Any = ScriptedSampler(lambda *_: 1)
    _, metrics = make_curriculum(refill=1.0).sample(sampler, 0)
    assert len(sampler.calls) == 1 and metrics["groups/refilled"] == 0


def test_resumed_at_any_step_the_draws_are_those_of_the_uninterrupted_run(
    make_curriculum: Callable[..., Selection],
) -> None:
    settings = {"retire_at": 0.6, "return_after": 3, "refill": 1.0}

    def right(name: str, _: int) -> int:
        return int(name[1]) % 5

    whole, sampler = make_curriculum("whole", **settings), ScriptedSampler(right)
    given: Any = sampler
    tables = []
    for step in range(8):
        whole.sample(given, step)
        tables.append(dict(whole.posterior.table))
        if step == 3:
            whole.save(4)
    for start in (4, 6):  # where the table is of that step, and where it has to be made from the groups
        again: Any = ScriptedSampler(right)
        resumed = make_curriculum("whole-", **settings)
        resumed._folder = whole._folder
        resumed.restore(start)
        assert resumed.posterior.table == tables[start - 1]
        for step in range(start, 8):
            resumed.sample(again, step)
        assert again.calls == sampler.calls[-len(again.calls) :]
        assert resumed.posterior.table == tables[-1]
        resumed._context.run.close()


# ---- in a run


def test_the_posterior_begins_with_the_filters_rollouts_and_ends_with_rls(finished_run: Path) -> None:
    rows = {row["id"]: row for _, row in jsonl.read(finished_run / "rl" / "problems-state.jsonl")}
    kept = {row["id"] for _, row in jsonl.read(finished_run / "filter" / "problems.jsonl")}
    assert rows.keys() == kept and {row["step"] for row in rows.values()} == {8}
    asked = (decode_group(row) for _, row in jsonl.read(finished_run / "filter" / "groups.jsonl"))
    expected = Posterior((group for group in asked if group.problem.id in kept), None, 50)
    for step in range(1, 9):
        file = finished_run / "rl" / "rollouts" / f"step-{step:05d}.jsonl"
        expected.observe(step, [decode_group(row) for _, row in jsonl.read(file)])
    assert expected.rows(8) == [rows[name] for name in sorted(rows)]
    assert any(row["seen"] for row in rows.values())


def test_probes_look_at_held_out_problems_and_change_nothing(
    micro_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    """The last one agrees with the evaluation that follows, which asks the same problems with the same seeds."""
    model = f"model={{path='{finished_run / 'sft' / 'model'}', device='cpu'}}"
    common = [model, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]", "stage.rl.steps=2"]
    for name, more in (("plain", []), ("probed", ["stage.rl.probe_every=1", "stage.rl.probe=100"])):
        pipeline.run(micro.recipe(micro_recipe, *common, *more), tmp_path / name, console=False)
    assert micro.same_weights(micro.weights(tmp_path / "plain", "rl"), micro.weights(tmp_path / "probed", "rl"))
    rows = micro.metrics(tmp_path / "probed", "rl")
    domains_ = jsonl.read_json(tmp_path / "probed" / "rl" / "evaluation.json")["domains"]
    assert rows[1]["heldout/pass"] == domains_["all"]["pass_at_1"]["mean"]
    assert rows[1]["heldout/pass_low"] <= rows[1]["heldout/pass/math"] <= rows[1]["heldout/pass_high"]
    file = tmp_path / "probed" / "rl" / "probes" / "step-00001-numbers.jsonl"
    groups = [decode_group(row) for _, row in jsonl.read(file)]
    assert rows[0]["heldout/pass"] == evaluate_groups(groups, 10, 1)["domains"]["math"]["pass_at_1"]["mean"]
    assert "heldout/pass" not in micro.metrics(tmp_path / "plain", "rl")[0]


def test_without_an_evaluation_set_a_probe_has_nothing_to_say(
    make_curriculum: Callable[..., Selection],
) -> None:
    selection = make_curriculum(probe_every=1)
    probe = Probe("rl", selection._config, selection._context)
    probe._sets = []
    given: Any = ScriptedSampler(lambda *_: 1)
    assert probe.measure(given, 1, Timers()) == {} and given.calls == []


def test_a_domain_may_reward_otherwise() -> None:
    groups = [group("m", 1, 1), group("c", 1, 1, cut=1, domain="code")]
    own: Any = {"code": {"incorrect": -1.0, "truncated": -0.5}}
    live, metrics = build(groups, Rewards(), Algorithm(advantage="centred"), 1, own)
    assert [s.advantage for s in live[0]] == [0.5, -0.5]
    assert [s.advantage for s in live[1]] == pytest.approx([1 + 1 / 6, -1 + 1 / 6, -0.5 + 1 / 6])
    assert (metrics["reward/math"], metrics["reward/code"]) == (0.5, pytest.approx(-1 / 6))


def test_a_verdict_without_a_reward_cannot_be_given_one(micro_recipe: Path) -> None:
    from motet.base.errors import UserError

    with pytest.raises(UserError, match=r"stage\.rl\.domain_rewards\.math\.infra_error"):
        micro.recipe(micro_recipe, "stage.rl.domain_rewards={math={infra_error=1.0}}")
