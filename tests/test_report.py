from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.command import ROOT
from tools.common.report import print_values, write_json

VALUES = {
    "name": "[pier]",
    "rate": Fraction(25, 1),
    "age_ms": np.float32(12.5),
    "frames": np.int64(7),
    "psnr": math.inf,
    "live": True,
    "streams": [{"codec": "h264"}],
}


def test_the_json_file_is_one_object_of_plain_values(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", VALUES)
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "name": "[pier]",
        "rate": "25",
        "age_ms": 12.5,
        "frames": 7,
        "psnr": None,
        "live": True,
        "streams": [{"codec": "h264"}],
    }


def test_the_name_of_a_file_that_is_no_utf_8_comes_back_from_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"night\xff.mp4")
    write_json(tmp_path / "report.json", {"source": name, "target": "Brücke"})
    assert json.loads((tmp_path / "report.json").read_text()) == {"source": name, "target": "Brücke"}


def test_no_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(None, VALUES)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"/dev/full'$"):
        write_json(Path("/dev/full"), {"a": 1})
    (tmp_path / "closed").write_text("")
    with pytest.raises(OSError, match=r"closed/report\.json'$"):
        write_json(tmp_path / "closed" / "report.json", {"a": 1})


def test_a_pipe_gets_the_object_and_stays_a_pipe(tmp_path: Path) -> None:
    write_json(Path("/dev/null"), {"a": 1})
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/stderr"])
def test_a_file_that_the_output_goes_to_keeps_what_else_is_written(tmp_path: Path, output: str) -> None:
    program = f"from tools.common.report import *; print('told'); write_json(Path({output!r}), {{'a': 1}})"
    log = tmp_path / "log"
    with log.open("w") as file:
        print("before", file=file, flush=True)
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=file, stderr=file, check=True)
        print("after", file=file)
    assert log.read_text() == 'before\ntold\n{\n  "a": 1\n}\nafter\n'


def test_values_are_printed_one_a_line_in_columns() -> None:
    console = Console(file=io.StringIO(), width=20)
    print_values(console, VALUES)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "name             [pier]",
        "rate             25",
        "age_ms           12.5",
        "frames           7",
        "psnr             -",
        "live             true",
        "streams.0.codec  h264",
    ]
