"""Exports a trained network to the files that runtimes open: ONNX in fp32 and fp16, and int8 for OpenVINO."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from engines.cards import INT8, NUMBERS, Weights, write_card
from engines.checkpoint import load_network
from engines.data.lol import read_picture
from engines.int8.equalise import equalised
from engines.int8.quantise import export_int8
from engines.network.neid import Neid
from engines.padding import past_shapes
from engines.picture import INPUTS, OUTPUTS, HalfNetwork, PictureGraph

OPSET = 18
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "nncf")
"""Loggers of the exporters, whose notes on every node of the graph are of no use here."""


def export_onnx(network: Neid, path: Path, *, half: bool = False) -> None:
    """Write the picture graph for any size and batch; `half` computes the network in float16, for TensorRT.

    Inputs, outputs and the colour arithmetic are the same in both. The file does not reveal where it was made.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    graph = PictureGraph(HalfNetwork(network) if half else network, bytes_last=half).eval()
    multiple = network.config.multiple
    height, width = 3 * multiple + 2, 2 * multiple + 2
    past = past_shapes(network.config, width, height)
    example = (
        torch.zeros(2, 1, height, width, dtype=torch.uint8),
        torch.zeros(2, 2, height // 2, width // 2, dtype=torch.uint8),
        torch.zeros(2, 2, 3, 4),
        torch.zeros(2, network.config.memory_size),
        torch.zeros(2, 1),
        *(torch.zeros(2, *shape, dtype=torch.float16) for shape in past.values()),
    )
    free = torch.export.Dim.DYNAMIC
    shapes = {name: {0: free} for name in INPUTS} | {name: {0: free, 2: free, 3: free} for name in ("y", "uv")}
    shapes |= {name: {0: free, 1: free} for name in past}
    with quiet():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=shapes,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # every node holds the source paths that it came from
    program.save(path, external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, except for errors."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_all(weights: Weights, calibration: Sequence[Path]) -> None:
    """Write every engine file beside the stored numbers that it is made from, and the digests into the card.

    `calibration` are picture files as cameras send them. Without any, no int8 is made, and existing int8 files stay if
    they match the card: `engines.training.train.store` leaves none of older numbers. If a file cannot be made, all stay
    as they are. If int8 changes, what the card says about it is removed.
    """
    pictures = [read_picture(path) for path in calibration]
    folder = weights.folder
    network = load_network(weights.file(NUMBERS))
    with TemporaryDirectory(prefix=".export-", dir=folder) as unfinished:
        made = Path(unfinished)
        export_onnx(equalised(network, pictures) if pictures else network, made / "fp32.onnx")  # int8 is made from it
        export_onnx(network, made / "fp16.onnx", half=True)
        if pictures:
            with quiet():
                export_int8(made / "fp32.onnx", made / "int8.xml", pictures, network.config)
        if pictures or not all(weights.is_sound(name) for name in INT8):
            for name in INT8:
                (folder / name).unlink(missing_ok=True)
        for path in made.iterdir():
            path.replace(folder / path.name)
    before = dict(weights.card.files)
    write_card(folder, weights.card)
    if any(before.get(name) != weights.card.files.get(name) for name in INT8):
        weights.card.precision_loss_db.pop("int8", None)
        weights.card.scores.pop("int8", None)
        write_card(folder, weights.card)
