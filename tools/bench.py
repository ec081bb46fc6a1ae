"""`nightbridge bench`: measures how fast it is on this machine, one figure a line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from engines.choices import Precision, Runtime
from tools.common.report import JsonFile
from tools.simulate import as_size


def bench(
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the camera's pictures.")] = "352x288",
    seconds: Annotated[float, typer.Option(min=2, max=3600, help="Length of the recording and of the live feed.")] = 20,
    weights: Annotated[str, typer.Option(help="Shipped weights, or a folder with exported ones.")] = "field",
    runtime: Annotated[
        Runtime, typer.Option(help="Library that runs the network; with --gpu, auto measures each that works.")
    ] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the network.")] = "auto",
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure an NVIDIA GPU: all sizes and runtimes.")] = False,
    minutes: Annotated[float, typer.Option(min=1, help="How long `--gpu` may take, at most.")] = 7,
    json: JsonFile = None,
) -> None:
    """Measure engine, codecs, pipeline and a live feed on a simulated night camera, all in one run.

    Keep the machine free of other work meanwhile.
    """
    if gpu:
        from tools.benchmarks.gpu import bench_gpu

        bench_gpu(weights, minutes, json, runtime)
        return
    from itertools import islice
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from engines.runtime import EngineOptions, open_engine
    from stream.simulator.camera import LARGEST, SMALLEST
    from tools.benchmarks.engine import engine_figures
    from tools.benchmarks.stream import decode, live_figures, make_feed, path_figures
    from tools.common.report import print_values, write_json

    width, height = as_size(size)
    if any(not SMALLEST <= side <= LARGEST or side % 2 for side in (width, height)):
        raise typer.BadParameter(f"size {size}; both sides must be even, from {SMALLEST} to {LARGEST}")
    logging.getLogger("stream").setLevel(logging.WARNING)  # feeds come and go many times
    options = EngineOptions(precision=precision)
    console = Console(stderr=True)
    figures: dict[str, object] = {"size": f"{width}x{height}"}
    with TemporaryDirectory(prefix="nightbridge-bench-") as folder:
        feed = Path(folder) / "night.ts"
        with console.status("filming a night"):
            make_feed(Path(__file__).parent / "clip" / "day.mp4", feed, (width, height), round(seconds * 25))
        with console.status("timing the engine"):
            figures |= engine_figures(list(islice(decode(feed), 50)), weights, runtime, options)
        with console.status("timing the path and its parts alone"), open_engine(runtime, weights, options) as engine:
            figures |= path_figures(feed, engine)
        with console.status("watching a live feed"):
            settings = {"runtime": runtime, "weights": weights, "precision": precision}
            figures |= live_figures(feed, Path(folder), seconds - 1, settings)
    print_values(Console(), figures)
    write_json(json, figures)
