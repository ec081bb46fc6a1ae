from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.command import ROOT

FORBIDDEN = {
    "engines": {"stream", "tools", "tests", "zmq"},
    "stream": {"tools", "tests", "torch", "openvino", "onnx", "nncf"},
    "tools": {"tests", "zmq"},
}
"""What a package may not import: the way goes tools, stream, engines, and only engines know a runtime."""


def imports(file: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (ROOT / package).rglob("*.py")
        for name in imports(file) & FORBIDDEN[package]
    }
    assert wrong == set()


def test_what_the_relay_runs_on_needs_no_torch() -> None:
    needs_torch = {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "engines").rglob("*.py") if "torch" in imports(file)
    }
    assert "engines/runtime_openvino.py" not in needs_torch
    assert needs_torch.isdisjoint(
        {
            f"engines/{name}.py"
            for name in ("door", "runtime", "fallback", "gpu", "cards", "colour", "data/lol", "data/darken")
        }
    )
