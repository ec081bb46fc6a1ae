"""`nightbridge engine`: builds the plans that TensorRT runs before a relay needs them, and lists them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tools.common.report import JsonFile

if TYPE_CHECKING:
    from engines.cards import Weights
    from engines.nvidia.plans import Plan, PlanFile, PlanKey, Plans
    from engines.nvidia.tensorrt_library import Library

NOT_FOR_USE = (
    "no GPU here: this shows that plans can be built, but none of them will run; a machine with a GPU builds its own"
)
NEVER_RAN = "never ran here: this GPU may refuse it"
CACHE = Annotated[
    Path | None,
    typer.Option(
        envvar="NIGHTBRIDGE__ENGINE__CACHE",
        file_okay=False,
        help="Folder of plans, as `cache` in the table `engine` of the settings.",
        show_default="nightbridge in the user's cache folder",
    ),
]

engine = typer.Typer(no_args_is_help=True, help="Plans of TensorRT: build them before a relay needs them, list them.")


@engine.command()
def build(
    size: Annotated[
        list[str], typer.Option(metavar="WxH", help="Size of the camera's pictures, such as 640x360; may be repeated.")
    ],
    weights: Annotated[
        str, typer.Option(help="Shipped weights, a folder with exported ones, or all (every shipped one).")
    ] = "field",
    batch: Annotated[
        int, typer.Option(help="Largest batch; must be `batch` in the table `engine` of the settings.")
    ] = 8,
    runtime: Annotated[Literal["tensorrt"], typer.Option(help="OpenVINO needs no plans.")] = "tensorrt",  # noqa: ARG001
    cache: CACHE = None,
    json: JsonFile = None,
) -> None:
    """Build plans for pictures of these sizes, unless they exist; on a GPU, those that a relay uses on it."""
    import time

    from rich.console import Console

    from engines.errors import EngineMismatch
    from engines.nvidia.gpu import NO_GPU, find_gpu
    from engines.nvidia.plans import Plans, check_fits
    from engines.nvidia.tensorrt_library import import_tensorrt
    from tools.common.report import write_json
    from tools.simulate import as_size

    sizes = [as_size(text) for text in size]
    try:
        for width, height in sizes:
            check_fits(width, height, batch)
    except EngineMismatch as error:
        raise typer.BadParameter(str(error)) from None
    chosen = choose(weights)
    library, gpu = import_tensorrt(), find_gpu()
    plans = Plans(library, gpu, cache)
    console, rows = Console(stderr=True), []
    for found, (width, height) in product(chosen, sizes):
        began = time.monotonic()
        with console.status(f"building {found.card.name} for {width}x{height}"):
            if gpu == NO_GPU:
                plan = plans.get(found, width, height, batch)
            else:
                plan = plan_that_runs(plans, library, found, (width, height), batch, cache)
        seconds = time.monotonic() - began
        rows.append(
            as_values(plan.key, plan.path, len(plan.data)) | {"built": plan.built, "seconds": round(seconds, 3)}
        )
        done = f"built in {seconds:.1f} s" if plan.built else "already there"
        print(
            f"{plan.key.weights} {width}x{height}: {len(plan.data)} bytes, {done}: {plan.path or 'not stored'}",
            flush=True,
        )
    if gpu == NO_GPU:
        console.print(NOT_FOR_USE, markup=False, highlight=False, soft_wrap=True)
    write_json(json, {"usable": gpu != NO_GPU, "plans": rows})


@engine.command("list")
def list_plans(cache: CACHE = None, json: JsonFile = None) -> None:
    """List all plans, newest first, and which of them this machine uses with its weights."""
    from engines.errors import EngineMissing
    from engines.nvidia.gpu import find_gpu
    from engines.nvidia.plans import Plans
    from engines.nvidia.tensorrt_library import import_tensorrt
    from tools.common.report import in_columns, write_json

    try:
        library = import_tensorrt()
    except EngineMissing:
        library = None
    plans = Plans(library, find_gpu(), cache)
    files = [replace(file, useless=why_useless(plans, library, file)) for file in plans.files()]
    for line in in_columns([as_columns(file) for file in files]):
        print(line)
    print(f"{len(files)} plans in {plans.folder}")
    rows = [
        as_values(file.key, file.path, file.bytes)
        | {"made": made_at(file), "usable": not file.useless, "why": file.useless}
        for file in files
    ]
    write_json(json, {"folder": plans.folder, "plans": rows})


def choose(weights: str) -> list[Weights]:
    """The weights of this name, or all that are shipped."""
    from engines.cards import find_weights, shipped

    return [find_weights(name) for name in (shipped() if weights == "all" else [weights])]


def plan_that_runs(
    plans: Plans, library: Library, weights: Weights, size: tuple[int, int], batch: int, cache: Path | None
) -> Plan:
    """The plan that a relay uses on this GPU. An engine finds it, and caches what is compiled at its first run."""
    from engines.nvidia.tensorrt_builder import capabilities
    from engines.runtime import EngineOptions
    from engines.runtime_tensorrt import open_engine

    before = {file.path for file in plans.files()}
    with open_engine(weights, EngineOptions(cache=cache, slots=1, batch=batch)) as engine:
        engine.prepare(*size)
    for capability in capabilities(library):
        plan = plans.get(weights, *size, batch, capability=capability)
        if plan.path is None or plans.load_cache(plan.key) is not None:
            break
    return replace(plan, built=plan.path not in before)


def why_useless(plans: Plans, library: Library | None, file: PlanFile) -> str:
    """Why a plan is not used here; empty if it is. TensorRT-RTX compiles for each plan that the GPU runs: a plan that
    fits, but has nothing compiled, never ran."""
    if file.useless or file.key is None or library is None or library.times_kernels:
        return file.useless
    return NEVER_RAN if plans.load_cache(file.key) is None else ""


def as_values(key: PlanKey | None, path: Path | None, size: int) -> dict[str, object]:
    """A plan as values for programs."""
    from msgspec import to_builtins

    parts = to_builtins(key) if key else {}
    return {"path": path, "bytes": size, **parts.pop("machine", {}), **parts}


def as_columns(file: PlanFile) -> list[str]:
    """A plan as columns for people."""
    from engines.nvidia.gpu import NO_GPU
    from engines.nvidia.tensorrt_library import TITLES

    use = file.useless or "usable"
    parts = [file.path.name, *[""] * 5]
    if file.key:
        key, machine = file.key, file.key.machine
        gpu = "no GPU" if machine.gpu == NO_GPU.name else f"{machine.gpu}, driver {machine.driver}"
        made_by = f"{TITLES.get(machine.library, machine.library)} {machine.version}"
        parts = [key.weights, f"{key.width}x{key.height}", f"batch 1-{key.batch}", key.precision, made_by, gpu]
    return [*parts, f"{file.bytes} bytes", made_at(file), use]


def made_at(file: PlanFile) -> str:
    """When it was made, in UTC."""
    return datetime.fromtimestamp(file.made, UTC).isoformat(timespec="seconds")
