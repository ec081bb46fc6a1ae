"""A file of settings, and what is told of its mistakes, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.errors import SettingsError
from stream.settings import load_settings

SHIPPED = Path(__file__).parents[1] / "config.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert caught.value.__cause__ is None
    return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).split("\n")]
