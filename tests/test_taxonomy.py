"""Nine kinds of verdict, the same everywhere: each scored one with a reward and a counter, two never scored."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from motet.base.recipe import Algorithm, Rewards
from motet.base.records import (
    SCORED,
    UNSCORED,
    VERDICT_KINDS,
    Completion,
    Group,
    Problem,
    Rollout,
    Verdict,
    VerdictKind,
    count_kinds,
)
from motet.base.statistics import evaluate_groups
from motet.rl.advantages import reward_of
from motet.rl.experience import build
from motet.verify.judge import apply

ONE_OF_EACH = dict.fromkeys(VERDICT_KINDS, 1)


def group(*kinds: VerdictKind) -> Group:
    rollouts = tuple(
        Rollout((5,), Completion("x", (7, 1), (-0.5, -0.5), "end", 0), Verdict(k, None if k in UNSCORED else 0.0))
        for k in kinds
    )
    return Group(Problem("p", ({"role": "user", "content": "?"},), "math", "1", "math"), rollouts)


def test_every_scored_kind_has_a_reward_of_its_own_and_the_two_unscored_ones_have_none() -> None:
    assert set(Rewards.model_fields) == set(SCORED) == set(get_args(VerdictKind)) - {"infra_error", "invalid_problem"}
    table = Rewards.model_validate({kind: float(n) for n, kind in enumerate(SCORED, 1)}).model_dump()
    earned = {kind: reward_of(Verdict(kind, None), table) for kind in VERDICT_KINDS}
    assert [earned[kind] for kind in SCORED] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert earned["infra_error"] is None and earned["invalid_problem"] is None


def test_a_truncated_completion_is_masked_by_default_and_can_be_given_a_reward() -> None:
    assert reward_of(Verdict("truncated", None), Rewards().model_dump()) is None
    assert reward_of(Verdict("truncated", None), Rewards(truncated=-1.0).model_dump()) == -1.0


def test_rl_counts_every_kind_and_learns_from_the_scored_ones_alone() -> None:
    rewards = Rewards(truncated=0.0, malformed=-1.0)
    live, metrics = build([group(*VERDICT_KINDS)], rewards, Algorithm(), 1)
    assert {kind: metrics[f"verdict/{kind}"] for kind in VERDICT_KINDS} == ONE_OF_EACH
    assert [len(samples) for samples in live] == [7]


def test_an_evaluation_counts_every_kind_and_leaves_the_unscored_out_of_its_rates() -> None:
    row = evaluate_groups([group(*VERDICT_KINDS)], 100, 1)["domains"]["math"]
    assert row["verdicts"] == ONE_OF_EACH and row["unjudged"] == 2
    assert row["pass_at_1"]["mean"] == pytest.approx(1 / 7)


def test_a_filter_counts_every_kind_and_places_problems_by_the_scored_ones() -> None:
    from motet.base.recipe import FilterStage
    from motet.stages.filter import describe, in_band

    stage = FilterStage.model_validate({"kind": "filter", "problems": [{"problems": "x"}], "n": 3})
    groups = [group("correct", "incorrect", "infra_error"), group("invalid_problem", "infra_error", "correct")]
    assert describe(groups, [], stage)["verdicts"] == count_kinds(
        ["correct", "incorrect", "infra_error", "invalid_problem", "infra_error", "correct"]
    )
    # one of two judged ones is in the band; one of one is too easy, whatever could not be judged
    assert [in_band(g, stage) for g in groups] == [True, False]


def test_the_funnel_of_synthesis_counts_every_kind_and_keeps_no_unjudged_trace(tmp_path: Any) -> None:
    from types import SimpleNamespace

    from motet.base.recipe import Chat, TraceRules
    from motet.funnel.contamination import Index
    from motet.funnel.scan import Settings
    from motet.funnel.sift import sift
    from motet.stages.sieve import of_groups, verdicts

    chat: Any = SimpleNamespace(config=Chat(think="off"), encode=lambda text: tuple(text))
    groups = [group(*VERDICT_KINDS)]
    settings = Settings(TraceRules(), Index({}), "off", False)
    funnel = sift(of_groups(groups, TraceRules(), chat), settings, tmp_path / "work", tmp_path / "out.jsonl")
    assert funnel["kept"] == 1 and verdicts(groups) == ONE_OF_EACH == funnel["verdicts"]
    (rule,) = [rule for rule in funnel["rules"] if rule["dropped"]]
    assert rule["rule"] == "answer" and rule["reasons"] == {kind: 1 for kind in VERDICT_KINDS if kind != "correct"}


def test_the_report_shows_the_counters_of_every_stage_and_raises_an_alarm_for_the_unscored(tmp_path: Any) -> None:
    import synthetic_run
    from motet.base import jsonl
    from motet.insight.report import write_report

    folder = synthetic_run.write_run(tmp_path / "run")
    found = jsonl.read_json(folder / "filter" / "filter.json")
    jsonl.write_json(folder / "filter" / "filter.json", {**found, "verdicts": ONE_OF_EACH | {"infra_error": 5}})
    found = jsonl.read_json(folder / "synthesize" / "funnel.json")
    jsonl.write_json(folder / "synthesize" / "funnel.json", {**found, "verdicts": ONE_OF_EACH})
    report = write_report(folder)
    assert report["verdicts"]["filter"]["rollouts"] == ONE_OF_EACH | {"infra_error": 5}
    assert report["verdicts"]["synthesize"]["rollouts"] == ONE_OF_EACH
    text = "\n".join(report["alerts"])
    assert "filter: 5 rollouts could not be judged (infra_error)" in text
    assert "synthesize: 1 rollout could not be judged (invalid_problem)" in text
    assert 'id="verdicts"' in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "returned",
    [
        True,
        Verdict("right", 1.0),  # type: ignore[arg-type]
        Verdict("correct", None),
        Verdict("correct", float("nan")),
        Verdict("infra_error", 0.0),
        Verdict("correct", 1.0, 3),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_verdict_of_the_taxonomy_is_the_verifiers_own_failure(returned: Any) -> None:
    verdict = apply(lambda problem, answer: returned, group("correct").problem, "x")
    assert (verdict.kind, verdict.score) == ("infra_error", None)
