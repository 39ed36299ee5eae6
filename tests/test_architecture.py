"""The floors of the code, drawn from its imports: they only go down."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"base"}),
    frozenset({"verify", "tasks", "model", "parallel"}),
    frozenset({"data", "funnel", "engine", "interop"}),
    frozenset({"train", "rl", "fit"}),
    frozenset({"stages", "insight"}),
    frozenset({"pipeline", "preflight", "experiments", "plan", "doctor"}),
    frozenset({"cli", "__main__"}),
)
HALVES = (frozenset({"verify", "tasks"}), frozenset({"model", "parallel"}))
"""Of floor 1: neither knows the other, in particular no model knows of problems and rewards."""
LIGHT = ("base", "verify", "tasks", "funnel")
HEAVY = ("sympy", "math_verify", "reasoning_gym", "pyarrow", "numpy", "httpx", "jinja2")


def floor_of(part: str) -> int:
    for floor, parts in enumerate(FLOORS):
        if part in parts:
            return floor
    raise AssertionError(f"motet.{part} has no floor: give it one in FLOORS")


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import at any level, `package` being where the module lies. A string that is a module
    path of motet counts too: a table of things to import on demand holds such strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            if module == "motet":
                yield from ((node.lineno, f"motet.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(r"(motet\.\w+(\.\w+)*)(:\w+)?", node.value)
            yield from [(node.lineno, match[1])] if match else []


def violations(module: str, text: str, package: str | None = None) -> list[str]:
    """What is wrong with the imports of `module`, "motet.rl.rollouts" say."""
    part = module.split(".")[1]
    found = []
    for line, target in imports(ast.parse(text, filename=module), package or module.rpartition(".")[0]):
        where = f"{module}, line {line}: imports {target}"
        if part in LIGHT and target.split(".")[0] in ("torch", "transformers"):
            found.append(f"{where}; {part} stays light")
        if not target.startswith("motet.") or target.split(".")[1].startswith("__"):
            continue
        other = target.split(".")[1]
        if floor_of(other) > floor_of(part):
            found.append(f"{where}, floor {floor_of(other)}, from floor {floor_of(part)}")
        if any(part in half and other in FLOORS[1] - half for half in HALVES):
            found.append(f"{where}; the two halves of floor 1 do not know each other")
    return found


def modules() -> list[Path]:
    return sorted(
        path
        for path in (SOURCE / "motet").rglob("*.py")
        if path.parent != SOURCE / "motet" or path.name != "__init__.py"
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_only_go_down() -> None:
    assert len(modules()) > 10
    found = []
    for path in modules():
        package = ".".join(path.relative_to(SOURCE).parent.parts)
        found += violations(name_of(path), path.read_text(encoding="utf-8"), package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "text", "problem"),
    [
        ("motet.base.run", "from motet.engine.protocol import Engine", "floor 2, from floor 0"),
        ("motet.data.chat", "def f():\n    import motet.train.learner", "line 2: imports motet.train.learner, floor 3"),
        ("motet.stages.rl", "from motet import pipeline", "floor 5, from floor 4"),
        ("motet.insight.plan", "from ..cli import main", "floor 6, from floor 4"),
        ("motet.engine.protocol", 'ENGINES = {"x": "motet.rl.rollouts:collect"}', "floor 3, from floor 2"),
        ("motet.verify.math", "from motet.model.load import load_model", "the two halves"),
        ("motet.model.load", "from motet.tasks import TASKS", "the two halves"),
        ("motet.tasks.addition", "def f():\n    import torch.nn", "stays light"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, text: str, problem: str) -> None:
    (found,) = violations(module, text)
    assert problem in found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("motet.tasks.addition", "from motet.verify import VERIFIERS"),
        ("motet.stages.rl", "from ..rl.rollouts import collect\nimport torch"),
        ("motet.cli", "from motet import __version__, pipeline"),
        ("motet.base.run", '"""motet.cli prints this."""'),
    ],
)
def test_an_import_on_the_same_floor_or_below_is_fine(module: str, text: str) -> None:
    assert violations(module, text) == []


def loaded_by(program: str, names: tuple[str, ...]) -> set[str]:
    """Which of the packages `names` a fresh Python has loaded after `program`."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    code = f"import sys\n{program}\nprint('loaded:', *(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_the_light_floors_import_no_torch() -> None:
    light = [name_of(path) for path in modules() if path.relative_to(SOURCE).parts[1] in LIGHT]
    assert loaded_by("\n".join(f"import {name}" for name in light), ("torch", "transformers")) == set()


def test_importing_the_verifiers_imports_nothing_heavy() -> None:
    assert loaded_by("import motet.verify", ("torch", "transformers", *HEAVY)) == set()


def test_the_help_of_the_command_imports_no_torch() -> None:
    program = """
from motet.cli import main
sys.argv = ["motet", "--help"]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""
    assert loaded_by(program, ("torch", "transformers")) == set()
