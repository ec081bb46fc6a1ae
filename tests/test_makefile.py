from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.command import ROOT

SAYING = """#!/bin/sh
echo "{name} $*" >> '{log}'
case "$*" in
    *"import pip"*) exit {no_pip} ;;
    -c*) exit {too_old} ;;
    "-m venv"*) mkdir -p .venv/bin && cp '{folder}/new' .venv/bin/python ;;
esac
"""
"""Stands for a Python: writes down what it is asked to do, and of `venv` makes one of the Python `new`."""


class Pythons:
    """Pythons of several kinds, by their names, and a project for which `make` uses them."""

    def __init__(self, folder: Path) -> None:
        self.project, self._folder, self._log = folder / "project", folder, folder / "log"
        self.project.mkdir()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.project)
        for name, no_pip, too_old in (("new", 0, 0), ("old", 1, 1), ("bare", 1, 0)):
            python = folder / name
            python.write_text(
                SAYING.format(name=name, log=self._log, folder=folder, no_pip=no_pip, too_old=too_old), encoding="utf-8"
            )
            python.chmod(0o755)

    def have_venv(self, name: str) -> None:
        """There is a `.venv` already, of this Python."""
        (self.project / ".venv" / "bin").mkdir(parents=True)
        shutil.copy(self._folder / name, self.project / ".venv" / "bin" / "python")

    def make(self, name: str) -> subprocess.CompletedProcess[str]:
        """`make install` with this Python."""
        words = ["make", "install", f"PYTHON={self._folder / name}"]
        return subprocess.run(words, cwd=self.project, capture_output=True, text=True, check=False)

    def asked(self, what: str) -> list[str]:
        """The Pythons that were asked for something, in turn."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [line.partition(" ")[0] for line in lines if what in line]


@pytest.fixture
def pythons(tmp_path: Path) -> Pythons:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    return Pythons(tmp_path)


def test_an_environment_is_made_once(pythons: Pythons) -> None:
    for _ in range(2):
        assert pythons.make("new").returncode == 0
    assert pythons.asked("-m venv --clear .venv") == ["new"]
    assert pythons.asked("-m pip install") == ["new"]


def test_an_environment_that_a_python_can_serve_is_kept(pythons: Pythons) -> None:
    pythons.have_venv("new")
    assert pythons.make("bare").returncode == 0
    assert pythons.asked("-m venv") == []


@pytest.mark.parametrize("venv", ["old", "bare"])
def test_an_environment_of_a_python_that_is_too_old_or_without_pip_is_made_anew(pythons: Pythons, venv: str) -> None:
    """The first is left by a first try with an old Python, the second by Debian without python3-venv."""
    pythons.have_venv(venv)
    assert pythons.make("new").returncode == 0
    assert pythons.asked("-m venv --clear .venv") == ["new"]
    assert pythons.asked("-m pip install") == ["new"]


@pytest.mark.parametrize("name", ["old", "none"])
def test_a_python_that_is_missing_or_too_old_is_told_with_the_way_out(pythons: Pythons, name: str) -> None:
    done = pythons.make(name)
    assert done.returncode == 2
    assert f"{name} is missing or older than 3.11: name another one, as in: make demo PYTHON=python3.11" in done.stderr
    assert not (pythons.project / ".venv").exists()


def test_the_makefile_asks_for_the_python_that_the_project_needs() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    (check,) = re.findall(r"(?m)^NEW_ENOUGH := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    major, minor = needed.removeprefix(">=").split(".")
    assert check.endswith(f"sys.version_info < ({major}, {minor}))")
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
