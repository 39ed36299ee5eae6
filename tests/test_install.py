"""tools/install.py: which torch it chooses, and that it does nothing twice. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("pip", reason="the installer asks pip for its configuration")

SCRIPT = Path(__file__).parent.parent / "tools" / "install.py"
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


def wheel(folder: Path, version: str, tag: str = TAG, system: str = f"linux_{platform.machine()}") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"torch-{version}-{tag}-{tag}-{system}.whl").touch()


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def install(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The installer with an environment of its own: no settings of pip or uv, no programs but those in home/bin."""
    environment = {"HOME": str(home), "PATH": str(home / "bin"), "PIP_CONFIG_FILE": os.devnull, **variables}
    command = [sys.executable, str(SCRIPT), "--venv", str(home / "venv"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def planned(home: Path, *arguments: str, **variables: str) -> list[str]:
    """The words of the command that installs, by a dry run."""
    done = install(home, "--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert not (home / "venv").exists()
    return done.stdout.splitlines()[-1].split()


def holds(words: Sequence[str], *part: str) -> bool:
    return any(tuple(words[i : i + len(part)]) == part for i in range(len(words)))


def test_a_cpu_wheel_in_a_folder_that_pip_knows_is_taken_where_there_is_no_gpu(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "2.11.0+cpu")
    wheel(wheels, "2.13.0+cpu")
    words = planned(tmp_path, PIP_FIND_LINKS=str(wheels))
    assert "torch==2.13.0+cpu" in words
    assert holds(words, "--find-links", str(wheels))
    assert "--torch-backend" not in words


def test_the_folder_may_stand_in_a_configuration_file_of_pip_as_a_file_address(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "2.12.1+cpu")
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links =\n    {(tmp_path / 'wheels').as_uri()}\n")
    assert "torch==2.12.1+cpu" in planned(tmp_path, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))


def test_without_such_a_wheel_uv_chooses(tmp_path: Path) -> None:
    words = planned(tmp_path)
    assert holds(words, "--torch-backend", "auto")
    assert not any(word.startswith("torch==") for word in words)


@pytest.mark.parametrize(
    ("version", "tag", "system"),
    [
        ("2.10.0+cpu", TAG, f"linux_{platform.machine()}"),  # below our range
        ("2.14.0+cpu", TAG, f"linux_{platform.machine()}"),  # above it
        ("2.13.0", TAG, f"linux_{platform.machine()}"),  # the CUDA build
        ("2.13.0+cpu", "cp27", f"linux_{platform.machine()}"),
        ("2.13.0+cpu", TAG, "linux_pdp11"),
    ],
)
def test_a_wheel_that_does_not_fit_is_left_alone(tmp_path: Path, version: str, tag: str, system: str) -> None:
    wheel(tmp_path / "wheels", version, tag, system)
    assert holds(planned(tmp_path, PIP_FIND_LINKS=str(tmp_path / "wheels")), "--torch-backend", "auto")


def test_with_a_gpu_uv_chooses_even_where_a_cpu_wheel_lies_ready(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "2.13.0+cpu")
    program(tmp_path / "bin", "nvidia-smi", "echo 'GPU 0: Imaginary 1 (UUID: GPU-0)'")
    words = planned(tmp_path, PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert holds(words, "--torch-backend", "auto")
    assert "torch==2.13.0+cpu" not in words


def test_a_driver_program_that_finds_no_gpu_counts_as_none(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "2.13.0+cpu")
    program(tmp_path / "bin", "nvidia-smi", "echo 'no devices were found'; exit 6")
    assert "torch==2.13.0+cpu" in planned(tmp_path, PIP_FIND_LINKS=str(tmp_path / "wheels"))


def test_the_users_own_choice_of_a_backend_wins(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "2.13.0+cpu")
    words = planned(tmp_path, PIP_FIND_LINKS=str(tmp_path / "wheels"), UV_TORCH_BACKEND="cu130")
    assert "--torch-backend" not in words
    assert "torch==2.13.0+cpu" not in words


def test_folders_that_do_not_exist_are_not_passed_on(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "2.13.0+cpu")
    words = planned(tmp_path, PIP_FIND_LINKS="/no/such/folder", UV_FIND_LINKS=f"/nor/this,{tmp_path / 'wheels'}")
    assert words.count("--find-links") == 1
    assert "torch==2.13.0+cpu" in words
    assert "UV_FIND_LINKS=''" in words  # its folders are arguments now


def test_indexes_of_pip_are_uvs_too_and_a_password_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    extra = f"https://two.example/simple file://{tmp_path}/index file:///no/such/index"
    words = planned(tmp_path, PIP_INDEX_URL="https://me:secret@one.example/simple", PIP_EXTRA_INDEX_URL=extra)
    assert "UV_DEFAULT_INDEX=https://***@one.example/simple" in words
    assert holds(words, "UV_INDEX='https://two.example/simple", f"file://{tmp_path}/index'")
    assert "UV_INDEX_STRATEGY=unsafe-best-match" in words
    assert not any("secret" in word for word in words)


def test_an_index_that_was_given_to_uv_itself_stays(tmp_path: Path) -> None:
    words = planned(tmp_path, PIP_INDEX_URL="https://one.example/simple", UV_DEFAULT_INDEX="https://two.example/simple")
    assert not any(word.startswith("UV_DEFAULT_INDEX") for word in words)


def test_the_certificate_and_the_time_out_of_pip_are_uvs_too(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    words = planned(tmp_path, PIP_CERT=str(certificate), PIP_DEFAULT_TIMEOUT="180")
    assert {f"SSL_CERT_FILE={certificate}", "UV_HTTP_TIMEOUT=180"} <= set(words)
    assert f"SSL_CERT_FILE={certificate}" not in planned(tmp_path, PIP_CERT=str(certificate), SSL_CERT_FILE="/other")


def test_no_index_of_pip_holds_for_uv(tmp_path: Path) -> None:
    assert "--no-index" in planned(tmp_path, PIP_NO_INDEX="1")
    assert "--no-index" not in planned(tmp_path, PIP_NO_INDEX="0")


def test_what_needs_a_compiler_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    assert "--overrides" in planned(tmp_path, CC="no-such-compiler")


def test_an_environment_is_made_first_and_uv_put_into_it(tmp_path: Path) -> None:
    done = install(tmp_path, "--dry-run", "--extras", "dev,bench")
    make, get_uv, last = done.stdout.splitlines()
    assert make.endswith(f"-m venv {tmp_path}/venv")
    assert get_uv == f"+ {tmp_path}/venv/bin/python -m pip install --quiet uv"
    assert f"--editable '{SCRIPT.parent.parent}[bench,dev]'" in last


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A home with an environment whose uv writes down its arguments and fails while a file named `broken` is there."""
    scripts = tmp_path / "venv" / "bin"
    program(scripts, "pip", "exit 1")
    program(scripts, "uv", f'[ ! -e {tmp_path}/broken ] && echo "$@" >> {tmp_path}/calls')
    (scripts / "python").symlink_to(sys.executable)
    return tmp_path


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines() if (home / "calls").exists() else []


def test_a_second_call_with_nothing_changed_installs_nothing(made: Path) -> None:
    assert [install(made).returncode, install(made).returncode] == [0, 0]
    assert len(calls(made)) == 1


def test_extras_add_up_over_the_calls(made: Path) -> None:
    for extras in ("dev", "bench", "dev", ""):
        assert install(made, "--extras", extras).returncode == 0
    assert [call.rpartition("[")[2].split("]")[0] for call in calls(made)] == ["dev", "bench,dev"]


def test_a_failed_install_is_reported_and_tried_again(made: Path) -> None:
    (made / "broken").touch()
    failed = install(made)
    assert (failed.returncode, calls(made)) == (1, [])
    assert "failed with status 1" in failed.stderr
    (made / "broken").unlink()
    assert install(made).returncode == 0
    assert len(calls(made)) == 1


def test_an_environment_of_another_python_is_refused_with_a_way_out(made: Path) -> None:
    (made / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.1.4\n")
    refused = install(made)
    assert refused.returncode == 1
    assert "was made by Python 3.1," in refused.stderr
    assert "make PYTHON=" in refused.stderr


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("motet_install", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_for_a_newer_c_library_does_not_fit(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("glibc", "2.31"))
    fits = [module.fits_platform(f"manylinux_2_{minor}_x86_64") for minor in (28, 31, 34)]
    assert fits == [True, True, False]
    assert not module.fits_platform("manylinux_2_28_aarch64")
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("", ""))  # musl
    assert not module.fits_platform("manylinux_2_28_x86_64")


def test_a_python_without_ensurepip_is_told_how_to_get_it(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module.main(["--venv", str(tmp_path / "venv")]) == 1
    assert "apt-get install python3-venv" in capsys.readouterr().err


def test_a_python_that_is_too_old_is_told_so(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "OLDEST", (99, 0))
    assert module.main(["--venv", str(tmp_path / "venv")]) == 1
    assert "make PYTHON=" in capsys.readouterr().err
