"""Trackers are shown what the run folder holds; one that is missing, fails, hangs or is slow never stops a run."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import micro
from motet import pipeline
from motet.base import tracking
from motet.base.recipe import Recipe
from motet.base.run import Run
from motet.base.tracking import Background, Sink


class Kept:
    """A tracker that keeps what it is shown."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.alerts: list[tuple[str, str]] = []
        self.finished = False

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def run_with(tmp_path: Path) -> Iterator[Callable[[Callable[[], Sink]], Run]]:
    def make(begin: Callable[[], Sink]) -> Run:
        run = Run(tmp_path / "run", console=False)
        run.trackers = [Background("kept", begin)]
        return run

    yield make


def log_of(run: Run) -> str:
    return (run.folder / "log.txt").read_text()


def test_every_row_and_every_alarm_arrive_under_the_names_of_their_stage(
    run_with: Callable[[Callable[[], Sink]], Run],
) -> None:
    kept = Kept()
    with run_with(lambda: kept) as run:
        run.report("sft", 1, 2, {"loss/nll": 2.5, "odd": float("nan")}, ())
        run.report("rl", 1, 2, {"reward/mean": 0.5}, ())
        run.alert("rl step 1: drift", "why")
    assert kept.rows == [{"sft/loss/nll": 2.5, "sft/step": 1.0}, {"rl/reward/mean": 0.5, "rl/step": 1.0}]
    assert kept.alerts == [("rl step 1: drift", "why")] and kept.finished


@pytest.mark.parametrize("where", ["begin", "log", "alert", "finish"])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    where: str, run_with: Callable[[Callable[[], Sink]], Run]
) -> None:
    kept = Kept()

    def broken(*_: Any) -> Any:
        raise ConnectionError("no network")

    def begin() -> Sink:
        if where == "begin":
            broken()
        setattr(kept, where, broken)
        return kept

    with run_with(begin) as run:
        for step in range(1, 4):
            run.report("rl", step, 3, {"reward/mean": 0.5}, ())
            run.alert("title", "text")
    text = log_of(run)
    assert text.count("tracking: kept failed and gets no more figures (ConnectionError: no network)") == 1
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_hangs_is_left_behind(
    run_with: Callable[[Callable[[], Sink]], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 0.1)
    release = threading.Event()

    def begin() -> Sink:
        release.wait(30.0)
        return Kept()

    began = time.monotonic()
    with run_with(begin) as run:
        run.report("rl", 1, 1, {"reward/mean": 0.5}, ())
    assert time.monotonic() - began < 20.0 and "did not end within 0.1 s and was left behind" in log_of(run)
    release.set()


def test_rows_that_a_slow_tracker_has_no_room_for_are_left_out_and_counted(
    run_with: Callable[[Callable[[], Sink]], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAITING", 2)
    kept, release = Kept(), threading.Event()

    def begin() -> Sink:
        release.wait(30.0)
        return kept

    run = run_with(begin)
    for step in range(1, 6):
        run.report("rl", step, 5, {"x": 1.0}, ())
    release.set()
    run.close()
    assert [row["rl/step"] for row in kept.rows] == [1.0, 2.0]
    assert "kept was too slow for 3 rows, which are in metrics.jsonl" in log_of(run)


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path: Path, micro_recipe: Path) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    recipe = tracked(micro_recipe, tmp_path, "wandb")
    run = Run(tmp_path / "run", console=False)
    run.trackers = tracking.trackers(recipe, run.folder)
    run.close()
    assert (
        "tracking: wandb is not installed: python3 tools/install.py --extras wandb, or pip install 'motet[wandb]'"
        in log_of(run)
    )


# ---- the trackers' own interfaces


def tracked(micro_recipe: Path, folder: Path, *names: str) -> Recipe:
    """A few steps of SFT, shown to these trackers."""
    to = "[" + ", ".join(f"'{name}'" for name in names) + "]"
    overrides = ("stages=['sft']", "stage.sft.steps=3", "stage.sft.evaluate=false", f"tracking.to={to}")
    return micro.recipe(micro_recipe, *overrides, "tracking.mode=offline", "tracking.project=motet-test")


RECORDER = """
calls = []
def init(**given):
    calls.append(("init", given))
    return Run()
def log(row): calls.append(("log", row))
def alert(**given): calls.append(("alert", given))
def finish(): calls.append(("finish", None))
class Run:
    log, alert, finish = staticmethod(log), staticmethod(alert), staticmethod(finish)
    def define_metric(self, name, step_metric): calls.append(("define", (name, step_metric)))
"""


@pytest.fixture
def recorders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules in the trackers' places that write down how they are called."""
    for name in ("trackio", "wandb"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(RECORDER))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)


def test_a_run_is_shown_to_both_trackers_under_one_name_and_resumed_under_the_same(
    micro_recipe: Path, tmp_path: Path, recorders: None
) -> None:
    recipe = tracked(micro_recipe, tmp_path, "trackio", "wandb")
    pipeline.run(recipe, tmp_path / "run", console=False)
    calls = {name: list(sys.modules[name].calls) for name in ("trackio", "wandb")}
    for name, found in calls.items():
        assert [kind for kind, _ in found if kind != "define"] == ["init", "log", "log", "log", "finish"]
        given = found[0][1]
        assert (given["project"], given["name"], given["resume"]) == ("motet-test", "micro", "allow")
        assert given["config"]["seed"] == 3, name
        assert [row["sft/step"] for kind, row in found if kind == "log"] == [1.0, 2.0, 3.0]
    assert calls["wandb"][0][1]["mode"] == "offline" and ("define", ("sft/*", "sft/step")) in calls["wandb"]
    pipeline.run(recipe, tmp_path / "run", console=False)
    again = [given for kind, given in sys.modules["wandb"].calls if kind == "init"]
    assert again[0]["id"] == again[1]["id"]


def test_trackio_itself_keeps_the_rows(micro_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    pipeline.run(tracked(micro_recipe, tmp_path, "trackio"), tmp_path / "run", console=False)
    assert "tracking:" not in (tmp_path / "run" / "log.txt").read_text()
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as found:
        (count,) = found.execute("select count(*) from metrics").fetchone()
    assert count == 3


def test_wandb_itself_writes_an_offline_run(micro_recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pipeline.run(tracked(micro_recipe, tmp_path, "wandb"), tmp_path / "run", console=False)
    assert "tracking:" not in (tmp_path / "run" / "log.txt").read_text()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
