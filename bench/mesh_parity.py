"""A step on a mesh of eight processes (gloo, CPU) against the same step in one: losses, gradients, log-probabilities.

    OMP_NUM_THREADS=1 python bench/mesh_parity.py            # 2 x 2 x 2
    OMP_NUM_THREADS=1 python bench/mesh_parity.py 1 2 4      # another mesh of up to eight

Prints the largest difference of each kind, and ends with 1 where one is above 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mesh_worker import STEPS, learner, make_model, run, some_steps
from motet.base.recipe import Mesh
from motet.train.world import World


def steps(mesh: Mesh, world: World, folder: Path) -> Any:
    return some_steps(learner(folder / "model", world, mesh), STEPS)


def main(axes: list[int]) -> int:
    replicate, shard, sp = axes or (2, 2, 2)
    mesh = Mesh(dp_replicate=replicate, dp_shard=shard, sp=sp)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        expected = steps(Mesh(), World(), folder)
        count = replicate * shard * sp
        (found,) = run(count, [(count, partial(steps, mesh))], folder)
        print(f"{replicate} x {shard} x {sp}: {count} processes against one, largest difference")
        for step in STEPS:
            row = [max(_apart(own[step], expected[step], kind) for own in found) for kind in ("loss", "gradients")]
            worst = max(worst, *row)
            print(f"  {step:<32} loss {row[0]:.1e}   gradients {row[1]:.1e}")
    return int(worst > 1e-5)


def _apart(found: dict[str, Any], expected: dict[str, Any], kind: str) -> float:
    if kind == "loss":
        own, other = found["metrics"], expected["metrics"]
        return max(abs(own[name] - other[name]) for name in other)
    own, other = found["gradients"], expected["gradients"]
    return max(float((own[name] - other[name]).abs().max()) for name in other)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
