"""How far a judge and a person agree, by numbers that were worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from motet.base import jsonl
from motet.base.errors import UserError
from motet.cli import cli
from motet.funnel.audit import agreement, kappa
from motet.funnel.judge import COMPLAINT, JudgeRule


def rows(judge: str, human: str | None, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"rule": "judge", "drawn": "at random", "judge": judge, "human": human, **more}] * count


def of(tmp_path: Path, *groups: list[dict[str, Any]]) -> dict[str, Any]:
    jsonl.write(tmp_path / "audit.jsonl", [row for group in groups for row in group])
    return agreement(tmp_path)


def about(mean: float, low: float, high: float) -> Any:
    return pytest.approx({"mean": mean, "low": low, "high": high}, abs=6e-4)


def test_agreement_kappa_and_both_kinds_of_errors_are_those_of_the_table(tmp_path: Path) -> None:
    groups = [
        rows("sound", "sound", 20),
        rows("sound", "false", 5),
        rows("false", "sound", 10),
        rows("false", "false", 15),
    ]
    found = of(tmp_path, *groups, rows("sound", None, 3))["rules"]["judge"]
    assert (found["read"], found["unread"], found["complaints"]) == (50, 3, 25)
    assert found["table"] == {"sound": {"sound": 20, "false": 5}, "false": {"sound": 10, "false": 15}}
    # Wilson at 35 of 50: (0.7 + 1.96^2 / 100 -+ 1.96 sqrt(0.21 / 50 + 1.96^2 / 10000)) / (1 + 1.96^2 / 50)
    assert found["agreement"] == about(0.7, 0.5623, 0.8090)
    # by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5; (0.7 - 0.5) / 0.5 = 0.4; sqrt(0.21 / 50) / 0.5 = 0.12961
    assert found["kappa"] == about(0.4, 0.4 - 1.96 * 0.12961, 0.4 + 1.96 * 0.12961)
    assert found["upheld"] == about(15 / 25, 0.4073, 0.7660)
    assert found["missed"] == about(5 / 25, 0.0886, 0.3913)


def test_rows_drawn_for_their_complaint_count_for_complaints_alone(tmp_path: Path) -> None:
    fair = [rows("sound", "sound", 36), rows("sound", "false", 2), rows("false", "false", 2)]
    one = of(tmp_path, *fair)["rules"]["judge"]
    two = of(tmp_path, *fair, rows("false", "sound", 18, drawn=COMPLAINT))["rules"]["judge"]
    assert {key for key in one if one[key] != two[key]} == {"read", "complaints", "upheld"}
    assert (two["read"], two["complaints"], two["upheld"]["mean"]) == (58, 20, 0.1)


def test_two_who_always_say_the_same_word_have_no_kappa() -> None:
    assert kappa({"sound": {"sound": 9, "false": 0}, "false": {"sound": 0, "false": 0}}) is None
    assert kappa({"sound": {"sound": 0, "false": 0}, "false": {"sound": 0, "false": 0}}) is None
    opposite = kappa({"sound": {"sound": 0, "false": 5}, "false": {"sound": 5, "false": 0}})
    assert opposite == {"mean": -1.0, "low": -1.0, "high": -1.0}


def test_rules_are_told_apart(tmp_path: Path) -> None:
    other = [{**row, "rule": "manners"} for row in rows("false", "sound", 2)]
    found = of(tmp_path, rows("sound", "sound", 4), other)["rules"]
    assert {rule: row["agreement"]["mean"] for rule, row in found.items()} == {"judge": 1.0, "manners": 0.0}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([("sound", "sound", 29)], ["29 rows read, and 30 are needed"]),
        ([("sound", "sound", 40)], ["Only 0 of the rows read are complaints"]),
        # 5 of 20 upheld: at most 46.9 %; passed 20, none false; kappa 0.25
        ([("sound", "sound", 20), ("false", "sound", 15), ("false", "false", 5)],
         ["switch it off", "Kappa is not surely"]),
        # 10 of 20 upheld: 29.9 to 70.1 %
        ([("sound", "sound", 60), ("false", "sound", 10), ("false", "false", 10)],
         ["cannot be told yet", "Kappa is not surely"]),
        # all 20 upheld; 15 of 40 passed are false, at least 24.2 %
        ([("sound", "sound", 25), ("sound", "false", 15), ("false", "false", 20)], ["More than a tenth", "not surely"]),
        # agreement 100 of 100
        ([("sound", "sound", 50), ("false", "false", 50)], ["the judge can be kept"]),
        # chance alone
        ([("sound", "sound", 50), ("sound", "false", 50), ("false", "sound", 50), ("false", "false", 50)],
         ["cannot be told yet", "More than a tenth", "Kappa is below 0.4"]),
    ],
)  # fmt: skip
def test_what_is_advised_follows_from_the_intervals(
    tmp_path: Path, groups: list[tuple[str, str, int]], said: list[str]
) -> None:
    advice = of(tmp_path, *(rows(*group) for group in groups))["advice"]["judge"]
    assert len(advice) == len(said) and all(part in line for part, line in zip(said, advice, strict=True)), advice


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judge": "false", "human": False}, r"audit\.jsonl, line 2: field 'human' must be .* got False"),
        ({"judge": "false", "human": "False"}, "got 'False'"),
        ({"prompt": "x"}, "line 2: this is no row of an audit.jsonl"),
    ],
)
def test_a_row_filled_in_wrongly_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        of(tmp_path, rows("sound", "sound", 1), [given])


def test_without_a_row_or_a_file_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        agreement(tmp_path)
    with pytest.raises(UserError, match="it holds no row"):
        of(tmp_path)


def test_the_command_prints_the_table_and_the_advice(tmp_path: Path) -> None:
    of(
        tmp_path,
        rows("sound", "sound", 20),
        rows("sound", "false", 5),
        rows("false", "sound", 10),
        rows("false", "false", 15),
    )
    shown = CliRunner().invoke(cli, ["audit", str(tmp_path)]).output
    assert "agreement            70.0 % [56.2, 80.9]" in shown and "Cohen's kappa        0.40 [0.15, 0.65]" in shown
    assert "  judge: false              10      15" in shown
    told = json.loads(CliRunner().invoke(cli, ["audit", str(tmp_path / "audit.jsonl"), "--json"]).output)
    assert told["rules"]["judge"]["read"] == 50


def test_an_audit_has_a_fair_sample_and_enough_complaints_beside_it(tmp_path: Path) -> None:
    def answer(texts: Any) -> list[str]:
        return ["VERDICT: FALSE no" if "bad" in text else "VERDICT: SOUND" for text in texts]

    rule = JudgeRule(answer, tmp_path / "judge.jsonl", 40)
    list(rule.ask((n, f"{n}?", "bad" if n % 8 == 0 else "good") for n in range(400)))
    told = rule.audit(tmp_path / "audit.jsonl", lambda row: (f"{row}?", "text"))
    drawn = [row for _, row in jsonl.read(tmp_path / "audit.jsonl")]
    fair = [row for row in drawn if row["drawn"] == "at random"]
    complaints = [row for row in drawn if row["judge"] == "false"]
    assert (told["asked"], told["complaints"], told["sample"]) == (400, 50, 40)
    assert len(fair) == 40 and len(complaints) == 20 and len(drawn) == len({row["row"] for row in drawn}) < 60
    assert all(row["judge"] == "false" and row["complaint"] == "no" for row in drawn if row not in fair)
