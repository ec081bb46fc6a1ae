from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from stream.settings import Settings
from tests.command import ROOT
from tools.app import COMMANDS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tools").rglob("*.md")])


def test_the_example_of_the_readme_is_a_working_config() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    settings = Settings(**tomllib.loads(example))
    assert settings.feeds["pier"].url == "udp://0.0.0.0:5000"


def test_the_readme_runs_a_file_of_its_own_and_leaves_the_reference_alone() -> None:
    """In a checkout config.toml is tracked: tests compare it with the defaults, and updates would conflict."""
    text = (ROOT / "README.md").read_text()
    files = re.findall(r"(?m)^    nightbridge (?:--log-level \w+ )?(?:run|check)\b *(\S*)", text)
    assert files == ["relay.toml"] * 4
    assert "Write `relay.toml`:" in text


def test_the_readme_makes_the_command_known_before_it_calls_it() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("\n    . .venv/bin/activate\n") < text.index("\n    nightbridge ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_commands_and_files_that_exist(page: Path) -> None:
    text = page.read_text()
    commands = {command.__name__ for command in COMMANDS}
    assert set(re.findall(r"(?m)^    nightbridge (\w+)", text)) <= commands
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_makefile_has_the_targets_of_the_readme() -> None:
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert {"install", "demo", "check", "test", "bench"} <= targets
