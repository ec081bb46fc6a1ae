"""`nightbridge export`: writes the files that runtimes open, from trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    weights: Annotated[str, typer.Argument(help="Folder with weights.safetensors and its card, or a shipped name.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures as the cameras send them, to calibrate int8; without it, int8 stays as it is.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Write fp32.onnx and fp16.onnx, and int8 for OpenVINO, beside the weights, and their digests into the card."""
    from rich.console import Console

    from engines.cards import find_weights
    from engines.data.kinds import PICTURES
    from engines.errors import EngineMissing
    from tools.enhance import find_files

    pictures = find_files(calibrate, PICTURES) if calibrate else []
    try:
        from engines.export import export_all
    except ImportError as error:
        raise EngineMissing(f"export needs the extra `train`: pip install 'nightbridge[train]' ({error})") from error
    found = find_weights(weights)
    with Console(stderr=True).status(f"exporting {found.card.name}"):
        export_all(found, pictures)
    for name, digest in find_weights(str(found.folder)).card.files.items():
        print(f"{digest}  {found.folder / name}")
