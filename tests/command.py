"""Where the project is, and its command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def nightbridge(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command, which ran in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "tools", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
