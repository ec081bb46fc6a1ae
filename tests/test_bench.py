"""`nightbridge bench`: that every figure is there. How large they are is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from engines.cards import SHIPPED, Card, write_card
from engines.runtime import EngineOptions
from stream.errors import StreamError
from stream.publish import Publisher
from stream.settings import load_settings
from stream.subscribe import Subscriber
from stream.wire.messages import Header
from tests.clips import make_clip
from tests.command import ROOT, nightbridge
from tests.doubling import DoublingEngine
from tools.benchmarks import engine, stream
from tools.benchmarks.engine import engine_figures, onnxruntime_picture
from tools.benchmarks.stream import decode, run_pipeline, running_relay, watch

pytest.importorskip("onnxruntime", reason="the engine is compared with ONNX Runtime, of the extra `dev`")

SHORT = """
from tools.benchmarks import engine, stream
from tools.app import main
engine.ROUNDS = stream.ROUNDS = 1
engine.PICTURES = 3
stream.JOINS, stream.FURTHER_FEEDS = 2, 1
main()
"""
"""The command with as few repetitions as can be: `python -c SHORT bench`."""
NUMBERS = {
    "engine_ms",
    "engine_parallel_ms",
    "onnxruntime_ms",
    "engine_speedup",
    "decode_ms",
    "engine_cpu_ms",
    "encode_ms",
    "pipeline_fps",
    "pipeline_cpu_ms",
    "pipeline_efficiency",
    "live_fps",
    "live_dropped",
    "age_p50_ms",
    "age_p95_ms",
    "age_p99_ms",
    "view_age_p50_ms",
    "view_age_p95_ms",
    "view_age_p99_ms",
    "join_p50_ms",
    "join_p95_ms",
    "relay_memory_mb",
    "feed_memory_mb",
}


def test_every_figure_is_printed_and_written_as_a_number(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT, "bench", "--size", "160x120", "--seconds", "3", "--json", "bench.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    by_precision = figures.pop("engine_ms_by_precision")
    assert figures.keys() == NUMBERS | {"size", "runtime", "precision", "device", "weights_id"}
    for name in NUMBERS:
        assert isinstance(figures[name], int | float), name
        assert np.isfinite(figures[name])
        assert figures[name] > 0 or name in ("live_dropped", "feed_memory_mb")
    assert (figures["size"], figures["runtime"]) == ("160x120", "openvino")
    assert figures["engine_speedup"] == pytest.approx(figures["onnxruntime_ms"] / figures["engine_ms"])
    assert by_precision[figures["precision"]] == figures["engine_ms"]
    assert {"fp32", "int8"} <= by_precision.keys()
    for name in ("age", "view_age"):
        assert figures[f"{name}_p50_ms"] <= figures[f"{name}_p95_ms"] <= figures[f"{name}_p99_ms"]
    printed = {line.split()[0] for line in done.stdout.splitlines()}
    assert printed == figures.keys() | {f"engine_ms_by_precision.{precision}" for precision in by_precision}


def test_the_relay_is_this_programs_whatever_is_here_and_meant_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('tools of somebody else')")
    (tmp_path / "mine").symlink_to(SHIPPED / "field")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTBRIDGE__RELAY__ENDPOINT", f"ipc://{tmp_path}/another")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clip = make_clip(tmp_path / "clip.ts", pictures=50, size=(64, 48))
    with (
        running_relay(clip, tmp_path, 1, {"weights": "mine"}) as (relay, endpoint),
        Subscriber(endpoint, "bench0") as viewer,
    ):
        pictures, _ = watch(viewer, 0.5, lambda: relay.poll() is None)
    assert len(pictures) > 1
    monkeypatch.setenv("NIGHTBRIDGE__FEEDS__PIER__READ_TIMEOUT", "10s")
    with DoublingEngine() as engine:
        assert run_pipeline(clip, engine)["pipeline_fps"] > 0


def test_one_viewer_of_very_many_feeds_loses_nothing_that_they_publish_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer takes in a thousand messages that nobody reads yet; what comes beyond them only the relay keeps."""
    relay = SimpleNamespace(terminate=lambda: None, wait=lambda _: 0)
    clip = make_clip(tmp_path / "clip.ts", pictures=2, size=(64, 48))
    with monkeypatch.context() as unstarted:
        unstarted.setattr(stream.subprocess, "Popen", lambda *_, **__: relay)
        with running_relay(clip, tmp_path, 256, {}) as (_, endpoint):
            settings = load_settings(tmp_path / "bench.toml").relay
    count, payload = 3000, b"status" * 500
    with Publisher(settings, "relay") as publisher, Subscriber(endpoint, None, ("status",), max_age=None) as viewer:
        assert publisher.wait_for_viewer("bench0", 30)
        for number in range(count):
            publisher.publish(f"bench{number % 256}", "status", Header(), payload)
        for number in range(count):
            assert viewer.receive(30) is not None, f"{number} of {count} came"


def test_a_relay_that_ends_while_it_is_watched_is_told_and_not_measured() -> None:
    viewer = SimpleNamespace(receive=lambda _: SimpleNamespace(kind="video"))
    alive = chain(repeat(True, 5), repeat(False))
    with pytest.raises(StreamError, match="it sent 5 pictures"):
        watch(cast("Subscriber", viewer), 60, lambda: next(alive))


def test_pictures_of_any_size_that_is_taken_pass_the_path(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=2, size=(2048, 1536))
    with DoublingEngine() as engine:
        assert run_pipeline(clip, engine)["pipeline_fps"] > 0


def test_a_precision_that_the_weights_do_not_have_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ROUNDS", 1)
    monkeypatch.setattr(engine, "PICTURES", 1)
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("weights.safetensors", "fp32.onnx"):
        (weights / name).symlink_to(SHIPPED / "field" / name)
    write_card(weights, Card(name="mine", network="neid-live", files={}))
    frames = list(decode(make_clip(tmp_path / "clip.ts", pictures=2, size=(64, 48))))
    figures = engine_figures(frames, str(weights), "openvino", EngineOptions("fp32", 1, tmp_path / "cache"))
    assert figures["precision"] == "fp32"
    times = figures["engine_ms_by_precision"]
    assert isinstance(times, dict)
    assert "int8" not in times
    assert times["fp32"] == figures["engine_ms"]


@pytest.mark.parametrize("size", ["161x120", "160x8", "0x0"])
def test_a_size_that_no_camera_sends_is_refused(tmp_path: Path, size: str) -> None:
    done = nightbridge(tmp_path, "bench", "--size", size)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"size {size}; both sides must be even, from 16 to 4096" in done.stderr


@pytest.mark.parametrize("seconds", ["1", "inf", "nan"])
def test_a_time_that_cannot_be_measured_is_refused(tmp_path: Path, seconds: str) -> None:
    done = nightbridge(tmp_path, "bench", "--seconds", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "'--seconds'" in done.stderr


def test_weights_without_fp32_are_not_compared_with_onnx_runtime() -> None:
    assert onnxruntime_picture([], "paper", threads=1) is None
