"""Makes .venv and installs motet in it: `python3 tools/install.py [--extras dev,bench] [--dry-run]`.

Needs Python >= 3.11 and a package index, nothing else. uv, put into .venv by pip, does the installing. It does not read
pip's configuration, so what pip was told (indexes, folders, certificate, time-out) is handed over. As to torch:

1. with a working NVIDIA GPU, uv finds the build that fits the driver (`--torch-backend auto`);
2. else, where pip is told of a folder with a CPU build of torch in our range, exactly that one;
3. else uv chooses (`--torch-backend auto` takes the CPU build where there is no GPU).

UV_TORCH_BACKEND in the environment wins over all three. A stamp in .venv remembers what was installed: a second call
with nothing changed returns at once.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


class Command(NamedTuple):
    argv: list[str]
    environment: dict[str, str]
    """On top of the caller's; an empty value takes the variable away."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make .venv and install motet in it.")
    parser.add_argument("--extras", default="", help="comma-separated, of pyproject.toml; those there already stay")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv beside pyproject.toml)"
    )
    options = parser.parse_args(arguments)
    if sys.version_info < OLDEST:
        return fail(
            f"motet needs Python 3.11 or later, and this is {platform.python_version()} ({sys.executable}).\n"
            "Name another one: make PYTHON=python3.12 ..."
        )

    stamp = options.venv / "motet-install.json"
    fingerprint, installed = inputs(), read_stamp(stamp)
    extras = sorted({name for name in options.extras.split(",") if name} | set(installed["extras"]))
    if installed == {"inputs": fingerprint, "extras": extras} and not options.dry_run:
        return 0

    python, pip, uv = (options.venv / "bin" / name for name in ("python", "pip", "uv"))
    made_by = version_of(options.venv)
    if python.exists() and made_by not in ("", "{}.{}".format(*sys.version_info)):
        return fail(
            f"{options.venv} was made by Python {made_by}, and {sys.executable} is {platform.python_version()}.\n"
            "Remove that folder, or name the Python that made it: make PYTHON=python3.12 ..."
        )
    if not python.exists() or not (pip.exists() or uv.exists()):  # none yet, or a kill left half of one
        if importlib.util.find_spec("ensurepip") is None:
            return fail(
                f"{sys.executable} cannot make virtual environments: its ensurepip module is missing.\n"
                "On Debian and Ubuntu: apt-get install python3-venv. Then run this again."
            )
        run(Command([sys.executable, "-m", "venv", str(options.venv)], {}), options.dry_run)
    if not uv.exists():
        run(Command([str(python), "-m", "pip", "install", "--quiet", "uv"], {}), options.dry_run)
    settings = pip_settings(python if python.exists() else Path(sys.executable))
    run(install_command(uv, python, extras, settings), options.dry_run)
    if not options.dry_run:
        stamp.write_text(json.dumps({"inputs": fingerprint, "extras": extras}) + "\n", encoding="utf-8")
    return 0


def inputs() -> str:
    """A hash of what decides the outcome, cheap to compute: it runs before every make target."""
    parts = (
        (ROOT / "pyproject.toml").read_bytes(),
        Path(__file__).read_bytes(),
        platform.python_version().encode(),
        str(shutil.which("nvidia-smi")).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(path: Path) -> dict[str, Any]:
    try:
        stamp: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"inputs": "", "extras": []}
    return stamp


def version_of(venv: Path) -> str:
    """ "3.11" for an environment of Python 3.11; empty where that cannot be read."""
    try:
        match = re.search(r"^version\w* = (\d+\.\d+)", (venv / "pyvenv.cfg").read_text(encoding="utf-8"), re.M)
    except OSError:
        return ""
    return match[1] if match else ""


def install_command(uv: Path, python: Path, extras: list[str], settings: dict[str, str]) -> Command:
    folders = link_places(settings)
    what = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    argv = [str(uv), "pip", "install", "--python", str(python), "--editable", what]
    wheel = None if has_gpu() else cpu_wheel(folders)
    if "UV_TORCH_BACKEND" not in os.environ:
        argv += [f"torch=={wheel}"] if wheel else ["--torch-backend", "auto"]
    for folder in folders:
        argv += ["--find-links", folder]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        argv += ["--no-index"]
    if not can_compile():
        print("No C compiler: pycosat, without which reasoning-gym cannot be used, is left out.", file=sys.stderr)
        argv += ["--overrides", str(ROOT / "tools" / "no-compiler.txt")]
    return Command(argv, uv_environment(settings))


