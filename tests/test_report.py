from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.records import decode_group
from motet.insight.charts import Series, axis, histogram, line_chart, tick_labels
from motet.insight.report import compare_runs, terminal_summary, write_report
from motet.insight.wording import capped, duration, points, size, typeset
from synthetic_run import DOMAINS, HOSTILE, write_run

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and nesting of a page; `problems` names each tag that is closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = write_run(tmp_path_factory.mktemp("runs") / "synthetic")
    report = write_report(folder)
    return folder, report, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("small") / "synthetic", problems=6)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A small run to break."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


def test_report_json_holds_what_it_documents(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    assert json.loads((folder / "report.json").read_text()) == report
    documented = Path(__file__).parents[1] / "docs" / "report-json.md"
    for key in report:
        assert f"`{key}" in documented.read_text()
    assert list(report["evaluation"]) == ["base", "sft-1", "sft-2", "rl"]
    assert set(report["evaluation"]["rl"]) == {*DOMAINS, "all"}
    assert {"pass_at_1", "n", "truncated", "malformed"} <= set(report["evaluation"]["rl"]["math"])
    assert report["filter"]["live_share_before"] == 0.4
    assert report["filter"]["live_share_after"] == 0.79
    assert (report["filter"]["kept"], report["filter"]["of"], report["filter"]["stage"]) == (139, 500, "filter")
    assert (report["rl"]["steps"], report["rl"]["inner_steps"], report["rl"]["updates"]) == (24, 4, 96)
    assert report["rl"]["seconds"] == pytest.approx(24 * 6.75)
    assert report["seconds"]["sft-1"] == 20.0 + 35.0
    assert report["peak_memory_bytes"] == 1_400_000_000
    assert report["tokens"]["sft-1"]["trained"] == sum(1000 + step for step in range(1, 41))
    assert report["phases"]["rl"]["judge"] == pytest.approx(24 * 0.4)
    assert (report["status"], report["missing"]) == ("complete", [])


def test_teachers_are_compared_by_what_they_took_and_what_was_kept(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, report, html = finished
    big, own = report["teachers"]["synthesize"].values()
    # 1.5 and 0.132 that may have been charged, over 408 of 680 traces kept
    assert (big["failures"], big["yield"], big["cost"]) == (20, 0.6, pytest.approx(1.632))
    assert (big["cost_per_kept"], big["tokens_per_kept"]) == (pytest.approx(0.004), 225.0)
    assert (own["requests"], own["cost"], own["tokens_per_kept"]) == (None, None, 200.0)
    cells = cells_of(html, "big")
    assert cells == ["170", "190", "20", "20,400", "91,800", "680", "510", "408", "60.0 %", "225", "1.63", "0.004"]
    assert cells_of(html, "own") == ["86", "", "", "", "41,000", "344", "300", "205", "59.6 %", "200", "", ""]
    assert "what may have been charged without a usable reply is in it" in html


def cells_of(html: str, name: str) -> list[str]:
    """Of the table row of that name; a dash is empty."""
    row = html.partition(f"<tr><th>{name}</th>")[2].partition("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    return [cell.replace("\u00a0", " ").replace("\u2013", "") for cell in cells]


def test_pass_rates_are_those_of_the_rollout_files(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    groups = [decode_group(row) for _, row in jsonl.read(folder / "rl" / "evaluation.jsonl")]
    math = [r.verdict.kind == "correct" for g in groups if g.problem.domain == "math" for r in g.rollouts]
    shown = report["evaluation"]["rl"]["math"]
    assert shown["pass_at_1"]["mean"] == pytest.approx(sum(math) / len(math))
    assert (shown["n"], shown["rollouts"]) == (24, 96)


def test_the_verdict_names_what_fell_behind_a_risen_average(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, report, html = finished
    first, previous = report["comparisons"][:2]
    assert (first["from"], first["to"], previous["from"], previous["to"]) == ("base", "rl", "sft-2", "rl")
    assert first["domains"]["all"]["verdict"] == "better"
    assert previous["domains"]["instruction"]["verdict"] == "worse"
    assert previous["domains"]["math"]["verdict"] == "better"
    assert previous["domains"]["code"]["verdict"] == "no significant difference"
    assert re.search(r"Against sft-2, instruction fell by \d+\.\d points", report["headline"])
    assert any("the training reward of instruction rose" in alert for alert in report["alerts"])
    assert "No significant difference" in html
    difference = previous["domains"]["math"]["difference"]
    assert previous["domains"]["math"]["b"] - previous["domains"]["math"]["a"] == pytest.approx(difference["mean"])


def test_each_section_and_each_chart_is_on_the_page(finished: tuple[Path, dict[str, Any], str]) -> None:
    html = finished[2]
    page = Page(html)
    assert page.problems == []
    ids = [value for name, value in page.attributes if name == "id"]
    order = ["verdict", "pass", "data", "difficulty", "sft", "rl", "rollouts", "cost", "reproduce"]
    assert [i for i in ids if i in order] == order
    assert page.tags.count("svg") == 4 + 3 + 4 + 11  # pass@1 by domain and all, histograms, SFT, RL
    for text in ("310", "714", "42 of 142 problems kept", "recipes/synthetic.toml seed=7", "a &lt;tiny&gt; model"):
        assert text in html


def test_the_page_loads_nothing(finished: tuple[Path, dict[str, Any], str]) -> None:
    html = finished[2]
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "xlink:href", "action")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "http" not in html.replace("http-equiv", "")
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html
    assert len(html) < 300_000


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "hostile", problems=6, extra_text=HOSTILE)
    path = folder / "filter" / "filter.json"  # a hostile name of a domain reaches the charts' own escaping
    path.write_text(path.read_text().replace('"code"', json.dumps('x"><img src=x onerror=alert(1)>')))
    write_report(folder)
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.problems == []
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; {{ 7 * 7 }}" in html


def test_regressions_put_the_lost_solution_beside_the_failure(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, html = finished
    found = report["rollouts"]["regressions"]
    assert found
    groups = {}
    for stage in ("sft-1", "sft-2", "rl"):
        rows = [decode_group(row) for _, row in jsonl.read(folder / stage / "evaluation.jsonl")]
        groups[stage] = {g.problem.id: [r.verdict.kind for r in g.rollouts] for g in rows}
    for row in found:
        assert row["stage"] == "rl"
        assert "correct" not in groups["rl"][row["problem"]]
        assert max(groups[s][row["problem"]].count("correct") for s in ("sft-1", "sft-2")) >= 2
    assert all(row["verdict"] == "correct" for row in report["rollouts"]["best"])
    assert all(row["verdict"] != "correct" for row in report["rollouts"]["worst"])
    assert html.count("<article>") == sum(map(len, report["rollouts"].values()))


def test_surprises_are_rare_passes_and_the_surest_failures(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = finished
    files = [folder / "rl" / "evaluation.jsonl", *sorted((folder / "rl" / "rollouts").glob("*.jsonl"))]
    rollouts = [r for file in files for _, row in jsonl.read(file) for r in decode_group(row).rollouts]
    wrong = [r.completion.logprobs for r in rollouts if r.verdict.kind == "incorrect"]
    surest = max(sum(lp) / len(lp) for lp in wrong)
    found = report["rollouts"]["surprising"]
    assert {row["verdict"] for row in found} == {"correct", "incorrect"}
    assert any(f"{surest:.3g} nats" in row["why"] for row in found)


def test_the_terminal_summary_fits_a_hundred_columns_of_ascii(finished: tuple[Path, dict[str, Any], str]) -> None:
    text = terminal_summary(finished[1])
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()
    assert "139 of 500 problems kept, live groups 40.0 % before, 79.0 % after" in text
    assert "24 sampled batches x 4 inner steps in 2 min 42 s" in text


def test_a_run_killed_in_its_second_stage_is_reported_as_far_as_it_went(copy: Path) -> None:
    for stage in ("synthesize", "sft-2", "filter", "rl"):
        shutil.rmtree(copy / stage)
    running = {"stage": "sft-1", "kind": "sft", "status": "running", "seconds": 0.0}
    jsonl.write_json(copy / "sft-1" / "manifest.json", running)
    (copy / "sft-1" / "evaluation.json").unlink()
    rows = (copy / "metrics.jsonl").read_text().splitlines()[:17]
    (copy / "metrics.jsonl").write_text("\n".join(rows) + '\n{"time": 1, "stage": "sft-1", "st')  # torn by the kill
    report = write_report(copy)
    assert report["status"] == "unfinished"
    assert [s["status"] for s in report["stages"]] == ["done", "unfinished"] + ["not started"] * 4
    assert "Stage sft-1 did not finish after 17 recorded steps." in report["missing"]
    assert "metrics.jsonl: 1 line could not be read." in report["missing"]
    assert report["headline"].startswith("Only base has been evaluated: pass@1 is")
    assert (report["rl"], report["filter"], report["comparisons"]) == ({}, {}, [])
    assert report["seconds"]["sft-1"] == pytest.approx(17 * 0.5)
    html = (copy / "report.html").read_text()
    assert "Stage rl has not started." in html
    assert "No RL step was recorded." in html
    assert "Missing" in terminal_summary(report)


def test_a_stage_that_was_set_aside_is_no_stage_of_the_run(copy: Path) -> None:
    shutil.copytree(copy / "rl", copy / "rl.stale-1")
    assert [s["name"] for s in write_report(copy)["stages"]] == ["base", "sft-1", "synthesize", "sft-2", "filter", "rl"]
    (copy / "resolved.json").unlink()
    assert "rl.stale-1" not in write_report(copy)["seconds"]


def test_a_run_with_nothing_but_a_recipe_is_reported(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('stages = ["base"]')
    report = write_report(tmp_path)
    assert report["headline"].startswith("No stage has been evaluated")
    assert {"resolved.json is missing.", "lineage.json is missing."} <= set(report["missing"])
    assert Page((tmp_path / "report.html").read_text()).problems == []
    assert terminal_summary(report).isascii()


@pytest.mark.parametrize(
    "name",
    ["resolved.json", "lineage.json", "metrics.jsonl", "recipe.toml", "rl/manifest.json", "rl/evaluation.json",
     "rl/evaluation.jsonl", "sft-1/data.json", "synthesize/funnel.json", "synthesize/teachers.json",
     "filter/filter.json"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"domains": {"math": {}}, "rules": [{}], "histogram": {"m": []}}', "[1"]
)
def test_any_file_may_be_absent_or_broken(copy: Path, name: str, content: str | None) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    report = write_report(copy)
    assert terminal_summary(report)
    assert Page((copy / "report.html").read_text()).problems == []
    if content is None:
        assert report["missing"]


def test_a_loss_that_is_not_finite_breaks_the_line_and_not_the_report(copy: Path) -> None:
    rows = [row for _, row in jsonl.read(copy / "metrics.jsonl")]
    rows[5]["loss/nll"] = float("nan")
    jsonl.write(copy / "metrics.jsonl", rows)
    assert write_report(copy)["sft"]["sft-1"]["steps"] == 40
    points_: list[tuple[float, float | None]] = [(1, 2.0), (2, 1.5), (3, None), (4, 1.0), (5, 0.5)]
    assert line_chart([Series("loss", "ink", points_)], "free", "loss").count("<polyline") == 2


def test_a_folder_that_is_no_run_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        compare_runs(tmp_path / "nowhere", tmp_path)


def test_a_run_compared_with_itself_differs_nowhere(finished: tuple[Path, dict[str, Any], str]) -> None:
    text = compare_runs(finished[0], finished[0])
    assert "The recipes are equal." in text
    assert text.count("0.0 to 0.0") == 4 * 4  # four stages, three domains and all
    assert "better" not in text
    assert max(len(line) for line in text.splitlines() if "(" not in line) <= 100


def test_comparing_shows_what_differs_and_pairs_the_last_stages_of_other_names(small: Path, copy: Path) -> None:
    (copy / "rl").rename(copy / "grpo")
    text = (copy / "resolved.json").read_text().replace('"rl"', '"grpo"').replace('"seed": 7', '"seed": 8')
    (copy / "resolved.json").write_text(
        text.replace('"seed": 8', '"seed": 8, "folder": "models/a-long/name-without-a-space-in-it"')
    )
    settings = json.loads((copy / "base" / "evaluation.json").read_text())
    settings["settings"]["temperature"] = 0.6
    jsonl.write_json(copy / "base" / "evaluation.json", settings)
    shown = compare_runs(small, copy)
    assert "  seed: 7 in A, 8 in B" in shown
    assert "  folder: unset in A, ... name-without-a-space-in-it in B" in shown
    assert "rl in A, grpo in B" in shown
    assert "Evaluation settings differ: temperature 1.0 against 0.6." in shown


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert axis([0.13, 0.87], "zero") == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert axis([3.0, 3.0], "free") == pytest.approx([2.6, 2.8, 3.0, 3.2, 3.4])
    assert axis([0.0, 0.0], "share")[-1] == pytest.approx(0.01)
    assert axis([2e-6, 7e-4], "log") == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3])
    assert tick_labels([0.0, 0.25, 0.5], "zero") == ["0.00", "0.25", "0.50"]
    assert tick_labels([0.0, 0.005, 0.01], "share") == ["0.0 %", "0.5 %", "1.0 %"]


def test_the_band_of_a_histogram_is_in_full_colour() -> None:
    svg = histogram([30, 22, 18, 14, 21, 61], (1, 4), "d0", "difficulty")
    assert svg.count('class="bar d0"') == 4
    assert svg.count('class="bar d0 out"') == 2


def test_numbers_are_worded_for_readers() -> None:
    assert [duration(s) for s in (None, 9.94, 60.2)] == ["-", "9.9 s", "1 min 0 s"]
    assert [duration(s) for s in (3599.6, 7260)] == ["1 h 0 min", "2 h 1 min"]
    assert [size(n) for n in (900, 1_500_000, 2_345_000_000)] == ["900 B", "2 MB", "2.35 GB"]
    assert [points(d) for d in (0.0341, -0.002, 0.0001, None)] == ["+3.4", "-0.2", "0.0", "-"]
    assert typeset("sft-2 fell by -3.4 points (5 %)") == "sft-2 fell by \u22123.4 points (5\u00a0%)"
    assert capped("a" * 60 + "b" * 60, 90) == "a" * 60 + "\n[... 30 characters left out ...]\n" + "b" * 30


def test_importing_the_report_imports_neither_numpy_nor_jinja_nor_torch() -> None:
    heavy = "{'numpy', 'torch', 'jinja2', 'transformers'}"
    code = f"import sys, motet.insight.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
