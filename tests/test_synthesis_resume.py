"""A synthesis, a filter and a judge that are killed again and again, against a server that misbehaves: nothing is paid
twice."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import micro
from fake_endpoint import FAULTS, FakeEndpoint, Question
from motet import pipeline
from motet.base import jsonl

AT_ONCE = 3
"""Requests under way at once, which a kill may lose."""
ENGINE = f"""
kind = "endpoint"
url = "URL"
model = "teacher"
batch_size = {AT_ONCE}
choices = 2
timeout_seconds = 0.7
"""
STAGES = {
    "synthesize": """
[stage.synthesize]
kind = "synthesize"
problems = [{ problems = "numbers" }]
count = 10
samples = 3
sampling = { max_tokens = 64 }
[stage.synthesize.teacher]
ENGINE
""",
    "filter": """
[engine]
ENGINE
[stage.filter]
kind = "filter"
problems = [{ problems = "numbers" }]
count = 10
n = 3
probe = 2
band = { alpha = 0.0, beta = 1.0 }
sampling = { max_tokens = 64 }
""",
    "clean": """
[stage.clean]
kind = "clean"
evaluate = false
data = [{ path = "FOLDER/open.jsonl" }]
[stage.clean.rules]
judge_audit = 5
[stage.clean.rules.judge]
ENGINE
""",
}
THINGS = ("moon", "river", "copper", "tulip", "engine", "harbour", "violin", "glacier", "lantern", "walnut", "comet")


FORKS = """
import json, os, sys
import torch, transformers
from motet import cli, pipeline
from motet.engine import endpoint
from motet.stages import clean, context, filter, synthesize
for line in sys.stdin:
    recipe, runs = json.loads(line)
    child = os.fork()
    if not child:
        os.close(1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        cli.cli(["run", recipe, "--runs", runs])
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    server = FakeEndpoint(FAULTS)
    yield server
    server.close()


def write_recipe(folder: Path, stage: str, url: str) -> Path:
    """The micro recipe with this one stage, whose texts come from the endpoint."""
    micro.write_recipe(folder)
    head = micro.RECIPE.partition("[defaults.sft]")[0].replace("PROBLEMS", str(folder / "problems.jsonl"))
    stages = f'stages = ["{stage}"]'
    head = "\n".join(stages if line.startswith("stages = ") else line for line in head.splitlines())
    texts = [
        {"prompt": f"What of the {thing}?", "completion": f"<think>{thing}s</think>A {thing} is old"}
        for thing in THINGS
    ]
    jsonl.write(folder / "open.jsonl", texts)
    path = folder / "kill.toml"
    text = STAGES[stage].replace("ENGINE", ENGINE).replace("URL", url).replace("FOLDER", str(folder))
    path.write_text(head + text)
    return path


class Runner:
    """Runs `motet run` in processes of its own, all forked from one that has imported what takes seconds to import."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def killed_at(self, recipe: Path, runs: Path, endpoint: FakeEndpoint, number: int) -> bool:
        """Runs the recipe and kills it when the server has received so many requests in all; False if it ended
        before."""
        reached = threading.Event()

        def look(received: int) -> None:
            if received >= number:
                reached.set()

        endpoint.each = look
        print(json.dumps([str(recipe), str(runs)]), file=self._in, flush=True)
        pid = int(self._out.readline())
        ended: list[int] = []
        wait = threading.Thread(target=lambda: ended.append(int(self._out.readline())))
        wait.start()
        while not ended and not reached.wait(0.01):
            pass
        if reached.is_set():
            os.kill(pid, signal.SIGKILL)
        wait.join()
        endpoint.killed()
        assert ended == [-signal.SIGKILL if reached.is_set() else 0]
        return reached.is_set()

    @property
    def _in(self) -> IO[str]:
        assert self._parent.stdin is not None
        return self._parent.stdin

    @property
    def _out(self) -> IO[str]:
        assert self._parent.stdout is not None
        return self._parent.stdout

    def close(self) -> None:
        self._parent.communicate()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def on_disk(stage: Path) -> dict[Question, int]:
    """The questions whose reply was kept, each with the number of its choices; a torn last member is none."""
    found = {}
    for file in (stage / "raw").glob("*.jsonl.gz"):
        try:
            with gzip.open(file, "rt") as lines:
                for line in lines:
                    row = json.loads(line)
                    found[row["request"]["messages"][-1]["content"], row["request"]["seed"]] = len(row["keys"])
        except EOFError:
            pass
    return found


def journal(stage: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((stage / "raw").glob("*.requests.jsonl")) for _, row in jsonl.read(file)]


def uninterrupted(recipe: Path, folder: Path) -> None:
    """Against a server that behaves, which needs no second try."""
    endpoint = FakeEndpoint()
    try:
        text = recipe.read_text()
        url = text.partition('url = "')[2].partition('"')[0]
        calm = recipe.with_name("calm.toml")
        calm.write_text(text.replace(url, endpoint.url))
        pipeline.run(micro.recipe(calm), folder, calm, console=False)
    finally:
        endpoint.close()
    assert set(endpoint.asked.values()) == {1}


@pytest.mark.parametrize(
    ("stage", "kills", "files"),
    [
        ("synthesize", (2, 9, 22), ("groups.jsonl", "data.jsonl", "funnel.json")),
        ("filter", (9, 21), ("groups.jsonl", "problems.jsonl", "filter.json")),
        ("clean", (4, 13, 24), ("data.jsonl", "funnel.json", "audit.jsonl")),
    ],
)
def test_killed_at_any_moment_no_reply_on_disk_is_asked_for_again_and_the_data_are_those_of_a_run_that_was_not(
    tmp_path: Path, endpoint: FakeEndpoint, runner: Runner, stage: str, kills: tuple[int, ...], files: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path, stage, endpoint.url)
    folder = tmp_path / "killed" / "micro" / stage
    lost = 0
    for number in (*kills, 10_000):
        before = on_disk(folder)
        asked_before = endpoint.asked.copy()
        assert runner.killed_at(recipe, tmp_path / "killed", endpoint, number) == (number < 10_000)
        again = [question for question in before if endpoint.asked[question] > asked_before[question]]
        assert again == []
        rows = journal(folder)
        ended = sum(row["event"] != "sent" for row in rows)
        lost_now = sum(row["event"] == "sent" for row in rows) - ended - lost
        assert lost_now <= AT_ONCE
        lost += lost_now
    # the server knows requests by name: what was paid is one reply for each that was needed, whatever the kills did
    assert len(endpoint.paid) == len(on_disk(folder)) == len(endpoint.names)
    assert {"timeout", "429", "500", "half", "malformed"} <= {fault for fault, count in endpoint.met.items() if count}
    whys = {row["why"] for row in rows if row["event"] == "failed"}
    assert whys == {"timeout", "cut", "malformed", "status 429", "status 500"}
    uninterrupted(recipe, tmp_path / "calm")
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "calm" / stage / name).read_bytes(), name