def has_gpu() -> bool:
    """Whether nvidia-smi runs and lists a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def can_compile() -> bool:
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(shlex.split(compiler)[0]) is not None and header.exists()


def cpu_wheel(folders: list[str]) -> str | None:
    """The newest version such as "2.13.0+cpu" in these folders that fits this interpreter and pyproject's range."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = re.compile(rf"torch-((\d+)\.(\d+)\.(\d+)\+cpu)-{tag}-{tag}-(\w+)\.whl")
    found = []
    for folder in folders:
        for path in Path(folder).glob("torch-*.whl") if Path(folder).is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and fits_platform(match[5]):
                version = (int(match[2]), int(match[3]), int(match[4]))
                if in_torch_range(version):
                    found.append((version, match[1]))
    return max(found)[1] if found else None


def fits_platform(tag: str) -> bool:
    """Whether a platform tag, manylinux_2_28_x86_64 say, is of this machine and of no newer C library."""
    if not tag.endswith("_" + platform.machine()):
        return False
    wanted = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    if wanted is None:
        return tag.startswith("linux_")
    name, version = platform.libc_ver()
    return name == "glibc" and (int(wanted[1]), int(wanted[2])) <= tuple(map(int, version.split(".")[:2]))


def in_torch_range(version: tuple[int, ...]) -> bool:
    import tomllib  # a Python too old to have it must get as far as the message in main

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = next(line for line in project["dependencies"] if re.match(r"torch\b", line))
    low, high = (tuple(map(int, bound.split("."))) for bound in re.findall(r"[\d.]+", torch))
    return low <= version < high


def pip_settings(python: Path) -> dict[str, str]:
    """pip's configuration as it holds for `pip install`: {"find-links": "/wheels", "cert": ...}; empty without pip."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True)
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # pip's own order: the later wins
        for line in listed.stdout.splitlines():
            match = re.fullmatch(rf"{section}\.([a-z-]+)=(['\"].*)", line)
            if match:
                settings[match[1]] = ast.literal_eval(match[2])
    return settings


def link_places(settings: dict[str, str]) -> list[str]:
    """pip's and uv's find-links. Folders that do not exist are left out: to uv they are an error."""
    places = settings.get("find-links", "").split() + os.environ.get("UV_FIND_LINKS", "").split(",")
    return list(dict.fromkeys(place for place in map(reachable, places) if place))


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """pip's settings as uv's variables, where the caller has not set these: an index address may hold a password,
    which in an argument every user of the machine could read."""
    given = os.environ
    environment = {}
    if "UV_FIND_LINKS" in given:
        environment["UV_FIND_LINKS"] = ""  # handed over as arguments
    if not given.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}:
        environment["UV_DEFAULT_INDEX"] = reachable(settings.get("index-url", ""), index=True)
    if not given.keys() & {"UV_INDEX", "UV_EXTRA_INDEX_URL"}:
        extra = [reachable(url, index=True) for url in settings.get("extra-index-url", "").split()]
        environment["UV_INDEX"] = " ".join(url for url in extra if url)
        if environment["UV_INDEX"] and "UV_INDEX_STRATEGY" not in given:
            # pip takes the best version of all its indexes; uv by default takes the first index that knows the name
            environment["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "SSL_CERT_FILE" not in given and Path(settings.get("cert", "")).is_file():
        environment["SSL_CERT_FILE"] = settings["cert"]
    if "UV_HTTP_TIMEOUT" not in given:
        environment["UV_HTTP_TIMEOUT"] = settings.get("timeout") or settings.get("default-timeout", "")
    return {name: value for name, value in environment.items() if value or name in given}


def reachable(place: str, index: bool = False) -> str:
    """An address as it is, a folder (an index: as a file address) if it exists, else an empty string."""
    if re.match(r"https?://", place):
        return place
    folder = Path(unquote(urlsplit(place).path) if place.startswith("file:") else place).expanduser()
    if not place or not folder.is_dir():
        return ""
    return folder.resolve().as_uri() if index else str(folder)


def run(command: Command, dry: bool) -> None:
    """Prints the command, then runs it. A failure ends the program: what failed has said why."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    shown = " ".join([*variables, shlex.join(command.argv)])
    print("+ " + re.sub(r"://[^/@\s]+@", "://***@", shown), file=sys.stdout if dry else sys.stderr, flush=True)
    if dry:
        return
    environment = {k: v for k, v in {**os.environ, **command.environment}.items() if v or k not in command.environment}
    status = subprocess.run(command.argv, env=environment).returncode
    if status:
        raise SystemExit(fail(f"That command failed with status {status}; nothing was marked as installed."))


def fail(message: str) -> int:
    print(f"install: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
