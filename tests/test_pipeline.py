"""What is done is not done again, what was changed is, and what cannot be done is said plainly (exit code 2)."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import micro
from motet import cli, pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.stages import evaluate, sft
from motet.train import checkpoint

STAGES = list(micro.STAGES)
Motet = Callable[..., tuple[int, str, str]]


@pytest.fixture
def motet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Motet:
    """Runs a command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["motet", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run of one's own; --runs is its parent."""
    folder = tmp_path / "runs" / "micro"
    shutil.copytree(finished_run, folder)
    return folder


def states(recipe: Path, folder: Path, *overrides: str, start: str | None = None) -> dict[str, str]:
    return {item.name: item.state for item in pipeline.plan(micro.recipe(recipe, *overrides), folder, start)}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of a run's stages."""
    paths = [path for stage in (*STAGES, "base-model") for path in (folder / stage).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


# ---- done and not done


def test_a_finished_run_says_for_every_stage_what_it_was_made_from_and_reports_without_gaps(
    finished_run: Path, micro_recipe: Path
) -> None:
    planned = pipeline.plan(micro.recipe(micro_recipe), finished_run)
    assert [(item.name, item.state) for item in planned] == [(stage, "done") for stage in STAGES]
    assert {item.name: item.reads for item in planned} == {
        "base": ("base-model",), "sft": ("base-model",), "synthesize": ("sft",), "sft-2": ("sft", "synthesize"),
        "filter": ("sft-2",), "rl": ("sft-2", "filter"),
    }  # fmt: skip
    for item in planned:
        manifest = jsonl.read_json(finished_run / item.name / "manifest.json")
        assert (manifest["status"], manifest["hash"], manifest["kind"]) == ("done", item.hash, item.stage.kind)
        assert manifest["seconds"] > 0 and set(manifest["inputs"]) == set(item.reads)
    report = jsonl.read_json(finished_run / "report.json")
    assert report["missing"] == [] and (finished_run / "report.html").stat().st_size > 10_000
    assert (finished_run / "recipe.toml").read_text() == micro_recipe.read_text()
    assert jsonl.read_json(finished_run / "lineage.json")["seed"] == 3


def test_a_second_run_touches_no_file_of_a_finished_stage(copied: Path, micro_recipe: Path, motet: Motet) -> None:
    before, rows = files(copied), (copied / "metrics.jsonl").read_bytes()
    code, out, err = motet("run", micro_recipe, "--runs", copied.parent)
    assert code == 0 and "report: " in out and err.count("already done") == len(STAGES)
    assert files(copied) == before and (copied / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("stage.rl.steps=3", ["rl"]),
        ("stage.filter.n=4", ["filter", "rl"]),
        ("stage.synthesize.samples=2", ["synthesize", "sft-2", "filter", "rl"]),
        ("seed=4", STAGES),
        ("model.tiny.layers=1", STAGES),
        ("stage.rl.checkpoint_every=1", []),
        ("verification.workers=2", []),
        ("threads=2", []),
    ],
)
def test_a_changed_setting_redoes_what_it_is_read_by_and_nothing_before(
    finished_run: Path, micro_recipe: Path, override: str, redone: list[str]
) -> None:
    found = states(micro_recipe, finished_run, override)
    assert found == {stage: "stale" if stage in redone else "done" for stage in STAGES}


def test_an_edited_data_file_is_another_input(finished_run: Path, micro_recipe: Path) -> None:
    problems = micro_recipe.parent / "problems.jsonl"
    whole = problems.read_text()
    try:
        problems.write_text(whole + '{"prompt": "Say 1", "answer": 1}\n')
        assert set(states(micro_recipe, finished_run).values()) == {"stale"}
    finally:
        problems.write_text(whole)
    assert set(states(micro_recipe, finished_run).values()) == {"done"}


def test_from_redoes_a_stage_and_all_after_it(finished_run: Path, micro_recipe: Path, motet: Motet) -> None:
    found = states(micro_recipe, finished_run, start="sft-2")
    assert [stage for stage in STAGES if found[stage] == "stale"] == ["sft-2", "filter", "rl"]
    code, out, _ = motet("run", micro_recipe, "--runs", finished_run.parent, "--from", "filter", "--dry-run")
    assert code == 0 and "filter         filter      reads sft-2" in out and out.count("out of date, done again") == 2
    code, _, err = motet("run", micro_recipe, "--runs", finished_run.parent, "--from", "filtr")
    assert code == 2 and "--from filtr: no such stage; did you mean 'filter'?" in err
    code, _, err = motet("run", micro_recipe, "--runs", finished_run.parent, "--from", "xyz", "--dry-run")
    assert code == 2 and "known are 'base'" in err and not err.rstrip().endswith(";")
    code, _, err = motet("clean", micro_recipe, "--runs", finished_run.parent)
    assert code == 2 and "the recipe has no clean stage; its stages are base, " in err


def test_a_changed_stage_is_set_aside_and_done_again_while_the_others_are_left_alone(
    copied: Path, micro_recipe: Path, motet: Motet
) -> None:
    before = files(copied)
    old = micro.weights(copied, "rl")
    for attempt, steps in enumerate((1, 2), 1):
        assert motet("run", micro_recipe, "--runs", copied.parent, f"stage.rl.steps={steps}")[0] == 0
        aside = copied / f"rl.stale-{attempt}"
        assert micro.same_weights(micro.weights(copied, aside.name), old)
        assert [row["step"] for row in micro.metrics(copied, "rl")] == list(range(1, steps + 1))
        old = micro.weights(copied, "rl")
    kept = {name: stat for name, stat in before.items() if "/micro/rl/" not in name}
    assert {name: stat for name, stat in files(copied).items() if "/micro/rl/" not in name} == kept
    assert jsonl.read_json(copied / "report.json")["missing"] == []


def test_one_stage_alone_runs_when_what_it_reads_is_done(copied: Path, micro_recipe: Path, motet: Motet) -> None:
    runs = ("--runs", copied.parent)
    code, _, err = motet("rl", micro_recipe, *runs, "stage.filter.n=4")
    assert code == 2 and "stage filter is not done (stale) and rl reads it: `motet run` first" in err
    code, _, err = motet("sft", micro_recipe, *runs)
    assert code == 2 and "--stage NAME: the recipe's sft stages are sft, sft-2; name one" in err
    code, _, err = motet("sft", micro_recipe, *runs, "--stage", "sft-2", "stage.sft-2.steps=2")
    assert code == 0 and "sft-2: done in" in err
    assert len(micro.metrics(copied, "sft-2")) == 2 and len(micro.metrics(copied, "rl")) == 8


def test_a_run_may_be_started_from_the_recipe_in_its_own_folder(copied: Path, motet: Motet) -> None:
    assert motet("run", copied / "recipe.toml", "--runs", copied.parent)[0] == 0


def test_control_runs_start_from_a_model_folder_and_leave_stages_out(
    finished_run: Path, micro_recipe: Path, tmp_path: Path, motet: Motet
) -> None:
    model = finished_run / "sft" / "model"
    overrides = ['stages=["rl"]', "stage.rl.problems=[{problems='numbers'}]", "stage.rl.steps=1", "name=control"]
    overrides += [f"model={{path='{model}', device='cpu'}}", "stage.rl.evaluate=false"]
    assert motet("run", micro_recipe, "--runs", tmp_path, *overrides)[0] == 0
    assert not micro.same_weights(micro.weights(tmp_path / "control", "rl"), micro.weights(finished_run, "sft"))
    assert not (tmp_path / "control" / "base-model").exists()


# ---- what a user can mend


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=['sft']", "stage.sft.context=4"],
         "stage.sft: no conversation is left to train on: numbers: 70 rows, dropped {'longer than the context': 70}"),
        (["stages=['base']", "evaluation.sampling.max_tokens=60"],
         "a prompt of 6 tokens and sampling.max_tokens = 60 are 66 positions, over the model's 64"),
        (["stages=['filter']", "stage.filter.count=4"], "stage.filter: no problem of 4 lies in its band"),
        (["stages=['synthesize']", "stage.synthesize.count=4"], "stage.synthesize: no trace of 12 passed"),
        (["stages=['base']", "model={path='HERE'}"], "HERE: no model folder, config.json is missing (it holds "),
        (["stages=['base']", "model={path='HERE/no'}"], "HERE/no: no such model folder. Give a Hugging Face folder"),
        (["problems.numbers.path='HERE/no.jsonl'"], "HERE/no.jsonl: no such file or folder"),
        (["problems.numbers.path='HERE/torn.jsonl'"], "HERE/torn.jsonl, line 2: not JSON"),
        (["problems.numbers.path='HERE/field.jsonl'"], "HERE/field.jsonl, line 1: field 'answer'"),
        (["problems.numbers.path='HERE/gold.jsonl'"], "problem 'p1'"),
        (["seed=x"], "seed: Input should be a valid integer"),
        (["stages=['base']", "engine={kind='scripted',script='HERE/no.jsonl'}"],
         "engine.script: HERE/no.jsonl: no such file"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_said_without_a_traceback_and_ends_with_2(
    micro_recipe: Path, tmp_path: Path, motet: Motet, overrides: list[str], message: str
) -> None:
    here = tmp_path / "data"
    here.mkdir()
    (here / "torn.jsonl").write_text('{"prompt": "a", "answer": 1}\n{"prompt": \n')
    (here / "field.jsonl").write_text('{"prompt": "a", "anser": 1}\n')
    (here / "gold.jsonl").write_text('{"id": "p1", "prompt": "a", "answer": "no number at all \\\\frac{"}\n')
    arguments = [override.replace("HERE", str(here)) for override in overrides]
    code, _, err = motet("run", micro_recipe, "--runs", tmp_path / "runs", *arguments)
    assert code == 2 and "motet: " in err and "Traceback" not in err
    assert message.replace("HERE", str(here)) in err


def test_a_run_folder_that_cannot_be_made_is_said(micro_recipe: Path, motet: Motet) -> None:
    code, _, err = motet("run", micro_recipe, "--runs", micro_recipe)
    assert code == 2 and "no run can be written there" in err


class FullDisk:
    """Writes fail from the `after`-th call on, until `freed`."""

    def __init__(self, write: Callable[..., Any], after: int) -> None:
        self.write, self.left, self.freed = write, after, False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.left == 0 and not self.freed:
            raise OSError(28, "No space left on device")
        self.left = max(0, self.left - 1)
        return self.write(*arguments, **named)


@pytest.mark.parametrize(("module", "name", "after"), [(jsonl, "write", 2), (checkpoint.dcp, "save", 0)])
def test_a_full_disk_ends_with_2_loses_nothing_finished_and_the_same_command_goes_on(
    copied: Path, finished_run: Path, micro_recipe: Path, motet: Motet, monkeypatch: pytest.MonkeyPatch,
    module: Any, name: str, after: int,
) -> None:  # fmt: skip
    shutil.rmtree(copied / "rl")
    before = files(copied)
    disk = FullDisk(getattr(module, name), after)
    monkeypatch.setattr(module, name, disk)
    code, _, err = motet("run", micro_recipe, "--runs", copied.parent)
    assert code == 2 and "motet: the disk is full. Nothing that was finished is lost" in err and "Traceback" not in err
    assert files(copied).items() >= before.items()
    disk.freed = True
    code, _, err = motet("run", micro_recipe, "--runs", copied.parent)
    assert code == 0 and "rl: rl (goes on)" in err
    assert micro.same_weights(micro.weights(copied, "rl"), micro.weights(finished_run, "rl"))
    assert [row["step"] for row in micro.metrics(copied, "rl")] == list(range(1, 9))


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(
    micro_recipe: Path, tmp_path: Path, motet: Motet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(jsonl, "write_json", broken)
    with pytest.raises(OSError, match="Input/output"):
        motet("run", micro_recipe, "--runs", tmp_path)


# ---- the other commands


def test_help_lists_the_commands_in_the_order_in_which_a_user_meets_them(motet: Motet) -> None:
    code, out, _ = motet("--help")
    names = [line.split()[0] for line in out.partition("Commands:")[2].strip().splitlines()]
    assert code == 0 and names[:7] == ["run", "sft", "synthesize", "clean", "filter", "rl", "evaluate"]
    code, out, _ = motet("--version")
    assert code == 0 and out.startswith("motet, version ")


@pytest.mark.parametrize("arguments", [["runn"], ["run"], ["run", "x.toml", "--form", "rl"]])
def test_a_command_line_that_is_none_ends_with_2(motet: Motet, arguments: list[str]) -> None:
    code, _, err = motet(*arguments)
    assert code == 2 and "Usage: " in err


def test_explain_tasks_and_suites_print_what_there_is(motet: Motet) -> None:
    assert motet("explain", "clip_high")[1].startswith("stage.rl.algorithm.clip_high  default 0.28\n")
    code, _, err = motet("explain", "clip_hihg")
    assert code == 2 and err.startswith("motet: no key 'clip_hihg'; did you mean")
    assert "addition" in motet("tasks")[1] and "aime24" in motet("suites")[1]


def test_check_reads_the_problems_and_trains_nothing(micro_recipe: Path, tmp_path: Path, motet: Motet) -> None:
    code, out, _ = motet("check", micro_recipe, "--json")
    found = json.loads(out)
    (numbers,) = found["problems"]
    assert (code, found["fine"], found["counts"]) == (0, True, {})
    assert (numbers["source"], numbers["problems"], numbers["proved"]) == ("numbers", 90, 90)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_resolved_recipe_and_the_plan_and_makes_nothing(
    micro_recipe: Path, tmp_path: Path, motet: Motet
) -> None:
    code, out, _ = motet("run", micro_recipe, "--runs", tmp_path, "--dry-run", "seed=9")
    resolved, end = json.JSONDecoder().raw_decode(out)
    assert code == 0 and resolved["seed"] == 9 and resolved["stage"]["rl"]["algorithm"]["clip_high"] == 0.28
    assert out[end:].count("to do") == len(STAGES) and not list(tmp_path.iterdir())


def test_report_and_compare_read_finished_runs(copied: Path, finished_run: Path, motet: Motet) -> None:
    (copied / "report.html").unlink()
    assert motet("report", copied)[0] == 0 and (copied / "report.html").exists()
    assert motet("compare", finished_run, copied)[0] == 0
    code, _, err = motet("report", copied.parent)
    assert code == 2 and "no run folder (resolved.json is missing)" in err


def test_a_broken_run_leaves_what_was_finished_to_be_reported(micro_recipe: Path, tmp_path: Path, motet: Motet) -> None:
    overrides = ["stages=['base','filter']", "stage.filter.count=4"]
    assert motet("run", micro_recipe, "--runs", tmp_path, *overrides)[0] == 2
    code, out, _ = motet("report", tmp_path / "micro")
    assert code == 0 and "Stage filter did not finish." in out


def test_a_stage_that_reads_what_is_not_there_is_refused_before_anything_is_made(
    micro_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="stage sft-2 is not done"):
        pipeline.run(micro.recipe(micro_recipe), tmp_path / "run", only=["rl"])
    assert not (tmp_path / "run").exists()


def test_another_evaluation_trains_nothing_again_and_keeps_the_old_figures(tmp_path: Path) -> None:
    recipe = micro.recipe(micro.write_recipe(tmp_path))
    pipeline.run(recipe, tmp_path / "run", console=False)
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/model/model.safetensors")}
    changed = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"samples": 3})})
    states = {item.name: item.state for item in pipeline.plan(changed, tmp_path / "run")}
    assert set(states.values()) == {"unevaluated", "done"}
    pipeline.run(changed, tmp_path / "run", console=False)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    for name in (name for name, state in states.items() if state == "unevaluated"):
        folder = tmp_path / "run" / name
        assert jsonl.read_json(folder / "evaluation.json")["domains"]["all"]["k"] == 3
        assert (folder / "stale-1.evaluation.json").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_the_learner_is_left_when_its_weights_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """Its blocks refer to themselves: only garbage collection frees them. An engine asleep has frozen what it saw."""
    blocks: list[weakref.ref[Any]] = []
    others = [item for item in gc.get_objects() if type(item) is LlamaDecoderLayer]  # of other tests
    left: list[int] = []
    learned = sft.run

    def run(*given: Any) -> None:
        learned(*given)
        own = [item for item in gc.get_objects() if type(item) is LlamaDecoderLayer]
        blocks.extend(weakref.ref(item) for item in own if not any(item is other for other in others))
        if frozen:
            gc.freeze()

    monkeypatch.setattr(sft, "run", run)
    monkeypatch.setattr(evaluate, "run", lambda *_: left.append(sum(block() is not None for block in blocks)))
    own = micro.recipe(micro.write_recipe(tmp_path), "stages=['sft']", "stage.sft.steps=1", "model.recompute='full'")
    gc.collect()
    gc.disable()
    try:
        pipeline.run(own, tmp_path / "run", console=False)
    finally:
        gc.enable()
        gc.unfreeze()
    assert len(blocks) == 2 and left == [0]
